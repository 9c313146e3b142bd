"""What a person sees while a stage trains."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from envtune_trl import Table
from envtune_trl.table import COLUMNS, cells_of

RECORD = {
    "stage": "help",
    "step": 3,
    "reward": 0.3,
    "reward_format": 0.1,
    "reward_progress": 0.2,
    "hint_uptake": 0.5,
    "validation": 0.25,
    "hint_gap": 0.125,
}


def test_a_step_is_a_row_with_the_parts_of_the_reward_and_what_hints_are_worth() -> None:
    row = dict(zip(COLUMNS, cells_of(RECORD), strict=True))
    assert row["parts"] == "0.1 format + 0.2 progress"
    assert (row["uptake"], row["gap"], row["validation"], row["kl"]) == ("0.5", "0.125", "0.25", "–")


def test_a_terminal_shows_table_and_bars_and_a_pipe_plain_lines() -> None:
    for terminal in (True, False):
        shown = StringIO()
        table = Table(Console(file=shown, force_terminal=terminal, width=200))
        table.start()
        table.add(cells_of(RECORD))
        for done in (0, 2, 0, 1):
            table.bar("training, episodes", done, 8)
        table.note("help, step 3: stay. [Only] 1 of 6.")
        table.stop()
        text = shown.getvalue()
        assert "[Only] 1 of 6." in text
        assert ("training, episodes" in text and "1/8" in text) == terminal
        assert ("stage help step 3 reward 0.3" in text) != terminal
