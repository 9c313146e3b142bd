"""Episodes -> the numbers that are logged and compared."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from worker import Played

from envtune_agents.curriculum import Stage


def worth(stage: Stage, item: Played) -> float:
    """The reward of an episode in a stage."""
    mix = stage.reward
    return mix.format * item.format + mix.progress * (item.progress or 0.0) + mix.solved * item.solved


def summary(items: Sequence[Played]) -> dict[str, Any]:
    """Means over episodes; failures and malformed are shares of the calls, uptake of the hints."""
    calls = sum(item.calls for item in items)
    hints = sum(item.hints for item in items)
    return {
        "episodes": len(items),
        "solved": mean(item.solved for item in items),
        "progress": mean(item.progress or 0.0 for item in items),
        "format": mean(item.format for item in items),
        "errors": sum(item.error is not None for item in items),
        "cut": sum(item.stop not in ("done",) for item in items),
        "calls": calls / len(items),
        "failures": sum(item.failures for item in items) / max(calls, 1),
        "malformed": sum(item.malformed for item in items) / max(calls, 1),
        "hints": hints / len(items),
        "hint_tokens": sum(item.hint_tokens for item in items) / len(items),
        "uptake": sum(item.fixed for item in items) / hints if hints else None,
        "tokens": mean(sum(sum(row[2]) for row in item.rows) for item in items),
        "length": mean(max((len(row[0]) + len(row[1]) for row in item.rows), default=0) for item in items),
        "branches": mean(len(item.rows) for item in items),
    }


def solved_by_category(items: Sequence[Played]) -> dict[str, float]:
    """Share solved of each category."""
    return {name: mean(i.solved for i in items if i.category == name) for name in sorted({i.category for i in items})}


def result_of(items: Sequence[Played]) -> dict[str, Any]:
    """Everything of one run on one set of tasks; `each` is task id to [solved, progress], for the intervals."""
    each = {item.task_id: [float(item.solved), round(item.progress or 0.0, 4)] for item in items}
    return {**summary(items), "categories": solved_by_category(items), "each": each}
