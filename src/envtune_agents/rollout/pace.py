"""How long episodes take, and which of them take much longer than the rest."""

from __future__ import annotations

import time
from bisect import insort
from dataclasses import dataclass

STRAGGLER_FACTOR = 4.0
"""An episode that takes this many times the median is a straggler."""
_ENOUGH = 8
"""Finished episodes before a median means anything."""
_LEAST_S = 1.0


@dataclass(frozen=True, slots=True)
class Straggler:
    """An episode that took much longer than the rest."""

    rollout_id: str
    seconds: float
    median_s: float
    """Of the episodes that had finished by then."""


class Pace:
    """The wall seconds of the episodes of one run, finished and under way."""

    def __init__(self) -> None:
        self._open: dict[str, float] = {}
        self._took: list[float] = []
        self.stragglers: list[Straggler] = []
        """Finished ones, in the order in which they ended."""

    def start(self, rollout_id: str) -> None:
        self._open[rollout_id] = time.monotonic()

    def end(self, rollout_id: str) -> None:
        took, median = time.monotonic() - self._open.pop(rollout_id), self.median_s
        if median is not None and took > max(_LEAST_S, STRAGGLER_FACTOR * median):
            self.stragglers.append(Straggler(rollout_id, took, median))
        insort(self._took, took)

    @property
    def median_s(self) -> float | None:
        """Of the finished episodes; None before there are enough of them."""
        return self._took[len(self._took) // 2] if len(self._took) >= _ENOUGH else None

    def slow(self) -> list[Straggler]:
        """Episodes under way that have already taken much longer than the rest, the slowest first."""
        median, now = self.median_s, time.monotonic()
        if median is None:
            return []
        limit = max(_LEAST_S, STRAGGLER_FACTOR * median)
        found = [Straggler(name, now - at, median) for name, at in self._open.items() if now - at > limit]
        return sorted(found, key=lambda straggler: -straggler.seconds)
