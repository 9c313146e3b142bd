"""What a person sees of a run: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    "stage",
    "step",
    "reward",
    "parts",
    "progress",
    "solved",
    "hints",
    "uptake",
    "gap",
    "format errors",
    "mixed",
    "grad norm",
    "kl",
    "validation",
)
"""`parts` are those of the reward, weighted. `mixed` is the share of groups whose rewards differ. `gap` and
`validation` are of the last validation: the progress with hints minus that without, and the success without."""
_FIELDS = {
    "uptake": "hint_uptake",
    "gap": "hint_gap",
    "format errors": "format_errors",
    "mixed": "mixed_groups",
    "grad norm": "grad_norm",
}
_PART = "reward_"
_SHOWN_ROWS = 20


def cells_of(record: Mapping[str, Any]) -> list[str]:
    """One training step as a row of the table."""
    parts = {name.removeprefix(_PART): value for name, value in record.items() if name.startswith(_PART)}
    shown = {**record, "parts": " + ".join(f"{_cell(value)} {name}" for name, value in parts.items()) or None}
    return [_cell(shown.get(_FIELDS.get(column, column))) for column in COLUMNS]


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


class Table:
    """Prints one line for each training step and each decision; a terminal gets a live table and bars instead."""

    def __init__(self, console: Any = None) -> None:
        self._console = console
        self._live: Any = None
        self._bars: Any = None
        self._rows: list[list[str]] = []
        self._note = ""

    def start(self) -> None:
        """Shows the table from now on."""
        if self._console is not None and self._console.is_terminal:
            from rich.live import Live
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=self._console)
            self._live = Live(self._drawn(), console=self._console, refresh_per_second=2)
            self._live.start()

    def stop(self) -> None:
        """Leaves the table as it stands."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def bar(self, name: str, done: int, total: int) -> None:
        """How far something is: steps of a stage, episodes of a step. Only a terminal shows it."""
        if self._live is None:
            return
        known = {task.description: task.id for task in self._bars.tasks}
        if name not in known:
            known[name] = self._bars.add_task(name)
        elif done == 0:
            self._bars.reset(known[name])
        self._bars.update(known[name], completed=done, total=total)

    def add(self, cells: Sequence[str]) -> None:
        """One training step."""
        self._rows.append(list(cells))
        self._show(" ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells, strict=True)))

    def note(self, text: str) -> None:
        """A decision or an event, in words."""
        self._note = text
        self._show(text)

    def _show(self, line: str) -> None:
        if self._live is not None:
            self._live.update(self._drawn())
        elif self._console is not None:
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.table import Table as RichTable

        table = RichTable(*COLUMNS, box=None, caption=self._note, caption_justify="left")
        for row in self._rows[-_SHOWN_ROWS:]:
            table.add_row(*row)
        return Group(table, self._bars)
