"""What a training run is told, and the GRPO settings that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from envtune_agents.curriculum import LearningSettings, Stage
from envtune_agents.errors import CurriculumError

QUANTISED = ("8bit", "4bit")
"""Precisions in which weights can be read and not trained: only an adapter beside them is."""


@dataclass(frozen=True, slots=True)
class TrainSettings(LearningSettings):
    """The settings of a run on one machine, beside those that every trainer has."""

    FREE: ClassVar[frozenset[str]] = LearningSettings.FREE | {
        *("micro_batch", "max_context", "concurrency", "keep_checkpoints", "report_to", "gradient_checkpointing"),
    }

    lora: int = 16
    """Rank of the LoRA adapter on all linear layers; 0 trains all weights."""
    precision: str = "auto"
    """How the weights are held: "auto", "fp32", "bf16", "8bit" or "4bit"; the last two need a LoRA rank."""
    micro_batch: int = 4
    """Rows in one forward and backward pass; lower it when memory runs out."""
    concurrency: int = 32
    """Episodes at the same time."""
    keep_checkpoints: int = 2
    """Checkpoints of a stage that stay."""
    report_to: str = "none"
    """"none", "tensorboard", or any name that transformers knows."""
    gradient_checkpointing: bool = False
    """Trades time for memory."""
    max_context: int | None = None
    """Fewer tokens of context than the checkpoint has, to save memory."""

    def __post_init__(self) -> None:
        LearningSettings.__post_init__(self)  # a slotted dataclass has no super() here
        if self.lora < 0:
            raise CurriculumError(f"lora is a rank of at least 0, got {self.lora}.")
        if self.precision in QUANTISED and not self.lora:
            raise CurriculumError(f"Precision {self.precision} trains only an adapter: give lora a rank, such as 16.")
        self._at_least_one("micro_batch", "concurrency", "keep_checkpoints")

    def grpo_options(self, stage: Stage, folder: Path, steps: int, processes: int = 1) -> dict[str, Any]:
        """Keywords of TRL's `GRPOConfig` for one stage; `stage` has this run's batch sizes already.

        One optimizer step uses all rollouts of one generation: verl's loss and gradient, as the tests check. Each of
        the `processes` plays whole groups. Raises `CurriculumError` when they cannot share the tasks of a step.
        """
        if stage.prompts % processes:
            raise CurriculumError(
                f"Stage {stage.name!r} plays {stage.prompts} tasks in a step, which {processes} processes cannot share "
                f"evenly. Set prompts to a multiple of {processes}, or start another number of processes."
            )
        rows = stage.prompts * stage.samples // processes
        micro = math.gcd(rows, self.micro_batch)
        return {
            "output_dir": str(folder),
            "max_steps": steps,
            "num_generations": stage.samples,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": rows // micro,
            "max_completion_length": stage.max_response_tokens,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.01,
            "max_grad_norm": self.max_grad_norm,
            "beta": self.kl,
            "use_bias_correction_kl": False,
            "epsilon": self.clip_low,
            "epsilon_high": self.clip_high,
            "delta": self.dual_clip,
            "entropy_coef": self.entropy,
            "loss_type": "grpo",
            "scale_rewards": "group",
            "temperature": self.temperature,
            "gradient_checkpointing": self.gradient_checkpointing,
            "save_strategy": "steps",
            "save_steps": self.save_every,
            "save_total_limit": self.keep_checkpoints,
            "logging_steps": 1,
            "report_to": self.report_to,
            "seed": self.seed,
            "disable_tqdm": True,
            "shuffle_dataset": True,
        }
