from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from langchain_core.messages import AIMessage

from envtune_agents.chat_model import ChatTransformers
from envtune_agents.errors import ContextOverflowError, RecordError, TaskError
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import RolloutStore, collect, from_line, read_rollouts, record_schema, run_episode, to_line
from envtune_agents.testing import ScriptedChatModel, calls_message, solution_model, tiny_qwen
from envtune_agents.types import FailureKind, Rollout, RolloutStep, RolloutTurn, StopReason, Task, TurnScore

TASKS = playground_tasks(0, 4)
WRONG = '<tool_call>\n{"name": "pick_items", "arguments": {"item_id": "X"}}\n</tool_call>'


def wrong_once() -> ScriptedChatModel:
    return ScriptedChatModel(script=[WRONG, "I give up."])


async def test_an_episode_becomes_a_record() -> None:
    rollout = await run_episode(wrong_once(), Playground(TASKS[0]), hints=3, stage="2", seed=5, sample=1)
    assert rollout.rollout_id == f"{TASKS[0].task_id}/5/1"
    assert (rollout.stage, rollout.hint_level, rollout.model) == ("2", 3, "scripted")
    assert rollout.stop_reason is StopReason.DONE
    assert rollout.reward == 0.0
    assert rollout.n_turns == len(rollout.turns) == len(TASKS[0].turns)
    first = rollout.turns[0]
    assert first.user == TASKS[0].turns[0]
    assert first.steps[0].reply == WRONG
    (outcome,) = first.steps[0].outcomes
    assert outcome.name == "pick_items"
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.UNKNOWN_TOOL
    assert outcome.hint is not None
    assert "pick_item" in outcome.hint.text
    assert not rollout.solved


async def test_a_solved_episode_is_worth_1() -> None:
    for task in TASKS:
        rollout = await run_episode(solution_model([task]), Playground(task), hints=0)
        assert rollout.reward == 1.0
        assert rollout.solved
        assert all(outcome.hint is None for turn in rollout.turns for step in turn.steps for outcome in step.outcomes)


def failing_model(error: BaseException) -> ScriptedChatModel:
    def script(messages: list[Any]) -> AIMessage:
        if len(messages) > 1:
            raise error
        return calls_message(("list_items", {"room": "attic"}))

    return ScriptedChatModel(script=script)


async def test_what_raises_is_recorded_with_what_went_before() -> None:
    rollout = await run_episode(failing_model(ZeroDivisionError("oops")), Playground(TASKS[0]))
    assert rollout.stop_reason is StopReason.ERROR
    assert rollout.error == "ZeroDivisionError: oops"
    assert rollout.reward is None
    assert rollout.turns[0].steps[0].outcomes[0].name == "list_items"


async def test_a_prompt_too_long_ends_the_episode_without_an_error() -> None:
    rollout = await run_episode(failing_model(ContextOverflowError("9000 of 8192")), Playground(TASKS[0]))
    assert rollout.stop_reason is StopReason.CONTEXT
    assert rollout.error is None
    assert rollout.reward == 0.0


