"""What a run on many GPUs is told; the learning settings are the paper's."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from envtune_agents.curriculum import Stage
from envtune_agents.errors import CurriculumError, unknown

SERVERS = ("vllm", "sglang")
VERL_INSTALL = "pip install -e 'integrations/verl[vllm]'"


@dataclass(frozen=True, slots=True)
class VerlSettings:
    """The settings of a run; the defaults are the paper's where it gives one (section 4.1 and its released scripts)."""

    gpus: int = 8
    """GPUs of each node."""
    nodes: int = 1
    learning_rate: float = 1e-6
    """All weights are trained."""
    kl: float = 0.1
    """Weight of the KL to the weights that the stage began with."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 10.0
    """Cap of the probability ratio where the advantage is negative."""
    entropy: float = 0.001
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    """Of training rollouts; validation is greedy."""
    max_tokens: int = 4096
    """Most tokens of one reply."""
    max_steps_per_turn: int = 20
    """Model calls in one turn; one more ends the episode."""
    prompts: int | None = None
    """Tasks in one training step, for all stages; None leaves it to each stage."""
    samples: int | None = None
    """Rollouts of each task, for all stages; None leaves it to each stage."""
    evaluate_every: int = 10
    """Training steps between two validations: the length of one chunk."""
    validation_tasks: int = 100
    save_every: int = 10
    """Training steps between two checkpoints; the end of a chunk is always saved."""
    server: str = "vllm"
    """What decodes: "vllm" or "sglang"."""
    tensor_parallel: int = 1
    """GPUs that one copy of the model is spread over while decoding."""
    gpu_memory: float = 0.6
    """Share of a GPU's memory for decoding, in (0, 1)."""
    offload: bool = False
    """Keeps weights and optimizer state in main memory while they are not needed."""
    workers: int = 8
    """Processes that play episodes."""
    loggers: tuple[str, ...] = ("console",)
    """verl's loggers beside the file that decisions are made from: "console", "tensorboard", "wandb", …"""
    overrides: tuple[str, ...] = ()
    """Hydra overrides of your own; they come last and win."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.server not in SERVERS:
            raise CurriculumError(unknown("server", self.server, SERVERS))
        for name in ("learning_rate", "temperature", "max_grad_norm"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise CurriculumError(f"{name} is a positive number, got {value}.")
        if not 0 < self.gpu_memory < 1:
            raise CurriculumError(f"gpu_memory is a share in (0, 1), got {self.gpu_memory}.")
        counts = ("gpus", "nodes", "max_tokens", "max_steps_per_turn", "evaluate_every", "validation_tasks")
        for name in (*counts, "save_every", "tensor_parallel", "workers"):
            if getattr(self, name) < 1:
                raise CurriculumError(f"{name} is at least 1, got {getattr(self, name)}.")
        if self.gpus % self.tensor_parallel:
            raise CurriculumError(
                f"{self.gpus} GPUs cannot be divided into groups of {self.tensor_parallel} (tensor_parallel)."
            )

    def stage(self, stage: Stage) -> Stage:
        """The stage with this run's own batch sizes."""
        return replace(stage, prompts=self.prompts or stage.prompts, samples=self.samples or stage.samples)

    @property
    def keep_checkpoints(self) -> int:
        """Checkpoints of a stage that stay: all of a chunk, and the end of the chunk before it."""
        return math.ceil(self.evaluate_every / self.save_every) + 1
