"""A stage of training as a value, the paper's four, and your own from a YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

from envtune_agents.errors import CurriculumError, EnvTuneError, unknown
from envtune_agents.hints import HintDial
from envtune_agents.progress import FORMAT_REWARD, PROGRESS_REWARD, RewardMix
from envtune_agents.types import Task


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage trains on, how much help it gives, and what it rewards.

    Stage("kitchen", reward=RewardMix(progress=1.0), hint_level=2, categories=("baking",))
    """

    name: str
    """Unique in a curriculum; every rollout of the stage carries it."""
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

_LISTS = ("categories",)


def load_stages(source: str | Path) -> tuple[Stage, ...]:
    """Stages from a YAML file, or the built-in ones for "four".

    stages:
      - {name: warm, reward: {format: 1}, share: 0.25}
      - {name: help, hint_level: 3, categories: [baking]}
      - {name: real}

    Raises `CurriculumError` with the stage and key that is wrong.
    """
    if str(source) == "four":
        return FOUR_STAGES
    import yaml

    path = Path(source)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CurriculumError(
            f"Cannot read the stages in '{path}': {error}. Expected 'four' or a YAML file."
        ) from error
    listed = document.get("stages") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not listed:
        raise CurriculumError(f"'{path}' needs a key 'stages' with a list of at least one stage.")
    return checked_stages(_stage(path, index, plain) for index, plain in enumerate(listed))


def checked_stages(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages as a tuple; raises `CurriculumError` when there is none or a name is used twice."""
    found = tuple(stages)
    names = [stage.name for stage in found]
    if not found:
        raise CurriculumError("A curriculum needs at least one stage.")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise CurriculumError(f"Every stage needs a name of its own; used twice: {', '.join(doubled)}.")
    return found


def _stage(path: Path, index: int, plain: Any) -> Stage:
    place = f"'{path}', stage {index + 1}"
    if not isinstance(plain, Mapping):
        raise CurriculumError(f"{place}: expected keys and values, got {type(plain).__name__}.")
    known = [field.name for field in fields(Stage)]
    for key in plain:
        if key not in known:
            raise CurriculumError(f"{place}: {unknown('key', key, known)}")
    values: dict[str, Any] = {key: tuple(v) if key in _LISTS and v else v for key, v in plain.items()}
    try:
        if "reward" in values:
            values["reward"] = RewardMix(**values["reward"])
        return Stage(**values)
    except (EnvTuneError, TypeError, ValueError) as error:
        raise CurriculumError(f"{place}: {error}") from error
