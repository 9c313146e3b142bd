"""Many episodes at once: retries, stragglers, the tape on the way, Ctrl-C."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from envtune_agents.cli import app
from envtune_agents.errors import CollectionError, MissingDependencyError
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import (
    LocalPlayer,
    ModelPrint,
    RolloutStore,
    collect,
    collect_with,
    patient,
    read_rollouts,
    run_episode,
    transient,
)
from envtune_agents.rollout.pace import Pace
from envtune_agents.testing import ScriptedChatModel, solution_model, tiny_qwen
from envtune_agents.testing.token_script import TokenScript, tokenizer_only
from envtune_agents.types import Rollout, StopReason, Task

TASKS = playground_tasks(0, 4)


class AnsweredError(Exception):
    """An HTTP error as client libraries raise it."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code


def flaky(error: Exception, times: int) -> ScriptedChatModel:
    """Fails `times` times in all, then says "Hm."."""
    left = [times]

    def reply(messages: list[Any]) -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "Hm."

    return ScriptedChatModel(script=reply)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("gone"), TimeoutError(), AnsweredError(503), AnsweredError(429)]
)
async def test_a_transient_failure_of_the_model_is_tried_again(error: Exception) -> None:
    assert transient(error)
    model = flaky(error, 2)
    rollout = await run_episode(model, Playground(TASKS[0]), model_retry=patient(attempts=3, first_wait_s=0.01))
    assert (rollout.stop_reason, rollout.error) == (StopReason.DONE, None)


@pytest.mark.parametrize("error", [ValueError("bad"), AnsweredError(400), AnsweredError(401), ZeroDivisionError()])
async def test_another_failure_is_not(error: Exception) -> None:
    assert not transient(error)
    started = time.monotonic()
    rollout = await run_episode(flaky(error, 1), Playground(TASKS[0]))
    assert rollout.stop_reason is StopReason.ERROR
    assert time.monotonic() - started < 5


async def test_which_failures_and_how_often_is_the_users_choice() -> None:
    policy = patient(attempts=2, first_wait_s=0.01)._replace(retry_on=ZeroDivisionError)
    rollout = await run_episode(flaky(ZeroDivisionError(), 1), Playground(TASKS[0]), model_retry=policy)
    assert rollout.error is None
    rollout = await run_episode(flaky(ZeroDivisionError(), 2), Playground(TASKS[0]), model_retry=policy)
    assert rollout.error == "ZeroDivisionError: "
    rollout = await run_episode(flaky(ConnectionResetError("gone"), 1), Playground(TASKS[0]), model_retry=None)
    assert rollout.error == "ConnectionResetError: gone"


async def test_waiting_for_another_try_ends_with_the_episode() -> None:
    rollout = await run_episode(
        flaky(ConnectionResetError(), 99),
        Playground(TASKS[0]),
        model_retry=patient(first_wait_s=60),
        episode_timeout_s=0.2,
    )
    assert rollout.stop_reason is StopReason.TIMEOUT


def test_a_straggler_takes_four_times_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace()
    for name in "abcdefgh":
        pace.start(name)
        now[0] += 1
        pace.end(name)
    pace.start("slow")
    now[0] += 3
    assert pace.slow() == []
    now[0] += 2
    assert [slow.rollout_id for slow in pace.slow()] == ["slow"]
    pace.end("slow")
    (straggler,) = pace.stragglers
    assert (straggler.rollout_id, straggler.seconds, straggler.median_s) == ("slow", 5.0, 1.0)
    assert pace.slow() == []


async def test_collect_reports_stragglers(tmp_path: Path) -> None:
    played = await run_episode(solution_model(TASKS), Playground(TASKS[0]))

    async def play(model: Any, environment: Playground, *, seed: int, sample: int, **_: Any) -> Rollout:
        if sample == 19:
            await asyncio.sleep(1.5)
        return dataclasses.replace(played, rollout_id=f"{environment.task.task_id}/{seed}/{sample}")

    model = solution_model(TASKS)
    done = await collect(TASKS[:1], model, Playground, out=tmp_path, samples=20, concurrency=2, play=play)
    took = {straggler.rollout_id: straggler.seconds for straggler in done.stragglers}
    assert took[f"{TASKS[0].task_id}/0/19"] > 1.4
    assert done.written == 20


