"""What a person sees while a stage trains: one line for each step, and each decision in words."""

from __future__ import annotations

from typing import Any

from envtune_verl.log import LoggedStep

COLUMNS = {
    "reward": "critic/score/mean",
    "grad norm": "actor/grad_norm",
    "kl": "actor/kl_loss",
    "entropy": "actor/entropy",
    "response tokens": "response_length/mean",
    "messages": "num_turns/mean",
    "seconds": "timing_s/step",
}
"""Heading -> verl's name of the metric."""


class Table:
    """Prints to a rich console; without one it says nothing."""

    def __init__(self, console: Any = None) -> None:
        self._console = console

    def add(self, stage: str, line: LoggedStep) -> None:
        """One training step."""
        cells = [f"{name} {line.metrics[key]:.3g}" for name, key in COLUMNS.items() if key in line.metrics]
        self._print(" · ".join([f"{stage} step {line.step}", *cells]))

    def note(self, text: str) -> None:
        """A decision or an event."""
        self._print(text)

    def _print(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
