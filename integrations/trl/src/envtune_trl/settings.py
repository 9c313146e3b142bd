"""What a training run is told, and the GRPO settings that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envtune_agents.curriculum import Stage
from envtune_agents.errors import CurriculumError


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The settings of a run; the defaults are the paper's where it gives one (section 4.1 and its released scripts)."""

    lora: int = 16
    """Rank of the LoRA adapter on all linear layers; 0 trains all weights."""
    precision: str = "auto"
    """How the weights are held: "auto", "fp32", "bf16", "8bit" or "4bit"; the last two need a LoRA rank."""
    learning_rate: float = 1e-6
    """The paper's, for training all weights. LoRA usually wants 10 to 100 times as much."""
    kl: float = 0.1
    """Weight of the KL to the weights that the stage began with."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 10.0
    """Cap of the probability ratio where the advantage is negative (verl's `clip_ratio_c`)."""
    entropy: float = 0.001
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    """Of training rollouts; validation is greedy."""
    max_tokens: int = 1024
    """Most tokens of one reply."""
    max_steps_per_turn: int = 20
    """Model calls in one turn; one more ends the episode."""
    micro_batch: int = 4
    """Rows in one forward and backward pass; lower it when memory runs out."""
    prompts: int | None = None
    """Tasks in one training step, for all stages; None leaves it to each stage."""
    samples: int | None = None
    """Rollouts of each task, for all stages; None leaves it to each stage."""
    concurrency: int = 32
    """Episodes at the same time."""
    evaluate_every: int = 10
    """Training steps between two validations."""
    validation_tasks: int = 100
    save_every: int = 10
    """Training steps between two checkpoints."""
    keep_checkpoints: int = 2
    report_to: str = "none"
    """"none", "tensorboard", or any name that transformers knows."""
    seed: int = 0
    gradient_checkpointing: bool = False
    """Trades time for memory."""
    max_context: int | None = None
    """Fewer tokens of context than the checkpoint has, to save memory."""

    def __post_init__(self) -> None:
        if self.lora < 0:
            raise CurriculumError(f"lora is a rank of at least 0, got {self.lora}.")
        if self.precision in ("8bit", "4bit") and not self.lora:
            raise CurriculumError(f"Precision {self.precision} trains only an adapter: give lora a rank, such as 16.")
        if not math.isfinite(self.learning_rate) or self.learning_rate <= 0:
            raise CurriculumError(f"learning_rate is a positive number, got {self.learning_rate}.")
        for name in ("micro_batch", "concurrency", "evaluate_every", "save_every", "max_tokens", "validation_tasks"):
            if getattr(self, name) < 1:
                raise CurriculumError(f"{name} is at least 1, got {getattr(self, name)}.")

    def stage(self, stage: Stage) -> Stage:
        """The stage with this run's own batch sizes."""
        from dataclasses import replace

        return replace(stage, prompts=self.prompts or stage.prompts, samples=self.samples or stage.samples)

    def grpo_options(self, stage: Stage, folder: Path, steps: int) -> dict[str, Any]:
        """Keywords of TRL's `GRPOConfig` for one stage; `stage` has this run's batch sizes already.

        One optimizer step uses all rollouts of one generation: verl's loss and gradient, as the tests check.
        """
        rows = stage.prompts * stage.samples
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
