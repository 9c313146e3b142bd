"""Training the small real model, in minutes: `make test-long`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from statistics import mean

import pytest
from langchain_core.tools import BaseTool

from envtune_agents.curriculum import Stage
from envtune_agents.playground import Playground, generated_tasks
from envtune_agents.progress import RewardMix
from envtune_agents.rollout import run_episode
from envtune_agents.tape import TapeBranch, branches_of
from envtune_agents.task_source import TaskSource
from envtune_trl import TrainSettings, train
from envtune_trl.episodes import PolicyModel
from envtune_trl.imitation import imitate_rows
from envtune_trl.warm_up import Recital
from envtune_trl.weights import Policy, load_policy, save_policy

pytestmark = pytest.mark.model
QUESTION = "Which trips have I booked?"
TASKS = [task for task in generated_tasks(0, 2000, "base", domains=("travel",)) if task.turns == (QUESTION,)][:4]
CALL = '<tool_call>\n{"name": "list_bookings", "arguments": {}}\n</tool_call>'
SETTINGS = TrainSettings(
    lora=8,
    precision="fp32",
    learning_rate=2e-4,
    kl=0.0,
    prompts=2,
    samples=6,
    micro_batch=6,
    max_tokens=28,
    max_steps_per_turn=1,
    evaluate_every=100,
    save_every=100,
    validation_tasks=1,
)


class OneTool(Playground):
    """Short prompts: one tool of the five."""

    def tools(self) -> list[BaseTool]:
        return [tool for tool in super().tools() if tool.name == "list_bookings"]


def said(policy: Policy, answer: str) -> TapeBranch:
    """The training row of an episode in which the model answers so."""
    model = PolicyModel.over(Recital(policy.weights, [answer]))
    return branches_of(asyncio.run(run_episode(model, OneTool(TASKS[0]), hints=0)))[0]


def undecided(folder: Path) -> Path:
    """SmolLM2 with an adapter that makes it call now and then; out of the box it makes no valid call.

    Imitation weighs the tokens of a reply by its length: the shorter one, which does not call, becomes the likelier.
    """
    policy = load_policy("smollm2", SETTINGS, None)
    rows = [said(policy, CALL), said(policy, "I cannot see which trips you have booked, please look for yourself.")]
    imitate_rows(policy, rows, SETTINGS, epochs=16, rate=1e-3, rows_per_step=2)
    return save_policy(policy, policy.model, folder, SETTINGS)


def test_the_small_real_model_learns_to_call_from_a_fixed_seed(tmp_path: Path) -> None:
    """The mean reward of the 24 episodes of two steps has a standard error of at most 0.1; it must rise by three."""
    tasks = TaskSource(lambda split, _: TASKS[:3] if split == "train" else TASKS[3:], OneTool)
    only = Stage("only", RewardMix(progress=1.0), max_steps=5)
    start = undecided(tmp_path / "undecided")
    assert train(start, tasks, out=tmp_path / "run", stages=(only,), settings=SETTINGS).finished
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "run" / "only" / "metrics.jsonl").open()]
    assert mean(rewards[-2:]) > mean(rewards[:2]) + 0.3, rewards
