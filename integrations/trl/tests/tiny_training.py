"""What the tests train on: two tiny stages, their settings, four tasks of the playground, and rollouts on these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envtune_agents.curriculum import Stage
from envtune_agents.playground import PLAYGROUND_RULES, Playground, generated_tasks
from envtune_agents.progress import FORMAT_REWARD, RewardMix
from envtune_agents.task_source import TaskSource
from envtune_trl import EpisodeRollouts, TrainSettings
from envtune_trl.weights import load_policy

STAGES = (Stage("one", FORMAT_REWARD, max_steps=2), Stage("two", RewardMix(progress=1.0), hint_level=2, max_steps=1))
SETTINGS = TrainSettings(
    lora=4,
    precision="fp32",
    prompts=2,
    samples=2,
    micro_batch=2,
    evaluate_every=1,
    save_every=1,
    validation_tasks=2,
    max_tokens=8,
    max_steps_per_turn=1,
    learning_rate=1e-3,
)


def load(split: str, categories: Any) -> list[Any]:
    return generated_tasks({"train": 0, "validation": 1}[split], 4, "base")


def source() -> TaskSource:
    return TaskSource(load, Playground, rules=lambda: PLAYGROUND_RULES)


def rollouts_of(model: Path, stage: Stage = STAGES[0]) -> EpisodeRollouts:
    tasks = load("train", None)
    engine = load_policy(model, SETTINGS, None).engine()
    return EpisodeRollouts(engine, {task.task_id: task for task in tasks}, source(), stage, SETTINGS)
