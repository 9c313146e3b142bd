"""What every trainer is told of learning, whichever computes the updates; the defaults are the paper's."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from envtune_agents.curriculum.stages import Stage
from envtune_agents.errors import CurriculumError


@dataclass(frozen=True, slots=True)
class LearningSettings:
    """The settings that trainers share; each adds those of its own (section 4.1 of the paper and its scripts).

    Those named in `FREE` say where and how a run computes, not what it learns, so they may change when it goes on.
    """

    FREE: ClassVar[frozenset[str]] = frozenset({"save_every"})

    learning_rate: float = 1e-6
    """The paper's, for training all weights. LoRA usually wants 10 to 100 times as much."""
    kl: float = 0.1
    """Weight of the KL to the weights that the stage began with."""
    clip_low: float = 0.2
    """The probability ratio is clipped at 1 minus this."""
    clip_high: float = 0.28
    """The probability ratio is clipped at 1 plus this."""
    dual_clip: float = 10.0
    """Cap of the probability ratio where the advantage is negative (verl's `clip_ratio_c`)."""
    entropy: float = 0.001
    """Weight of the entropy bonus."""
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    """Of training rollouts; validation is greedy."""
    max_tokens: int = 1024
    """Most tokens of one reply."""
    max_steps_per_turn: int = 20
    """Model calls in one turn; one more ends the episode."""
    prompts: int | None = None
    """Tasks in one training step, for all stages; None leaves it to each stage."""
    samples: int | None = None
    """Rollouts of each task, for all stages; None leaves it to each stage."""
    evaluate_every: int = 10
    """Training steps between two validations."""
    validation_tasks: int = 100
    """Tasks of one validation."""
    save_every: int = 10
    """Training steps between two checkpoints."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "temperature", "max_grad_norm", "dual_clip"):
            if not math.isfinite(value := getattr(self, name)) or value <= 0:
                raise CurriculumError(f"{name} is a positive number, got {value}.")
        for name in ("kl", "entropy", "clip_low", "clip_high"):
            if not math.isfinite(value := getattr(self, name)) or value < 0:
                raise CurriculumError(f"{name} is a number of at least 0, got {value}.")
        self._at_least_one("max_tokens", "max_steps_per_turn", "evaluate_every", "validation_tasks", "save_every")

    def _at_least_one(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise CurriculumError(f"{name} is at least 1, got {getattr(self, name)}.")

    def stage(self, stage: Stage) -> Stage:
        """The stage with this run's own batch sizes."""
        return replace(stage, prompts=self.prompts or stage.prompts, samples=self.samples or stage.samples)