@pytest.mark.parametrize(
    "reply",
    [
        "\x00\x01\ufffd\ud800 garbage \u202e",
        "<tool_call>\n" + "[" * 10_000,
        "<tool_call>\n" + '{"a":' * 10_000 + "\n</tool_call>",
        '<tool_call>\n{"name": "count_stock", "arguments": {"item_id": "__import__(\'os\').system(\'touch pwned\')"}}\n'
        "</tool_call>",
        '<tool_call>\n{"name": "__import__(\'os\').system(\'touch pwned\')", "arguments": {}}\n</tool_call>',
        "<tool_call>" * 5_000,
    ],
    ids=range(6),
)
async def test_whatever_a_model_says_the_episode_goes_on(
    reply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rollout = await run_episode(ScriptedChatModel(script=[reply, "Sorry."]), Playground(TASKS[0]))
    assert rollout.stop_reason is StopReason.DONE
    assert from_line(to_line(rollout)) == rollout
    assert list(tmp_path.iterdir()) == []


async def test_a_small_context_ends_the_episode_and_keeps_the_tokens(tmp_path: Path) -> None:
    model = ChatTransformers(model=tiny_qwen(tmp_path), max_context=1_200, max_tokens=40, temperature=1.0)
    rollout = await run_episode(model, Playground(TASKS[0]), first_step_calls=True, hints=0)
    assert rollout.stop_reason is StopReason.CONTEXT
    assert rollout.error is None
    assert rollout.n_turns == len(TASKS[0].turns)
    steps = [step for turn in rollout.turns for step in turn.steps]
    assert steps
    assert all(len(step.logprobs) == len(step.completion_token_ids) > 0 for step in steps)
    assert steps[0].constrained
    assert from_line(to_line(rollout)) == rollout


async def test_an_episode_has_a_time_limit() -> None:
    over = threading.Event()

    def slow(messages: list[Any]) -> str:
        over.wait(30)
        return "hm"

    rollout = await run_episode(ScriptedChatModel(script=slow), Playground(TASKS[0]), episode_timeout_s=0.1)
    over.set()
    assert rollout.stop_reason is StopReason.TIMEOUT


async def test_collect_writes_every_rollout_once(tmp_path: Path) -> None:
    done = await collect(TASKS, solution_model(TASKS), Playground, out=tmp_path, samples=3, concurrency=5)
    rollouts = list(read_rollouts(tmp_path))
    assert (done.written, done.skipped, done.errors) == (12, 0, 0)
    assert len({rollout.rollout_id for rollout in rollouts}) == len(rollouts) == 12
    assert all(rollout.solved for rollout in rollouts)
    again = await collect(TASKS, solution_model(TASKS), Playground, out=tmp_path, samples=4, concurrency=5)
    assert (again.written, again.skipped) == (4, 12)
    assert len(list(read_rollouts(tmp_path))) == 16


async def test_bad_episodes_do_not_disturb_the_others(tmp_path: Path) -> None:
    def environment(task: Task) -> Playground:
        if task is TASKS[1]:
            raise OSError("no world today")
        return Playground(task)

    done = await collect(TASKS, solution_model(TASKS), environment, out=tmp_path)
    by_task = {rollout.task_id: rollout for rollout in read_rollouts(done.path)}
    assert done.errors == 1
    assert by_task[TASKS[1].task_id].error == "OSError: no world today"
    assert sum(rollout.solved for rollout in by_task.values()) == 3


async def test_a_run_keeps_its_settings(tmp_path: Path) -> None:
    await collect(TASKS[:1], wrong_once(), Playground, out=tmp_path, hints=3)
    with pytest.raises(RecordError, match="dial was"):
        await collect(TASKS, wrong_once(), Playground, out=tmp_path, hints=2)
    assert (await collect(TASKS, wrong_once(), Playground, out=tmp_path, hints=3)).skipped == 1


async def test_nonsense_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(TaskError):
        await collect(TASKS, wrong_once(), Playground, out=tmp_path, samples=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="Cannot write"):
        await collect(TASKS, wrong_once(), Playground, out=tmp_path / "file" / "run")


def test_two_processes_cannot_write_the_same_run(tmp_path: Path) -> None:
    with RolloutStore(tmp_path), pytest.raises(RecordError, match="Another process"), RolloutStore(tmp_path):
        pass


def example(**changes: Any) -> Rollout:
    steps = (
        RolloutStep("a", prompt_token_ids=(1, 2, 3), completion_token_ids=(4, 5), logprobs=(-0.5, -1.0)),
        RolloutStep("b", prompt_token_ids=(1, 2, 3, 4, 5, 6), completion_token_ids=(7,), logprobs=(-0.1,)),
        RolloutStep("c", prompt_token_ids=(1, 2, 9), completion_token_ids=(8,), logprobs=(0.0,)),
        RolloutStep("d"),
    )
    turns = (RolloutTurn("hé \ud800 \u2028", steps, TurnScore(1, 0.5, 0.5)), RolloutTurn("cut off"))
    fields: dict[str, Any] = {
        "rollout_id": "t/0/0", "task_id": "t", "category": "base", "seed": 0, "sample": 0, "model": "m", "stage": "",
        "hint_level": 3, "turns": turns, "n_turns": 2, "reward": 0.25, "stop_reason": StopReason.CONTEXT,
    }  # fmt: skip
    return Rollout(**{**fields, **changes})


def test_a_line_gives_the_record_back_and_stores_each_prompt_as_a_difference() -> None:
    line = to_line(example())
    assert from_line(line) == example()
    stored = [step["prompt_token_ids"] for step in json.loads(line)["turns"][0]["steps"]]
    assert stored == [[1, 2, 3], {"keep": 5, "then": [6]}, {"keep": 2, "then": [9]}, []]
    assert line.count(b"\n") == 1


async def test_every_line_fits_the_published_schema() -> None:
    rollouts = [example(), await run_episode(wrong_once(), Playground(TASKS[0]))]
    for rollout in rollouts:
        jsonschema.validate(json.loads(to_line(rollout)), record_schema())
    published = Path(__file__).parents[1] / "docs" / "rollout.schema.json"
    assert json.loads(published.read_text()) == record_schema()


@pytest.mark.parametrize("line", ["", "{}", "[]", "null", "{" * 50_000, '{"turns": [{"steps": [1]}]}', "\x00"])
def test_a_line_that_is_no_record_is_an_error(line: str) -> None:
    with pytest.raises(RecordError, match="Not a rollout record"):
        from_line(line)


def test_a_torn_last_line_is_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = to_line(example())
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(whole + to_line(example(rollout_id="t/0/1"))[:100])
    with caplog.at_level(logging.WARNING):
        assert [rollout.rollout_id for rollout in read_rollouts(tmp_path)] == ["t/0/0"]
    assert "torn" in caplog.text
    with RolloutStore(tmp_path) as store:
        assert store.finished == {"t/0/0"}
        store.append(example(rollout_id="t/0/2"))
    assert [rollout.rollout_id for rollout in read_rollouts(path)] == ["t/0/0", "t/0/2"]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(to_line(example()) + b"{broken\n" + to_line(example()))
    with pytest.raises(RecordError, match="line 2"):
        list(read_rollouts(path))
    with pytest.raises(RecordError, match="line 2"), RolloutStore(tmp_path):
        pass
    with pytest.raises(RecordError, match="No rollouts at"):
        next(read_rollouts(tmp_path / "nowhere"))


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    program = f"""
import resource, signal
from envtune_agents.errors import RecordError
from envtune_agents.rollout import RolloutStore
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_rollout import example
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with RolloutStore({str(tmp_path)!r}) as store:
    store.append(example())
    size, hard = store.path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        store.append(example(rollout_id="t/0/1"))
    except RecordError as error:
        print(error)
    assert store.path.stat().st_size == size
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    store.append(example(rollout_id="t/0/2"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "1 finished rollouts are safe" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
    assert [rollout.rollout_id for rollout in read_rollouts(tmp_path)] == ["t/0/0", "t/0/2"]


KILLED = """
import asyncio, sys, time
sys.path.insert(0, sys.argv[2])
from test_rollout import TASKS
from envtune_agents.playground import Playground
from envtune_agents.rollout import collect
from envtune_agents.testing import ScriptedChatModel, solution_model
fast = solution_model(TASKS)
left = iter(range(1, int(sys.argv[3])))
slow = ScriptedChatModel(script=lambda messages: (next(left, None) or time.sleep(60), fast._reply(messages))[1])
asyncio.run(collect(TASKS, slow, Playground, out=sys.argv[1], samples=15, concurrency=3))
print("finished")
"""


def test_kill_9_in_the_middle_neither_loses_nor_repeats_a_rollout(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    some, enough = "100", "1000000"  # replies before the model falls silent
    path = tmp_path / "rollouts.jsonl"
    with subprocess.Popen([*command, some], stdout=subprocess.DEVNULL) as running:
        while running.poll() is None and (not path.exists() or path.stat().st_size < 10_000):
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
    with path.open("ab") as file:
        file.write(b'{"rollout_id": "torn')
    before = path.read_bytes().rpartition(b"\n")[0]
    assert 0 < before.count(b"\n") < 59
    done = subprocess.run([*command, enough], capture_output=True, text=True, timeout=120)
    assert done.stdout == "finished\n", done.stderr
    assert path.read_bytes().startswith(before)
    ids = [rollout.rollout_id for rollout in read_rollouts(path)]
    assert len(ids) == len(set(ids)) == 60


async def test_stopping_early_keeps_what_was_finished(tmp_path: Path) -> None:
    def slow(messages: list[Any]) -> str:
        time.sleep(0.02)
        return "hm"

    run = asyncio.create_task(
        collect(TASKS, ScriptedChatModel(script=slow), Playground, out=tmp_path, samples=20, concurrency=2)
    )
    path = tmp_path / "rollouts.jsonl"
    while not path.exists() or not path.stat().st_size:
        await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    kept = len(list(read_rollouts(tmp_path)))
    assert 0 < kept < 80
    with RolloutStore(tmp_path) as store:
        assert len(store.finished) == kept


def test_records_are_values() -> None:
    assert dataclasses.replace(example()) == example()
