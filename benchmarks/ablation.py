"""Does tuning the environment help? Five arms, several seeds, one subject, equal budgets, on the playground.

    python benchmarks/ablation.py --out runs/ablation --model smollm2 --plan-minutes 17 --minutes 9
    python benchmarks/ablation.py --out runs/ablation --model smollm2 --minutes 9        # goes on where it stopped
    python benchmarks/ablation.py --out runs/ablation --report docs/ablation

All runs train in lockstep in one process: the episodes of a step, of all arms and seeds, are generated as one batch in
which every row has its own LoRA adapter; worker processes play the episodes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).with_name("ablation")))

PRESETS: dict[str, dict[str, Any]] = {
    "gpu": {
        "prompts": 6, "samples": 8, "rank": 8, "lr": 2e-4, "max_new": 64, "max_steps": 6, "context": 1408,
        "slots": 0, "prefill_tokens": 65_536, "train_tokens": 32_768, "validation": 48, "test": 120,
        "train_tasks": 400, "max_turns": 4, "evaluate_every": 8,
        "warmup_tasks": 480, "warmup_steps": 400, "warmup_lr": 2e-3, "warmup_rank": 4, "warmup_batch": 16,
        "tiny_width": 384, "tiny_layers": 6, "tiny_tasks": 4000, "tiny_steps": 1400, "tiny_lr": 1e-3, "tiny_batch": 64,
    },
    "cpu": {
        "prompts": 4, "samples": 6, "rank": 8, "lr": 2e-3, "max_new": 32, "max_steps": 7, "context": 768,
        "slots": 0, "prefill_tokens": 16_384, "train_tokens": 8_192, "validation": 24, "test": 80,
        "train_tasks": 400, "max_turns": 4, "evaluate_every": 6,
        "warmup_tasks": 480, "warmup_steps": 70, "warmup_lr": 2e-3, "warmup_rank": 4, "warmup_batch": 12,
        "tiny_width": 128, "tiny_layers": 3, "tiny_tasks": 3200, "tiny_steps": 1000, "tiny_lr": 4e-3, "tiny_batch": 32,
    },
}  # fmt: skip


def main() -> None:
    options = _options()
    if options.report:
        from report import write_report

        write_report(options.out, options.report)
    if options.publish:
        from publish import publish

        publish(options.out, options.publish)
    if options.report or options.publish:
        return
    import torch
    from experiment import Experiment

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    settings = {
        **PRESETS[options.preset or ("gpu" if device == "cuda" else "cpu")],
        "arms": options.arms.split(","),
        "seeds": options.seeds,
        "steps": options.steps,
        **{key: type_of(value) for key, value in (item.split("=") for item in options.set)},
    }
    started = time.perf_counter()
    experiment = Experiment(options.out, options.model, device, settings, options.workers)
    print(f"ready after {time.perf_counter() - started:.0f} s on {device}: {len(experiment.runs)} runs", flush=True)
    done = _go_on(experiment, settings, started, 60 * options.minutes, 60 * options.plan_minutes)
    print("all steps are done" if done else "stopped in time; run the same command again to go on", flush=True)
    if options.pack:
        _pack(experiment, options.out, options.pack)
    experiment.workers.close()


def _go_on(experiment: Any, settings: dict[str, Any], started: float, limit_s: float, plan_s: float) -> bool:
    """Trains until the budget of steps or of time is used up; True when everything was done."""

    def left() -> float:
        return limit_s - (time.perf_counter() - started)

    experiment.baseline()
    if not experiment.steps:
        _measure(experiment, settings, started, plan_s)
    longest, saved = 0.0, time.perf_counter()
    while experiment.step < experiment.steps:
        if left() < 1.5 * longest + 15:
            experiment.save()
            return False
        begun = time.perf_counter()
        experiment.train_step()
        if experiment.step % settings["evaluate_every"] == 0 or experiment.step == experiment.steps:
            experiment.evaluate()
            experiment.save()  # a curriculum writes its decisions at once, so the weights must follow
            saved = time.perf_counter()
        longest = max(longest, time.perf_counter() - begun)
        if time.perf_counter() - saved > 120:
            experiment.save()
            saved = time.perf_counter()
    experiment.save()
    if left() < 6 * longest:
        return False
    experiment.final()
    return True


def _measure(experiment: Any, settings: dict[str, Any], started: float, plan_s: float) -> None:
    """Fixes the budget of steps from the time that the first two take. They count like any other step."""
    experiment.steps = 10_000  # so that the stages exist; the budgets follow below
    experiment._make_curricula()
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        experiment.train_step()
        times.append(time.perf_counter() - begun)
    remaining = plan_s - (time.perf_counter() - started)
    per_step = times[-1] * (1 + 1 / settings["evaluate_every"])
    for file in (experiment.out / "curriculum").glob("*.json"):
        file.unlink()
    experiment.fix_steps(max(10, 2 + int((remaining - 8 * times[-1] - 30) / per_step)))
    print(f"a step takes {times[-1]:.1f} s: the budget is {experiment.steps} steps", flush=True)


def _pack(experiment: Any, out: Path, target: Path) -> None:
    """Curves and results as one archive, and the adapters of the arm (a) beside it."""
    import tarfile

    target.mkdir(parents=True, exist_ok=True)
    names = ("settings.json", "metrics.jsonl", "evaluations.jsonl", "baseline.json", "final.json", "state.json")
    with tarfile.open(target / "results.tar.gz", "w:gz") as archive:
        for path in [*(out / name for name in names), *sorted((out / "curriculum").glob("*.json"))]:
            if path.exists():
                archive.add(path, path.relative_to(out))
    warmup = out / "subject" / "warmup.safetensors"
    if warmup.exists():
        (target / "warmup.safetensors").write_bytes(warmup.read_bytes())
    experiment.save_adapters(target, ("four",))


def type_of(text: str) -> Any:
    """A setting from the command line: a whole number, a number, or text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the experiment; the same one resumes it")
    parser.add_argument("--model", default="smollm2", help="a checkpoint, or 'tiny' for the small Qwen3")
    parser.add_argument("--arms", default="four,no_hints,binary,single,sft")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="training steps; 0 fixes them from --plan-minutes")
    parser.add_argument("--plan-minutes", type=float, default=17.0, help="time for everything, over all commands")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop cleanly after this much time")
    parser.add_argument("--workers", type=int, default=14, help="processes that play episodes")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting")
    parser.add_argument("--pack", type=Path, help="folder for what is to be kept, in small files")
    parser.add_argument("--report", type=Path, help="write tables and plots of --out to this folder and end")
    parser.add_argument("--publish", type=Path, help="write weights that load by name to this folder and end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
