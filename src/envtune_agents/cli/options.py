"""Options that several commands share, and how they find and choose tasks."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from envtune_agents.errors import TaskError

if TYPE_CHECKING:
    from envtune_agents.task_source import TaskSource
    from envtune_agents.types import Task


class Precision(StrEnum):
    """How the weights are held in memory."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    w16a32 = "w16a32"
    eight_bit = "8bit"
    four_bit = "4bit"


TasksOption = Annotated[
    str, typer.Option(help="Where tasks come from: playground, bfcl, or module:factory of your own.")
]
HintsOption = Annotated[
    int, typer.Option(min=0, max=3, help="0 none, 1 what went wrong, 2 + the constraint, 3 + where to look.")
]
SplitOption = Annotated[str, typer.Option(help="train, validation, test or all.")]
CategoriesOption = Annotated[str | None, typer.Option(help="Comma-separated categories; all by default.")]
TaskIdsOption = Annotated[str | None, typer.Option(help="Comma-separated task ids of the split; all by default.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most this many tasks.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Weights in memory.")]
TemperatureOption = Annotated[float, typer.Option(min=0, help="0 is greedy.")]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="Tokens of one reply.")]
MaxStepsOption = Annotated[int, typer.Option(min=1, help="Model calls in one turn; one more ends the episode.")]
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="Episodes at the same time.")]
RetryErrorsOption = Annotated[
    bool, typer.Option("--retry-errors", help="Play the episodes again that ended with an error.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for scripts.")]


def task_source(name: str) -> TaskSource:
    """The source called `name`; a module of yours is also found in the current folder, as by `python -m`."""
    from envtune_agents.task_source import find_task_source

    if ":" in name:
        look_here()
    return find_task_source(name)


def source_of(task_id: str) -> str:
    """The name of the source that a task id points to."""
    for prefix, source in (("playground_", "playground"), ("multi_turn_", "bfcl")):
        if task_id.startswith(prefix):
            return source
    raise TaskError(f"Which source has the task {task_id!r}? Name it: --tasks playground, bfcl or module:factory.")


def look_here() -> None:
    """Let modules of the current folder be imported; only commands that were given the name of one ask for it."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def choose_tasks(tasks: list[Task], ids: list[str] | None, limit: int | None) -> list[Task]:
    """The tasks with these ids, in this order; all of them without ids; at most `limit`."""
    if ids:
        by_id = {task.task_id: task for task in tasks}
        for wanted in ids:
            if wanted not in by_id:
                near = ", ".join(get_close_matches(wanted, by_id, n=3)) or ", ".join(list(by_id)[:3])
                raise TaskError(f"Unknown task id {wanted!r} in this split ({len(by_id)} tasks). Near: {near}.")
        tasks = [by_id[wanted] for wanted in ids]
    return tasks[:limit]


def split_names(text: str | None) -> list[str] | None:
    """The names of a comma-separated option."""
    return [name.strip() for name in text.split(",") if name.strip()] if text else None
