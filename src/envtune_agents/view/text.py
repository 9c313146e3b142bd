"""A run in a terminal: the table, then rollouts from beginning to end, the least solved first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from envtune_agents.errors import RecordError
from envtune_agents.export.where import parse_where
from envtune_agents.rollout import read_rollouts
from envtune_agents.summary import rollout_text, summary_table
from envtune_agents.types import Rollout

if TYPE_CHECKING:
    from rich.console import RenderableType


def run_text(run: str | Path, *, where: str | None = None, limit: int = 3) -> RenderableType:
    """The table of a run and its `limit` rollouts with the lowest reward, each with the reason for its score.

    `where` is a filter (`export.parse_where`). The file is read as a stream. Raises `RecordError` when nothing is there
    to show.
    """
    from rich.console import Group
    from rich.text import Text

    keeps = parse_where(where) if where else None
    worst: list[tuple[float, int, Rollout]] = []
    number = count()

    def chosen() -> Iterator[Rollout]:
        for rollout in read_rollouts(run):
            if keeps is None or keeps(rollout):
                reward = -1.0 if rollout.reward is None else rollout.reward
                heapq.heappush(worst, (-reward, -next(number), rollout))
                if len(worst) > limit:
                    heapq.heappop(worst)
                yield rollout

    table = summary_table(chosen())
    if not next(number):
        raise RecordError(f"Nothing to show in {run}: no rollout is there or passes the filter.")
    shown = [rollout_text(rollout) for _, _, rollout in sorted(worst, key=lambda entry: (-entry[0], -entry[1]))]
    return Group(table, *(part for text in shown for part in (Text(), text)))
