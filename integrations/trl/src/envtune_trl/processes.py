"""The processes of one run: which of them writes, and what all of them must know.

`accelerate launch` and `torchrun` start the same command once for each GPU. Every process then holds the whole model
and plays its part of each step; TRL averages their gradients. Numbers go in and come out, never rollouts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

from envtune_agents.errors import CurriculumError

T = TypeVar("T")
PATIENCE = timedelta(hours=6)
"""How long a process waits for the slowest one; a launcher ends them all when one of them dies."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of its run; alone by default."""

    rank: int = 0
    """0-based."""
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of what all of them do together."""
        return list(items[self.rank :: self.count])

    def from_all(self, value: T) -> list[T]:
        """The value of each process, in the order of their ranks; all of them must ask."""
        if self.count == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Goes on when every process is here."""
        self.from_all(None)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process does what stands inside before the others do, who find what it left."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


ALONE = Processes()


def joined_processes() -> Processes:
    """The processes that a launcher started, connected with each other; alone without a launcher.

    Raises `CurriculumError` when they are on several machines, or when the launcher would split the model.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    _check_launcher(count)
    import torch

    accelerate: Any = import_module("accelerate")  # has no types
    state = accelerate.PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes)


def speaks() -> bool:
    """Whether this process is the one whose output is read."""
    return os.environ.get("RANK", "0") == "0"


def _check_launcher(count: int) -> None:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if here != count:
        raise CurriculumError(
            f"The launcher started {count} processes, {here} of them on this machine. This trainer works on one "
            "machine; for several, use --engine verl."
        )
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            raise CurriculumError(
                f"The launcher was told to split the model with {name}; episodes are decoded by the trained model "
                "itself, so each process must hold all of it. Launch without it (torchrun --no-python "
                "--nproc_per_node 2 envtune train …), take a LoRA rank and precision 4bit to save memory, or use "
                "--engine verl."
            )
