"""Collecting over a real local cluster: the same records, and nothing lost or doubled whatever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from langchain_core.messages import BaseMessage

from envtune_agents.errors import CollectionError, TaskError
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import collect as local_collect
from envtune_agents.rollout import read_manifest, read_rollouts
from envtune_agents.testing import ScriptedChatModel, calls_message, solution_model
from envtune_agents.types import Rollout, Task

ray = pytest.importorskip("ray", reason="needs: pip install -e integrations/ray")
from envtune_ray import collect  # noqa: E402

pytestmark = pytest.mark.usefixtures("cluster")
TASKS = playground_tasks(0, 6)
DEADLINE_S = 120.0


def ids(path: Path) -> Counter[str]:
    return Counter(rollout.rollout_id for rollout in read_rollouts(path))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in ("duration_s", "timings")}
    return [without_times(part) for part in value] if isinstance(value, list | tuple) else value


def records(path: Path) -> dict[str, Any]:
    return {rollout.rollout_id: without_times(asdict(rollout)) for rollout in read_rollouts(path)}


def one_process_says(folder: Path, wait_for: int) -> ScriptedChatModel:
    """Says its process id at every step, the first time only when `wait_for` workers have a model."""
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()

    def reply(messages: list[BaseMessage]) -> str:
        until = time.monotonic() + DEADLINE_S
        while len(list(folder.iterdir())) < wait_for and time.monotonic() < until:
            time.sleep(0.05)
        return str(os.getpid())

    return ScriptedChatModel(script=reply, model_name="the same")


class Deadly(Playground):
    """Kills the process it lives in for certain tasks: once, or each time."""

    def __init__(self, task: Task, *, doomed: str, marker: Path | None) -> None:
        super().__init__(task)
        self._kills = task.task_id == doomed
        self._marker = marker

    def close_turn(self) -> Any:
        if self._kills and self._fresh():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().close_turn()

    def _fresh(self) -> bool:
        if self._marker is None:
            return True
        try:
            self._marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


async def test_the_records_are_those_of_the_core(tmp_path: Path) -> None:
    clumsy = ScriptedChatModel(script=[calls_message(("no_such_tool", {})), "Hm."])
    for name, model in (("good", solution_model(TASKS)), ("clumsy", clumsy)):
        done = await collect(TASKS, model, Playground, out=tmp_path / name, samples=2, workers=2, hints=3)
        await local_collect(TASKS, model, Playground, out=tmp_path / f"{name}_here", samples=2, hints=3)
        assert (done.written, done.skipped, done.errors) == (12, 0, 0)
        assert records(tmp_path / name) == records(tmp_path / f"{name}_here")
        manifests = [read_manifest(tmp_path / folder) for folder in (name, f"{name}_here")]
        assert manifests[0] and manifests[1]  # noqa: PT018
        assert manifests[0].decides() == manifests[1].decides()


async def test_an_episode_stays_with_one_worker_and_each_has_its_own_model(tmp_path: Path) -> None:
    make = partial(one_process_says, tmp_path / "models", 2)
    await collect(TASKS, [make, make], Playground, out=tmp_path / "run", samples=2, concurrency=4)
    speakers = [
        {step.reply for turn in rollout.turns for step in turn.steps} for rollout in read_rollouts(tmp_path / "run")
    ]
    assert all(len(who) == 1 for who in speakers)
    assert len(set.union(*speakers)) == 2


async def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    environment = partial(Deadly, doomed=TASKS[2].task_id, marker=tmp_path / "killed")
    run = tmp_path / "run"
    done = await collect(TASKS, solution_model(TASKS), environment, out=run, samples=4, workers=2, concurrency=6)
    assert (tmp_path / "killed").exists()
    assert (done.written, done.errors) == (24, 0)
    assert ids(run) == Counter(f"{task.task_id}/0/{sample}" for task in TASKS for sample in range(4))
    assert {rollout.reward for rollout in read_rollouts(run)} == {1.0}


async def test_an_episode_that_kills_every_worker_is_an_error_and_hits_no_other(tmp_path: Path) -> None:
    environment = partial(Deadly, doomed=TASKS[0].task_id, marker=None)
    done = await collect(TASKS, solution_model(TASKS), environment, out=tmp_path, samples=2, workers=2, concurrency=6)
    assert (done.written, done.errors) == (12, 2)
    for rollout in read_rollouts(tmp_path):
        if rollout.task_id == TASKS[0].task_id:
            assert (rollout.error or "").startswith("WorkersDiedError: 3 workers")
            assert rollout.model == "solution"
        else:
            assert rollout.error is None
    assert set(ids(tmp_path).values()) == {1}


async def test_a_task_that_raises_is_recorded_and_not_tried_again(tmp_path: Path) -> None:
    tries = tmp_path / "tries"

    def environment(task: Task) -> Playground:
        if task.task_id == TASKS[1].task_id:
            with tries.open("a") as file:
                file.write("x")
            raise OSError("no world\nfor this task")
        return Playground(task)

    done = await collect(TASKS, solution_model(TASKS), environment, out=tmp_path / "run", workers=2)
    assert (done.written, done.errors) == (6, 1)
    assert tries.read_text() == "x"
    (failed,) = [rollout for rollout in read_rollouts(tmp_path / "run") if rollout.error]
    assert failed.error == "OSError: no world for this task"


async def test_a_run_goes_on_where_it_stopped_also_without_ray(tmp_path: Path) -> None:
    model = solution_model(TASKS)
    await collect(TASKS[:2], model, Playground, out=tmp_path, samples=2, workers=2)
    done = await collect(TASKS, model, Playground, out=tmp_path, samples=2, workers=1)
    assert (done.skipped, done.written) == (4, 8)
    assert (await local_collect(TASKS, model, Playground, out=tmp_path, samples=2)).skipped == 12
    assert set(ids(tmp_path).values()) == {1}


async def test_models_that_differ_end_the_collection(tmp_path: Path) -> None:
    models = [ScriptedChatModel(script=lambda _: (time.sleep(0.3), "Hm.")[1], model_name=name) for name in "ab"]
    with pytest.raises(CollectionError, match="its workers differ"):
        await collect(TASKS, models, Playground, out=tmp_path, samples=200, concurrency=2)


async def test_a_model_that_cannot_be_made_is_said_at_once(tmp_path: Path) -> None:
    def make() -> ScriptedChatModel:
        raise FileNotFoundError("no checkpoint at /models/none")

    with pytest.raises(CollectionError, match=r"FileNotFoundError: no checkpoint at /models/none.*num_cpus"):
        await collect(TASKS, make, Playground, out=tmp_path, workers=2)


async def test_a_worker_without_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envtune_ray.workers.STARTS", 1)
    options = {"num_gpus": 4}
    with pytest.raises(CollectionError, match=r"no answer within 1 seconds.*'num_gpus': 4.*cluster has.*'CPU'"):
        await collect(
            TASKS, solution_model(TASKS), Playground, out=tmp_path, actor_options=options, start_timeout_s=1.0
        )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"workers": 0}, "workers is at least 1"),
        ({"concurrency": 0}, "at least 1"),
        ({"model": []}, "one worker for each"),
        ({"model": ScriptedChatModel(script=[str(Lock())], metadata={"lock": Lock()})}, "model=lambda"),
    ],
)
async def test_what_cannot_work_is_refused_before_anything_starts(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    given = {"model": solution_model(TASKS), "workers": None, **options}
    with pytest.raises(TaskError, match=match):
        await collect(TASKS, environment=Playground, out=tmp_path, **given)
    assert not (tmp_path / "rollouts.jsonl").exists()


INTERRUPTED = """
import asyncio, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from pathlib import Path
import ray
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.testing import ScriptedChatModel
from envtune_ray import collect

