"""What a run on many GPUs is told; the learning settings are the paper's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from envtune_agents.curriculum import LearningSettings
from envtune_agents.errors import CurriculumError, unknown

SERVERS = ("vllm", "sglang")
VERL_INSTALL = "pip install -e 'integrations/verl[vllm]'"


@dataclass(frozen=True, slots=True)
class VerlSettings(LearningSettings):
    """The settings of a run on many GPUs, beside those that every trainer has."""

    FREE: ClassVar[frozenset[str]] = LearningSettings.FREE | {
        *("gpus", "nodes", "tensor_parallel", "gpu_memory", "offload", "workers", "loggers", "overrides"),
    }

    max_tokens: int = 4096
    """Most tokens of one reply."""
    lora: int = 0
    """Rank of the LoRA adapter on all linear layers; 0 trains all weights."""
    gpus: int = 8
    """GPUs of each node."""
    nodes: int = 1
    """Machines of the Ray cluster."""
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

    def __post_init__(self) -> None:
        LearningSettings.__post_init__(self)  # a slotted dataclass has no super() here
        if self.server not in SERVERS:
            raise CurriculumError(unknown("server", self.server, SERVERS))
        if self.lora < 0:
            raise CurriculumError(f"lora is a rank of at least 0, got {self.lora}.")
        if not 0 < self.gpu_memory < 1:
            raise CurriculumError(f"gpu_memory is a share in (0, 1), got {self.gpu_memory}.")
        self._at_least_one("gpus", "nodes", "tensor_parallel", "workers")
        if self.gpus % self.tensor_parallel:
            raise CurriculumError(
                f"{self.gpus} GPUs cannot be divided into groups of {self.tensor_parallel} (tensor_parallel)."
            )

    @property
    def keep_checkpoints(self) -> int:
        """Checkpoints of a stage that stay: all of a chunk, and the end of the chunk before it."""
        return math.ceil(self.evaluate_every / self.save_every) + 1
