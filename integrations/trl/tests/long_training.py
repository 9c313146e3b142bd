"""Tests that take minutes: `make test-long`."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

from tiny_training import SETTINGS, STAGES, source

from envtune_agents.curriculum import AdvanceRule, Curriculum, Stage
from envtune_agents.playground import Playground, generated_tasks
from envtune_agents.progress import RewardMix
from envtune_agents.rollout import run_episode
from envtune_agents.tape import TapeBranch, branches_of
from envtune_agents.task_source import TaskSource
from envtune_agents.testing import TaughtModel, tiny_qwen
from envtune_trl import TrainSettings, train
from envtune_trl.imitation import imitate_rows
from envtune_trl.weights import load_policy, save_policy

QUESTION = "Which trips have I booked?"
TASKS = [task for task in generated_tasks(0, 2000, "base", domains=("travel",)) if task.turns == (QUESTION,)][:8]
CALL = '<tool_call>\n{"name": "list_bookings", "arguments": {}}\n</tool_call>'


def said(tiny: Path, answer: str) -> TapeBranch:
    """The training row of an episode in which the model answers the question so."""
    model = TaughtModel(
        model=str(tiny), precision="fp32", answer=lambda prompt: "Done." if "<tool_response>" in prompt else answer
    )
    return branches_of(asyncio.run(run_episode(model, Playground(TASKS[0]), hints=0)))[0]


def undecided(folder: Path) -> Path:
    """A tiny model that makes the right call about half the time, and says that it does not know otherwise."""
    tiny = tiny_qwen(folder / "tiny")
    settings = TrainSettings(lora=0, precision="fp32", micro_batch=2)
    policy = load_policy(tiny, settings, None)
    rows = [said(tiny, CALL), said(tiny, "I do not know.")] * 4
    imitate_rows(policy, rows, settings, epochs=150, rate=1e-3, rows_per_step=8)
    return save_policy(policy, policy.model, folder, settings)


def test_reward_rises_from_a_fixed_seed_by_more_than_noise(tmp_path: Path) -> None:
    """A model that makes the right call half the time learns to make it always.

    The mean reward of the 48 rollouts of three steps has a standard error of at most 0.07; it must rise by four.
    """
    settings = TrainSettings(
        lora=0,
        precision="fp32",
        learning_rate=1e-4,
        prompts=2,
        samples=8,
        micro_batch=8,
        max_tokens=40,
        max_steps_per_turn=2,
        evaluate_every=100,
        save_every=100,
        validation_tasks=2,
    )
    only = Stage("only", RewardMix(progress=1.0), max_steps=12)
    tasks = TaskSource(lambda split, _: TASKS[:6] if split == "train" else TASKS[6:], Playground)
    done = train(undecided(tmp_path), tasks, out=tmp_path / "run", stages=(only,), settings=settings)
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "run" / "only" / "metrics.jsonl").open()]
    assert done.finished
    assert 0.2 < mean(rewards[:3]) < 0.7, rewards
    assert mean(rewards[-3:]) > mean(rewards[:3]) + 0.28, rewards


def test_a_killed_run_goes_on_and_ends_like_any_other(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[3]); import tiny_training as t; from pathlib import Path\n"
        "from envtune_trl import train\n"
        "train(Path(sys.argv[1]), t.source(), out=sys.argv[2], stages=t.STAGES, settings=t.SETTINGS)\n"
    )
    model, out = tiny_qwen(tmp_path / "tiny"), tmp_path / "killed"
    arguments = [sys.executable, "-c", program, str(model), str(out), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (out / "one" / "checkpoint-1").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = train(model, source(), out=out, stages=STAGES, settings=SETTINGS)
    assert done.finished
    assert [json.loads(line)["step"] for line in (out / "one" / "metrics.jsonl").open()] == [1, 2]
    assert (
        Curriculum(
            [replace(stage, prompts=2, samples=2) for stage in STAGES], AdvanceRule(), path=out / "curriculum.json"
        ).stage
        is None
    )