out, address = Path(sys.argv[1]), sys.argv[2]
TASKS = playground_tasks(0, 6)

def slow(messages):
    (out / str(os.getpid())).touch()
    time.sleep(0.02)
    return "Hm."

ray.init(address=address)
asyncio.run(collect(TASKS, ScriptedChatModel(script=slow), Playground, out=out / "run", samples=5000, workers=2))
"""


def test_ctrl_c_leaves_whole_lines_and_no_worker(tmp_path: Path, cluster: Any) -> None:
    run = tmp_path / "run" / "rollouts.jsonl"
    arguments = [sys.executable, "-c", INTERRUPTED, str(tmp_path), cluster.address]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as driver:
        until = time.monotonic() + DEADLINE_S
        while driver.poll() is None and time.monotonic() < until and not (run.exists() and run.stat().st_size > 5000):
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGINT)
        _, said = driver.communicate(timeout=DEADLINE_S)
    assert "KeyboardInterrupt" in said
    kept: list[Rollout] = list(read_rollouts(run))
    assert 0 < len(kept) < 30_000
    assert run.read_bytes().endswith(b"\n")
    workers = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert workers
    while any(_runs(pid) for pid in workers) and time.monotonic() < until + DEADLINE_S:
        time.sleep(0.1)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_without_ray_the_install_line_is_given() -> None:
    program = "import sys; sys.modules['ray'] = None; import envtune_ray"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr
    assert "MissingDependencyError" in said
    assert "pip install -e integrations/ray" in said


async def test_a_node_that_dies_loses_and_doubles_nothing(tmp_path: Path, cluster: Any) -> None:
    """The last test: it takes a node away."""
    playing, gone, run = tmp_path / "playing", tmp_path / "gone", tmp_path / "run"
    playing.mkdir()

    def reply(messages: list[BaseMessage]) -> str:
        (playing / str(os.getpid())).touch()
        until = time.monotonic() + DEADLINE_S
        while not gone.exists() and time.monotonic() < until:
            time.sleep(0.05)
        return "Hm."

    collecting = asyncio.create_task(
        collect(TASKS, ScriptedChatModel(script=reply), Playground, out=run, samples=3, workers=2, concurrency=4)
    )
    until = time.monotonic() + DEADLINE_S
    while len(list(playing.iterdir())) < 2:
        assert time.monotonic() < until
        await asyncio.sleep(0.05)
    await asyncio.to_thread(cluster.remove_node, cluster.worker_nodes.copy().pop(), allow_graceful=False)
    gone.touch()
    done = await collecting
    assert (done.written, done.errors) == (18, 0)
    assert ids(run) == Counter(f"{task.task_id}/0/{sample}" for task in TASKS for sample in range(3))
    assert len(list(playing.iterdir())) >= 2
