"""A finished experiment -> what others can load: the tiny subject with an adapter of each arm, or SmolLM2's best arm.

The tiny subject's adapters are those of seed 0 of every arm, whatever their results. SmolLM2's is one run of the arm
that solved most held-out tasks, with the warm-up's adapter in the same matrices and a model card. All in the files that
peft writes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from arms import ARMS, RULE, Run, stages_of, test_sets
from learn import KL_COEF
from packed import LINEARS
from safetensors.torch import load_file, save_file
from subject import TINY
from torch import Tensor

from envtune_agents.curriculum import Curriculum, LearningSettings, Solved, write_card
from envtune_agents.weights.source import TUNED_MODEL

SUBJECT = "warmed-up"
_KEPT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def publish(out: Path, target: Path) -> None:
    """Writes the folders of the subject's kind to `target`."""
    settings = json.loads((out / "settings.json").read_text())
    runs = [Run(arm, seed) for arm in ARMS if arm in settings["arms"] for seed in range(settings["seeds"])]
    tensors = {
        name.removeprefix("adapter."): tensor
        for name, tensor in load_file(out / "state.safetensors").items()
        if name.startswith("adapter.")
    }
    if settings["model"] != TINY:
        warm_up = {name: tensor[0] for name, tensor in load_file(out / "subject" / "warmup.safetensors").items()}
        chosen = best_run(out, runs)
        at = runs.index(chosen)
        both = {name: _beside(warm_up[name], tensor[at], name) for name, tensor in tensors.items()}
        _write_adapter(target, both, settings["model"])
        _write_card(out, target, chosen, settings, both)
        print(f"published {chosen.name}")
        return
    (target / SUBJECT).mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        shutil.copyfile(out / "subject" / name, target / SUBJECT / name)
    for index, run in enumerate(runs):
        if run.seed == 0:
            _write_adapter(target / run.arm, {name: t[index] for name, t in tensors.items()}, f"../{SUBJECT}")


def best_run(out: Path, runs: list[Run]) -> Run:
    """The first seed of the arm that solved most of the held-out tasks without hints; of two, the earlier arm."""
    results: dict[str, Any] = json.loads((out / "final.json").read_text())["held_out/0"]
    arms = {run.arm: mean(results[other.name]["solved"] for other in runs if other.arm == run.arm) for run in runs}
    best = max(arms, key=lambda arm: arms[arm])
    return next(run for run in runs if run.arm == best)


def _write_card(out: Path, target: Path, run: Run, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The model card, with what the run and the warmed-up subject solved of the held-out tasks."""
    stages = stages_of(run.arm, settings["steps"], settings["prompts"], settings["samples"])
    state = out / "curriculum" / f"{run.name}.json"
    table, before = (json.loads((out / f"{name}.json").read_text())["held_out/0"] for name in ("final", "baseline"))
    write_card(
        target,
        settings["model"],
        _rank(tensors),
        Curriculum(stages, RULE, path=state if state.exists() else None),
        LearningSettings(learning_rate=settings["lr"], kl=KL_COEF, entropy=0.0, seed=run.seed),
        _by_category(before["each"], settings["test"]),
        _by_category(table[run.name]["each"], settings["test"]),
        [
            f"Before the stages, a warm-up of {settings['warmup_steps']} steps taught the form of a call, from scripts "
            "that leave out most preparing calls; the column *before* was measured after it. The adapter holds both. "
            f"The run ended with its budget of {settings['steps']} steps. What follows from it, with intervals and "
            "every setting: docs/ablation of envtune-agents."
        ],
        TUNED_MODEL,
    )


def _by_category(each: dict[str, list[float]], count: int) -> dict[str, Solved]:
    """Task id -> [solved, progress] as counts of each category."""
    solved: dict[str, list[bool]] = {}
    for task in test_sets(count)["held_out"]:
        solved.setdefault(task.category, []).append(bool(each[task.task_id][0]))
    return {category: Solved(sum(flags), len(flags)) for category, flags in solved.items()}


def _rank(tensors: dict[str, Tensor]) -> int:
    return next(tensor.shape[1] for key, tensor in tensors.items() if key.endswith(".a"))


def _beside(first: Tensor, second: Tensor, name: str) -> Tensor:
    """Two adapters as one: A [d_in, r] side by side, B [r, d_out] one below the other; their products add up."""
    return torch.cat((first.float(), second.float()), dim=1 if name.endswith(".a") else 0).bfloat16()


def _write_adapter(folder: Path, tensors: dict[str, Tensor], base: str) -> None:
    """A [d_in, r] and B [r, d_out] as peft keeps them: transposed, with alpha = 2 r (`Adapters.scale`)."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {}
    for key, tensor in tensors.items():
        path, kind = key.rsplit(".", 1)
        named[f"base_model.model.model.{path}.lora_{kind.upper()}.weight"] = tensor.T.contiguous()
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = _rank(tensors)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(LINEARS),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
