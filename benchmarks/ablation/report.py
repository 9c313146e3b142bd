"""Results -> tables with intervals, learning curves and plots. Needs matplotlib for the plots only."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

TITLES = {
    "four": "(a) four stages",
    "no_hints": "(b) without hints",
    "binary": "(c) binary reward",
    "single": "(d) single stage",
    "sft": "(e) SFT on scripts",
}
SETS = {
    "held_out/0": "held-out tasks",
    "renamed/0": "renamed tools",
    "stock/0": "other domain",
    "held_out/3": "held-out, with hints",
}
RESAMPLES = 2000


def write_report(out: Path, target: Path) -> None:
    """Writes `results.json`, `results.md` and the plots of one experiment to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    settings = json.loads((out / "settings.json").read_text())
    name = Path(settings["model"]).stem
    metrics, evaluations = _lines(out / "metrics.jsonl"), _lines(out / "evaluations.jsonl")
    final = json.loads((out / "final.json").read_text()) if (out / "final.json").exists() else {}
    baseline = json.loads((out / "baseline.json").read_text()) if (out / "baseline.json").exists() else {}
    table = {key: _cells(final.get(key, {}), baseline.get(key)) for key in SETS if key in final}
    pairs = {key: _against_first(final[key]) for key in SETS if key in final}
    summary = {
        "settings": settings,
        "table": table,
        "four_stages_minus": pairs,
        "dependence": _dependence(final),
        "curves": _curves(
            metrics, ("progress", "solved", "grad_norm", "kl", "hints", "hint_tokens", "malformed", "mixed")
        ),
        "validation": _curves(evaluations, ("solved", "progress", "malformed", "tokens")),
        "stages": _stages(metrics),
        "costs": _costs(metrics),
    }
    (target / f"{name}.json").write_text(json.dumps(_rounded(summary), indent=1) + "\n")
    (target / f"{name}.md").write_text(_markdown(summary))
    _plots(target, name, summary)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _arm(run: str) -> str:
    return run.rsplit("-", 1)[0]


