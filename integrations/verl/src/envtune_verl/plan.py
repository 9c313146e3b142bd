"""What a run consists of: its model, its tasks, its stages with budgets; and what must not change between two calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from envtune_agents.chat_model.prefixes import prefix_preserving
from envtune_agents.curriculum import Stage, run_identity, split_tasks, with_budget
from envtune_agents.errors import CurriculumError, WeightsError
from envtune_agents.task_source import find_task_source
from envtune_agents.types import Task
from envtune_agents.weights import checkpoint_files, tokenizer_only
from envtune_verl.policy import first_prompt_tokens
from envtune_verl.settings import VerlSettings
from envtune_verl.table import Table


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run, before anything of it is written."""

    model: Path | str
    """The weights that the first stage begins with: a folder, or a hub id."""
    source: str
    """The task source by name, for every worker loads it."""
    tasks: tuple[Task, ...]
    """Of the source's split "train"."""
    validation: tuple[Task, ...]
    validation_split: str
    stages: tuple[Stage, ...]
    """With this run's batch sizes and budgets."""
    settings: VerlSettings

    @classmethod
    def made(
        cls,
        model: str | Path,
        source: str,
        stages: Sequence[Stage],
        settings: VerlSettings,
        tasks: Sequence[Task] | None,
        validation: Sequence[Task] | None,
    ) -> Self:
        """The plan; `tasks` and `validation` replace all of their splits. Raises what is wrong with any of it."""
        training, held_out, split = split_tasks(
            find_task_source(source), settings.validation_tasks, tasks=tasks, validation=validation
        )
        budgeted = tuple(with_budget(settings.stage(stage), training) for stage in stages)
        for stage in budgeted:
            _check_divisible(stage, settings)
        return cls(_trainable(model), source, tuple(training), tuple(held_out), split, budgeted, settings)

    def identity(self) -> dict[str, Any]:
        """What the run depends on."""
        found = run_identity(self.model, self.tasks, self.validation, self.stages, self.settings)
        return {"engine": "verl", "source": self.source, **found}

    def prompt_tokens(self, table: Table) -> Callable[[Task], int]:
        """The length of a task's first prompt; tells the table when the chat template costs training rows."""
        weights = tokenizer_only(self.model)
        if not prefix_preserving(weights):
            table.note(
                f"The chat template of '{weights.name}' writes earlier replies anew when the conversation goes on, so "
                "each reply becomes a training row of its own: right, but slow. An Instruct checkpoint without hidden "
                "thoughts, such as Qwen3-4B-Instruct-2507, gives one row for a conversation."
            )
        return first_prompt_tokens(weights, find_task_source(self.source).environment)


def _trainable(model: str | Path) -> str | Path:
    """The checkpoint as verl's workers find it; `WeightsError` for what verl cannot train."""
    path = Path(model).expanduser()
    if any(file.suffix == ".gguf" for file in (path, *checkpoint_files(str(model)))):
        raise WeightsError(
            f"verl trains safetensors, and '{model}' is a GGUF file. Name a folder or a hub id, such as "
            "Qwen/Qwen3-4B-Instruct-2507."
        )
    return path.resolve() if path.exists() else model


def _check_divisible(stage: Stage, settings: VerlSettings) -> None:
    """Raises `CurriculumError` where verl would stop at its first update, after a whole step of rollouts."""
    rollouts, shares = stage.prompts * stage.samples, settings.gpus * settings.nodes
    own = any("sequence_parallel" in override for override in settings.overrides)  # then fewer shares: verl checks it
    if rollouts % shares and not own:
        raise CurriculumError(
            f"Stage {stage.name!r} has {stage.prompts} x {stage.samples} = {rollouts} rollouts in one step, which "
            f"{shares} GPUs cannot share evenly. Make prompts x samples a multiple of {shares}."
        )