async def test_collect_counts_what_cannot_be_trained_on(tmp_path: Path) -> None:
    done = await collect(TASKS, solution_model(TASKS), Playground, out=tmp_path / "untraced")
    assert (done.written, done.untrainable, done.drifted) == (4, 4, 0)
    weights = tokenizer_only(str(tiny_qwen(tmp_path / "tiny")))
    model = TokenScript(model="scripted", script=["One.", "Two.", "Three.", "Four."], scripted_weights=weights)
    done = await collect(TASKS[:1], model, Playground, out=tmp_path / "traced")
    assert (done.untrainable, done.drifted) == (0, 0)
    (rollout,) = read_rollouts(tmp_path / "traced")
    assert rollout.tape
    assert rollout.tape.branches == 1
    assert len(rollout.template_hash) == 16
    assert rollout.turns[0].evidence is not None


class Tired:
    """A player that plays twice, then is gone."""

    def __init__(self) -> None:
        self.left = 2
        self.here = LocalPlayer(solution_model(TASKS), Playground)

    async def model_print(self) -> ModelPrint:
        return await self.here.model_print()

    async def play(self, task: Task, sample: int) -> Rollout:
        if task is TASKS[0]:
            raise OSError("no such world")
        if not self.left:
            raise CollectionError("gone for today")
        self.left -= 1
        return await self.here.play(task, sample)


async def test_another_player_plays_and_may_end_the_collection(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="gone for today"):
        await collect_with(Tired(), TASKS, out=tmp_path, samples=1, concurrency=1)
    failed, *good = read_rollouts(tmp_path)
    assert (failed.error, failed.model) == ("OSError: no such world", "solution")
    assert [rollout.reward for rollout in good] == [1.0, 1.0]
    done = await collect(TASKS, solution_model(TASKS), Playground, out=tmp_path)
    assert (done.skipped, done.written) == (3, 1)


STOPPED = """
import asyncio, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
sys.argv = ["envtune"]
from pathlib import Path
from envtune_agents.cli import app as cli
from envtune_agents.cli.app import app, on_interrupt
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import collect
from envtune_agents.testing import ScriptedChatModel
TASKS = playground_tasks(0, 4)
slow = ScriptedChatModel(script=lambda messages: (time.sleep(0.01), "Hm.")[1])

@app.command("go")
def go() -> None:
    on_interrupt("the same command goes on")
    asyncio.run(collect(TASKS, slow, Playground, out=Path("run"), samples=500, concurrency=4, zstd=True))

from envtune_agents.cli import main
sys.argv = ["envtune", "go"]
main()
"""


def test_ctrl_c_finishes_writing_and_says_how_to_go_on(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    path = tmp_path / "run" / "rollouts.jsonl.zst"
    with subprocess.Popen([sys.executable, "-c", STOPPED], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while (
            running.poll() is None
            and time.monotonic() < deadline
            and not (path.exists() and path.stat().st_size > 2_000)
        ):
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "stopped; the same command goes on" in said
    kept = [rollout.rollout_id for rollout in read_rollouts(path)]
    assert 0 < len(kept) < 2000
    with RolloutStore(tmp_path / "run", zstd=True) as store:
        assert store.finished == set(kept)


@pytest.mark.skipif(find_spec("envtune_ray") is not None, reason="envtune_ray is installed here")
def test_the_command_line_says_how_to_get_a_cluster(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["collect", "--limit", "1", "--backend", "ray", "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, MissingDependencyError)
    assert "pip install -e integrations/ray" in str(result.exception)
    assert not (tmp_path / "run").exists()
