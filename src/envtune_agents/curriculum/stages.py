"""A stage of training as a value, and the paper's four."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from envtune_agents.errors import CurriculumError
from envtune_agents.hints import HintDial
from envtune_agents.progress import FORMAT_REWARD, PROGRESS_REWARD, RewardMix
from envtune_agents.types import Task


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage trains on, how much help it gives, and what it rewards.

    Stage("kitchen", reward=RewardMix(progress=1.0), hint_level=2, categories=("baking",))
    """

    name: str
    """Unique in a curriculum; every rollout of the stage carries it, and a folder of the run has it."""
    reward: RewardMix = PROGRESS_REWARD
    hint_level: int = 0
    """Level of the dial, 0 to 3. At 0 the environment is the standard one, byte for byte; above it is augmented."""
    categories: tuple[str, ...] | None = None
    """Categories of tasks to train on; None means all."""
    share: float = 1.0
    """Part of those tasks that is used, in (0, 1]."""
    prompts: int = 32
    """Tasks in one training step."""
    samples: int = 16
    """Rollouts of each task: the size of a group."""
    max_prompt_tokens: int = 8_192
    """Longest first prompt; longer tasks are left out and counted."""
    max_response_tokens: int = 24_576
    """Most tokens that follow the first prompt, those of tools and users included."""
    epochs: int = 20
    """Most passes over the stage's tasks."""
    max_steps: int | None = None
    """Budget of training steps for this stage; None leaves it to the rule."""

    def __post_init__(self) -> None:
        if not self.name:
            raise CurriculumError("A stage needs a name.")
        if self.name.startswith(".") or {"/", "\\"} & {*self.name}:
            raise CurriculumError(f"The name of stage {self.name!r} becomes a folder: no '/', no '\\', no leading dot.")
        HintDial(self.hint_level)
        if not 0 < self.share <= 1:
            raise CurriculumError(f"Stage {self.name!r}: share lies in (0, 1], got {self.share!r}.")
        for field in ("prompts", "max_prompt_tokens", "max_response_tokens", "epochs"):
            if getattr(self, field) < 1:
                raise CurriculumError(f"Stage {self.name!r}: {field} is at least 1, got {getattr(self, field)!r}.")
        if self.max_steps is not None and self.max_steps < 1:
            raise CurriculumError(f"Stage {self.name!r}: max_steps is at least 1 or absent, got {self.max_steps!r}.")
        if self.samples < 2:
            raise CurriculumError(f"Stage {self.name!r}: a group holds at least 2 samples, got {self.samples!r}.")

    @property
    def augmented(self) -> bool:
        """True when failed calls are answered with hints."""
        return self.hint_level > 0

    def tasks(self, tasks: Sequence[Task], *, seed: int = 0) -> list[Task]:
        """The tasks this stage trains on: its categories, and of those its share, drawn from `seed`.

        Raises `CurriculumError` when none is left.
        """
        chosen = [task for task in tasks if self.categories is None or task.category in self.categories]
        if not chosen:
            found = sorted({task.category for task in tasks})
            raise CurriculumError(
                f"Stage {self.name!r} trains on {', '.join(self.categories or ('all categories',))}, and none of the "
                f"{len(tasks)} tasks is of that kind (found: {', '.join(found) or 'no tasks'}). Change its categories."
            )
        if self.share < 1:
            wanted = max(1, round(self.share * len(chosen)))
            kept = set(Random(f"{self.name}/{seed}").sample(range(len(chosen)), k=wanted))
            chosen = [task for index, task in enumerate(chosen) if index in kept]
        return chosen


FOUR_STAGES: tuple[Stage, ...] = (
    Stage("1_syntax", FORMAT_REWARD, hint_level=0, share=0.25, prompts=16, max_response_tokens=10_000),
    Stage(
        "2_basic",
        PROGRESS_REWARD,
        hint_level=3,
        categories=("base", "multi_turn_base"),
        max_response_tokens=10_000,
    ),
    Stage("3_complex", PROGRESS_REWARD, hint_level=3),
    Stage("4_alignment", PROGRESS_REWARD, hint_level=0),
)
"""The paper's curriculum (section 3.2 and its training settings): syntax, basic skill, complex scenarios, alignment."""


def checked_stages(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages as a tuple; raises `CurriculumError` when there is none or a name is used twice."""
    found = tuple(stages)
    names = [stage.name for stage in found]
    if not found:
        raise CurriculumError("A curriculum needs at least one stage.")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise CurriculumError(f"Every stage needs a name of its own; used twice: {', '.join(doubled)}.")
    return found