def _by_arm(runs: dict[str, Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for run, result in sorted(runs.items()):
        found[_arm(run)].append(result)
    return {arm: found[arm] for arm in TITLES if arm in found}


def _cells(runs: dict[str, Any], baseline: dict[str, Any] | None) -> dict[str, Any]:
    cells = {}
    if baseline:
        cells["before"] = _cell([baseline])
    return cells | {arm: _cell(results) for arm, results in _by_arm(runs).items()}


def _cell(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean success over seeds with a 95% interval: seeds and tasks are both drawn again."""
    solved = [{task: values[0] for task, values in result["each"].items()} for result in results]
    low, high = _interval(solved, None)
    return {
        "solved": mean(mean(values.values()) for values in solved),
        "low": low,
        "high": high,
        "seeds": [round(mean(values.values()), 4) for values in solved],
        "progress": mean(result["progress"] for result in results),
        "categories": {
            name: mean(result["categories"][name] for result in results) for name in results[0]["categories"]
        },
        "malformed": mean(result["malformed"] for result in results),
        "failures": mean(result["failures"] for result in results),
        "tokens": mean(result["tokens"] for result in results),
    }


def _interval(left: Sequence[dict[str, float]], right: Sequence[dict[str, float]] | None) -> tuple[float, float]:
    random, tasks = Random(0), sorted(left[0])
    draws = []
    for _ in range(RESAMPLES):
        chosen = random.choices(tasks, k=len(tasks))
        value = _drawn(random, left, chosen) - (_drawn(random, right, chosen) if right else 0.0)
        draws.append(value)
    draws.sort()
    return draws[int(0.025 * RESAMPLES)], draws[int(0.975 * RESAMPLES)]


def _drawn(random: Random, runs: Sequence[dict[str, float]], tasks: Sequence[str]) -> float:
    return mean(mean(run[task] for task in tasks) for run in random.choices(runs, k=len(runs)))


def _against_first(runs: dict[str, Any]) -> dict[str, Any]:
    """Arm (a) minus each other arm: mean difference in success and its 95% interval, paired by task."""
    arms = {
        arm: [{task: values[0] for task, values in result["each"].items()} for result in results]
        for arm, results in _by_arm(runs).items()
    }
    if "four" not in arms:
        return {}
    found = {}
    for arm, results in arms.items():
        if arm != "four":
            low, high = _interval(arms["four"], results)
            gap = mean(mean(r.values()) for r in arms["four"]) - mean(mean(r.values()) for r in results)
            found[arm] = {"gap": gap, "low": low, "high": high}
    return found


def _dependence(final: dict[str, Any]) -> dict[str, Any]:
    """For each arm: success on the held-out tasks with hints minus without, with its 95% interval, paired by task and
    run."""
    if not {"held_out/0", "held_out/3"} <= final.keys():
        return {}
    found = {}
    helped = _by_arm(final["held_out/3"])
    for arm, alone in _by_arm(final["held_out/0"]).items():
        gaps = [
            {task: values[0] - without["each"][task][0] for task, values in with_hints["each"].items()}
            for with_hints, without in zip(helped[arm], alone, strict=True)
        ]
        low, high = _interval(gaps, None)
        found[arm] = {"gap": mean(mean(gap.values()) for gap in gaps), "low": low, "high": high}
    return found


def _curves(records: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """For each measure and arm: steps, mean over seeds, smallest and largest."""
    found: dict[str, Any] = {}
    for name in names:
        values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for record in records:
            if record.get(name) is not None and math.isfinite(record[name]):
                values[_arm(record["run"])][record["step"]].append(record[name])
        found[name] = {
            arm: {
                "steps": sorted(points),
                "mean": [mean(points[step]) for step in sorted(points)],
                "low": [min(points[step]) for step in sorted(points)],
                "high": [max(points[step]) for step in sorted(points)],
            }
            for arm, points in values.items()
        }
    return found


def _stages(metrics: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """For each run: how many steps each stage took."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in metrics:
        found[record["run"]][record["stage"]] += 1
    return {run: dict(stages) for run, stages in sorted(found.items())}


def _costs(metrics: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each arm: what an episode cost in training."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in metrics:
        for name in ("hints", "hint_tokens", "calls", "tokens", "length", "uptake", "grad_norm"):
            if record.get(name) is not None and math.isfinite(record[name]):
                found[_arm(record["run"])][name].append(record[name])
    return {arm: {name: mean(values) for name, values in notes.items()} for arm, notes in found.items()}


def _markdown(summary: dict[str, Any]) -> str:
    lines = []
    for key, cells in summary["table"].items():
        lines += [
            f"**{SETS[key]}**",
            "",
            "| arm | solved | 95% | seeds | progress | failed calls |",
            "|---|---|---|---|---|---|",
        ]
        for arm, cell in cells.items():
            title = TITLES.get(arm, "before training")
            seeds = ", ".join(f"{100 * value:.0f}" for value in cell["seeds"])
            lines.append(
                f"| {title} | {100 * cell['solved']:.1f}% | {100 * cell['low']:.1f} to {100 * cell['high']:.1f} "
                f"| {seeds} | {cell['progress']:.3f} | {100 * cell['failures']:.0f}% |"
            )
        lines.append("")
        for arm, gap in summary["four_stages_minus"].get(key, {}).items():
            lines.append(
                f"- four stages minus {TITLES[arm]}: {100 * gap['gap']:+.1f} points "
                f"({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"
            )
        lines.append("")
    if summary["dependence"]:
        lines += ["**dependence gap** (held-out tasks, solved with hints minus without)", ""]
        for arm, gap in summary["dependence"].items():
            lines.append(
                f"- {TITLES[arm]}: {100 * gap['gap']:+.1f} points ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"
            )
        lines.append("")
    lines += [
        "**training**",
        "",
        "| arm | hints an episode | hint tokens | next call fixed | tokens sampled | gradient norm |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for arm, cost in summary["costs"].items():
        uptake = f"{100 * cost['uptake']:.0f}%" if "uptake" in cost else "–"
        lines.append(
            f"| {TITLES[arm]} | {cost.get('hints', 0):.2f} | {cost.get('hint_tokens', 0):.0f} | {uptake} "
            f"| {cost.get('tokens', 0):.0f} | {cost.get('grad_norm', 0):.3f} |"
        )
    return "\n".join(lines) + "\n"


def _plots(target: Path, name: str, summary: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = name
    from matplotlib import pyplot

    panels = [
        ("validation", "solved", "validation success (no hints)"),
        ("curves", "progress", "training progress reward"),
        ("curves", "grad_norm", "gradient norm"),
        ("curves", "hints", "hints an episode"),
    ]
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    for axis, (group, measure, title) in zip(axes.flat, panels, strict=True):
        for arm, curve in summary[group][measure].items():
            axis.plot(curve["steps"], curve["mean"], label=TITLES[arm])
            axis.fill_between(curve["steps"], curve["low"], curve["high"], alpha=0.15)
        axis.set_title(title)
        axis.set_xlabel("training step")
    axes.flat[0].legend(fontsize=8)
    figure.suptitle(f"{name}: mean over seeds, band from smallest to largest")
    figure.savefig(target / f"{name}-curves.svg", metadata={"Date": None})
    pyplot.close(figure)
    if summary["table"]:
        _bars(pyplot, target / f"{name}-results.svg", name, summary["table"])


def _bars(pyplot: Any, path: Path, name: str, table: dict[str, Any]) -> None:
    figure, axes = pyplot.subplots(1, len(table), figsize=(3.2 * len(table), 4), sharey=True, constrained_layout=True)
    for axis, (key, cells) in zip(list(axes.flat) if len(table) > 1 else [axes], table.items(), strict=True):
        for index, (arm, cell) in enumerate(cells.items()):
            around = [[cell["solved"] - cell["low"]], [cell["high"] - cell["solved"]]]
            axis.bar(
                index, cell["solved"], yerr=around, capsize=3, color="lightgray" if arm == "before" else f"C{index}"
            )
        axis.set_xticks(range(len(cells)), [TITLES.get(arm, "before") for arm in cells], rotation=60, ha="right")
        axis.set_title(SETS[key])
    figure.suptitle(f"{name}: success with 95% intervals")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
