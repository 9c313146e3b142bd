"""What verl's own classes are given in these tests: tasks of the playground, a stage's configuration, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envtune_agents.curriculum import Stage
from envtune_agents.task_source import find_task_source
from envtune_agents.types import Task

STAGE = Stage("s", max_prompt_tokens=1600, max_response_tokens=2400, prompts=2, samples=4, max_steps=2)


def tasks_of(*categories: str, count: int = 4) -> list[Task]:
    found = find_task_source("playground").load("train", list(categories))
    return found[:: max(1, len(found) // count)][:count]


def composed(overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides)


def batch_of(path: Path, tokenizer: Any, config: Any, *, validate: bool = False) -> Any:
    from verl.protocol import DataProto
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    dataset = RLHFDataset(str(path), tokenizer, config.data)
    batch = DataProto.from_single_dict(collate_fn([dataset[index] for index in range(len(dataset))]))
    batch.meta_info = {"validate": validate, "global_steps": 3}
    return batch
