"""The progress bar of a collection: how many are done, solved and failed, how fast, what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def collection_bar(total: int, finished: int) -> Progress:
    """A bar over `total` rollouts, of which `finished` were there already."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("rollouts"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[solved]} solved ({task.fields[share]}), {task.fields[errors]} errors"),
        TextColumn("{task.fields[rate]}", style="cyan"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[slow]}", style="yellow"),
        speed_estimate_period=600,
        console=Console(stderr=True),
    )
    bar.add_task("rollouts", total=total, completed=finished, solved=0, share="-", errors=0, rate="", slow="")
    return bar


def show(bar: Progress, *, played: int, solved: int, errors: int, slow: int, advance: int = 1) -> None:
    """Brings the bar up to date; `slow` is the number of episodes under way that take much longer than the rest."""
    task = bar.tasks[0]
    bar.update(
        task.id,
        advance=advance,
        solved=solved,
        share=f"{solved / played:.1%}" if played else "-",
        errors=errors,
        rate=f"{60 * task.speed:.1f}/min" if task.speed else "",
        slow=f"{slow} stragglers" if slow else "",
    )
