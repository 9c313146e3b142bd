from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import StructuredTool

from envtune_agents.chat_model import ChatTransformers
from envtune_agents.counterfactual import (
    Branch,
    Replay,
    ReplayStore,
    dependence_gaps,
    forks_in,
    preference_pairs,
    read_replays,
    replay_run,
    restore,
)
from envtune_agents.errors import EnvironmentStateError, RecordError, TaskError
from envtune_agents.hints import outcomes_in
from envtune_agents.ledger import failure_events
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import run_episode
from envtune_agents.task_source import TaskSource, find_task_source
from envtune_agents.testing import ScriptedChatModel, calls_message, tiny_qwen
from envtune_agents.types import TOKEN_TRACE_KEY, FailureKind, Rollout, Task, TurnEvidence

TASKS = playground_tasks(0, 3)
BROKEN = '<tool_call>\n{"name": "pick_item", "arguments": {\n</tool_call>'


def heeds_hints(messages: list[BaseMessage], tasks: list[Task] = TASKS) -> AIMessage | str:
    """Plays the solution, but picks with a wrong argument first, and picks rightly only after a hint."""
    opening = next(str(message.text) for message in messages if message.type == "human")
    solution = next(task for task in tasks if task.turns[0] == opening).data["solution"]
    calls = solution[sum(message.type == "human" for message in messages) - 1]
    last, position = messages[-1], len(messages)
    if last.type == "human" and position == 1:
        name, args = calls[-1]
        return calls_message(*calls[:-1], (name, {"item": args["item_id"], "count": args["count"]}), position=position)
    if last.type == "human":
        return calls_message(*calls, position=position) if calls else "Nothing to do."
    first_turn = sum(message.type == "human" for message in messages) == 1
    return calls_message(calls[-1], position=position) if first_turn and '"hint"' in str(last.content) else "Done."


MODEL = ScriptedChatModel(script=heeds_hints)
PLAYGROUND = find_task_source("playground")


def played(level: int = 3) -> list[Rollout]:
    return [asyncio.run(run_episode(MODEL, Playground(task), hints=level)) for task in TASKS]


ROLLOUTS = played()


async def replays(tmp_path: Path, rollouts: list[Rollout] = ROLLOUTS, **options: Any) -> list[Replay]:
    return await replay_run(rollouts, PLAYGROUND, MODEL, out=tmp_path, **options)


@pytest.mark.parametrize("rollout", ROLLOUTS, ids=lambda rollout: rollout.rollout_id)
def test_every_point_of_a_rollout_is_restored_exactly(rollout: Rollout) -> None:
    task = next(task for task in TASKS if task.task_id == rollout.task_id)
    calls = 0
    for turn, recorded in enumerate(rollout.turns):
        for step, made in enumerate(recorded.steps):
            point = restore(Playground(task), rollout, turn, step)
            calls += len(made.outcomes)
            shown = outcomes_in(point.messages)
            assert [outcome.content for outcome in shown[len(shown) - len(made.outcomes) :]] == [
                outcome.content for outcome in made.outcomes
            ]
            assert len(point.scores) == turn
    assert calls > 3
    last = restore(Playground(task), rollout, len(rollout.turns) - 1, len(rollout.turns[-1].steps) - 1)
    last.environment.close_turn()
    assert last.environment.open_turn() is None


async def test_malformed_calls_are_not_made_again() -> None:
    model = ScriptedChatModel(
        script=[calls_message(("list_items", {"room": "attic"})), BROKEN, calls_message(("list_items", {"room": "x"}))]
    )
    rollout = await run_episode(model, Playground(TASKS[0]))
    point = restore(Playground(TASKS[0]), rollout, 0, 2)
    kinds = [outcome.failure.kind if outcome.failure else None for outcome in outcomes_in(point.messages)]
    assert kinds == [None, FailureKind.MALFORMED_CALL, FailureKind.TOOL_ERROR]
    assert point.messages[3].invalid_tool_calls[0]["id"] == point.messages[4].tool_call_id  # type: ignore[union-attr]


async def test_a_local_model_goes_on_from_the_tokens_it_sampled(tmp_path: Path) -> None:
    task = replace(TASKS[0], turns=TASKS[0].turns[:1])
    model = ChatTransformers(model=tiny_qwen(tmp_path), temperature=1.0, max_tokens=40)
    rollout = await run_episode(model, Playground(task), first_step_calls=True)
    point = restore(Playground(task), rollout, 0, 0)
    reply = model.bind_tools(point.environment.tools()).invoke(point.messages)
    prompt = reply.response_metadata[TOKEN_TRACE_KEY]["prompt_token_ids"]
    assert tuple(prompt) == rollout.turns[0].steps[1].prompt_token_ids


def test_what_cannot_be_restored_is_said() -> None:
    rollout = ROLLOUTS[0]
    with pytest.raises(EnvironmentStateError, match="Give the tasks with which the run was collected"):
        restore(Playground(TASKS[1]), rollout, 0, 0)
    empty = {**TASKS[0].data["start"], "rooms": {}}
    other = Task(TASKS[0].task_id, TASKS[0].category, TASKS[0].turns, {**TASKS[0].data, "start": empty})
    with pytest.raises(EnvironmentStateError, match="cannot be restored: list_items answered"):
        restore(Playground(other), rollout, 0, 0)


class Unforkable:
    """An environment without snapshots."""

    task = Task("nap", "base", ("Sleep.",))

    def __init__(self) -> None:
        self._turns = iter(self.task.turns)

    def open_turn(self) -> str | None:
        return next(self._turns, None)

    def tools(self) -> list[Any]:
        return [StructuredTool.from_function(self.nap)]

    def nap(self, seconds: float) -> str:
        """Sleep."""
        time.sleep(seconds)
        return "awake"

    def close_turn(self) -> TurnEvidence:
        return TurnEvidence(0)


async def test_a_call_that_timed_out_is_passed_over_only_where_it_left_no_trace() -> None:
    model = ScriptedChatModel(script=[calls_message(("nap", {"seconds": 5})), "Done."])
    rollout = await run_episode(model, Unforkable(), call_timeout_s=0.05)
    with pytest.raises(EnvironmentStateError, match="nap timed out"):
        restore(Unforkable(), rollout, 0, 0)
    model = ScriptedChatModel(script=[calls_message(("nap", {"seconds": 0})), calls_message(("nap", {})), "Done."])
    rollout = await run_episode(model, Unforkable())
    assert len(restore(Unforkable(), rollout, 0, 1).messages) == 5


async def test_the_gap_of_a_hint_that_is_heeded_is_1(tmp_path: Path) -> None:
    found = await replays(tmp_path)
    assert [replay.replay_id for replay in found] == [
        f"{event.event_id}/0" for rollout in ROLLOUTS for event in failure_events(rollout)
    ]
    for replay in found:
        assert replay.error is None
        assert replay.with_hint is not None
        assert replay.without_hint is not None
        assert (replay.with_hint.score, replay.without_hint.score, replay.gap) == (1.0, 0.0, 1.0)
        assert (replay.with_hint.ended_by, replay.with_hint.steps, replay.without_hint.steps) == ("turn", 2, 1)
    (gap,) = dependence_gaps(found)
    assert (gap.rule, gap.gap, gap.low, gap.high, gap.tasks) == ("schema.unknown_argument", 1.0, 1.0, 1.0, 3)


async def test_pairs_put_the_better_continuation_first_and_hold_no_hint(tmp_path: Path) -> None:
    pairs = list(preference_pairs(await replays(tmp_path, system_prompt="Be brief.")))
    assert len(pairs) == 3
    for pair in pairs:
        assert [message["role"] for message in pair["prompt"]] == ["system", "user", "assistant", *["tool"] * 3]
        (chosen,) = pair["chosen"]
        assert chosen["tool_calls"][0]["function"]["name"] == "pick_item"
        assert pair["rejected"] == [{"role": "assistant", "content": "Done."}]
        assert [message["role"] for message in pair["chosen_continuation"]] == ["assistant", "tool", "assistant"]
        assert (pair["chosen_score"], pair["rejected_score"], pair["chosen_saw_hint"]) == (1.0, 0.0, True)
        assert {tool["function"]["name"] for tool in json.loads(pair["tools"])} >= {"pick_item", "list_items"}
        shown = json.dumps([pair[key] for key in ("prompt", "chosen_continuation", "rejected_continuation")])
        assert "hint" not in shown
        assert pair["hint"] not in shown


def call(name: str, call_id: str) -> dict[str, Any]:
    made = {"type": "function", "id": call_id, "function": {"name": name, "arguments": {}}}
    return {"role": "assistant", "content": "", "tool_calls": [made]}


def result(content: str, call_id: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": call_id, "name": "a"}


def branch(score: float, *messages: dict[str, Any]) -> Branch:
    return Branch(score, 1, "turn", messages)


def test_a_hint_that_hurts_is_the_rejected_one() -> None:
    left, right = call("a", "1"), call("b", "1")
    found = replace(replay("t", 0.0, 1.0), with_hint=branch(0.0, left), without_hint=branch(1.0, right))
    (pair,) = preference_pairs([found, replay("t", 1.0, 1.0), replace(found, with_hint=None)])
    assert (pair["chosen_score"], pair["rejected_score"], pair["chosen_saw_hint"]) == (1.0, 0.0, False)
    assert (pair["chosen"], pair["rejected"]) == ([right], [left])


def test_what_both_said_belongs_to_the_prompt() -> None:
    same = [(call("a", name), result("x", name)) for name in ("1", "other id")]
    found = replace(
        replay("t", 1.0, 0.0),
        with_hint=branch(1.0, *same[0], call("b", "2")),
        without_hint=branch(0.0, *same[1], call("c", "2")),
    )
    (pair,) = preference_pairs([found])
    assert pair["prompt"] == list(same[0])
    assert (pair["chosen"], pair["rejected"]) == ([call("b", "2")], [call("c", "2")])
    parts_in_a_result = replace(found, without_hint=branch(0.0, call("a", "1"), result("y", "1"), call("c", "2")))
    parts_nowhere = replace(found, without_hint=branch(0.0, *same[1]))
    assert list(preference_pairs([parts_in_a_result, parts_nowhere])) == []


async def test_the_silenced_rule_stays_silent_in_the_branch_without_it(tmp_path: Path) -> None:
    def stubborn(messages: list[BaseMessage]) -> AIMessage | str:
        calls = sum(message.type == "ai" for message in messages)
        return calls_message(("pick_item", {"item": "lamp"}), position=len(messages)) if calls < 3 else "Enough."

    model = ScriptedChatModel(script=stubborn)
    rollout = await run_episode(model, Playground(TASKS[0]))
    (found,) = await replay_run([rollout], PLAYGROUND, model, out=tmp_path, limit=1)
    assert found.with_hint is not None
    assert found.without_hint is not None
    assert found.with_hint.steps == found.without_hint.steps == 3


async def test_a_run_without_hints_is_tried_with_the_rules_of_now(tmp_path: Path) -> None:
    bare = [await run_episode(MODEL, Playground(task), hints=0) for task in TASKS]
    assert await replays(tmp_path / "own", bare) == []
    found = await replays(tmp_path / "now", bare, level=2)
    assert {replay.level for replay in found} == {2}
    assert [replay.gap for replay in found if replay.turn == 0] == [1.0] * 3


async def test_a_stopped_replay_goes_on_and_errors_are_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(messages: list[BaseMessage]) -> AIMessage | str:
        raise ConnectionError("the model is away")

    broken = ScriptedChatModel(script=fails)
    assert len(await replays(tmp_path, limit=1)) == 1
    failed = await replay_run(ROLLOUTS, PLAYGROUND, broken, out=tmp_path, samples=2, limit=1)
    assert [(found.sample, found.error, found.gap) for found in failed] == [
        (1, "ConnectionError: the model is away", None)
    ]
    (gap,) = dependence_gaps(read_replays(tmp_path))
    assert (gap.replays, gap.errors) == (1, 1)
    assert [found.sample for found in await replays(tmp_path, samples=2, limit=1)] == [1]
    assert await replays(tmp_path, samples=2, limit=1) == []
    assert [found.error for found in read_replays(tmp_path)] == [None, None]
    with (tmp_path / "replays.jsonl").open("a") as file:
        file.write('{"replay_id": "torn')
    assert len(read_replays(tmp_path)) == 2
    assert "torn" in caplog.text
    assert len(await replays(tmp_path, samples=2, limit=2)) == 2
    assert len(read_replays(tmp_path)) == 4


async def test_what_cannot_be_replayed_is_recorded_and_does_not_stop_the_others(tmp_path: Path) -> None:
    turn = replace(ROLLOUTS[0].turns[0], user="Something else.")
    strange = replace(ROLLOUTS[0], turns=(turn, *ROLLOUTS[0].turns[1:]))
    unknown = replace(ROLLOUTS[1], task_id="playground_base_99_9")
    found = await replays(tmp_path, [strange, unknown, ROLLOUTS[2]], concurrency=3)
    errors = {replay.rollout_id: replay.error for replay in found}
    assert "Give the tasks with which" in str(errors[strange.rollout_id])
    assert "Unknown task id 'playground_base_99_9'" in str(errors[unknown.rollout_id])
    assert errors[ROLLOUTS[2].rollout_id] is None


async def test_a_continuation_that_never_ends_scores_0(tmp_path: Path) -> None:
    def endless(messages: list[BaseMessage]) -> AIMessage:
        return calls_message(("list_items", {"room": "attic"}), position=len(messages))

    model = ScriptedChatModel(script=endless)
    (found, *_) = await replay_run(ROLLOUTS, PLAYGROUND, model, out=tmp_path, max_steps=3, limit=1)
    assert found.with_hint is not None
    assert (found.with_hint.score, found.with_hint.ended_by) == (0.0, "step_limit")
    assert found.gap == 0.0


async def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    for wrong in ({"samples": 0}, {"concurrency": 0}, {"level": 0}, {"level": 4}):
        with pytest.raises(TaskError):
            await replays(tmp_path, **wrong)
    others = TaskSource(load=lambda split, categories: playground_tasks(9, 3), environment=Playground)
    with pytest.raises(TaskError, match="None of the 3 tasks"):
        await replay_run(ROLLOUTS, others, MODEL, out=tmp_path)
    await replays(tmp_path, limit=1)
    with pytest.raises(RecordError, match="seed was 0, is 1"):
        await replays(tmp_path, seed=1)
    with ReplayStore(tmp_path / "held", {}), pytest.raises(RecordError, match="Another process"):
        ReplayStore(tmp_path / "held", {}).__enter__()
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="Cannot write replays"):
        ReplayStore(tmp_path / "file", {}).__enter__()
    (tmp_path / "replays.jsonl").write_text('{"old": 1}\n')
    with pytest.raises(RecordError, match="line 1"):
        await replays(tmp_path)
    with pytest.raises(RecordError, match="No replays at"):
        read_replays(tmp_path / "nowhere.jsonl")


def replay(task: str, with_hint: float | None, without: float | None, rule: str = "r", sample: int = 0) -> Replay:
    branch = partial(Branch, steps=1, ended_by="turn")
    error = "Oops" if with_hint is None or without is None else None
    return Replay(
        f"{task}/{sample}", f"{task}/0/0", task, 0, 0, 0, sample, "f", FailureKind.TOOL_ERROR, rule, 3, "Do it.",
        with_hint=branch(with_hint), without_hint=branch(without), error=error,
    )  # fmt: skip


def test_gaps_have_an_interval_over_tasks() -> None:
    found = [replay(f"t{number}", 1.0, float(number % 2)) for number in range(20)]
    found += [replay("t0", None, 1.0), replay("u", 0.0, 1.0, rule="worse"), replay("u", None, None, rule="broken")]
    first, worse, broken = dependence_gaps(found)
    assert (first.rule, first.replays, first.gap, first.errors) == ("r", 20, 0.5, 1)
    assert first.low is not None
    assert first.high is not None
    assert 0.2 < first.low < 0.5 < first.high < 0.8
    assert (worse.rule, worse.gap, worse.low, worse.high) == ("worse", -1.0, None, None)
    assert (broken.rule, broken.replays, broken.errors) == ("broken", 0, 1)
    assert dependence_gaps(found) == dependence_gaps(found)
    one_task = [replay("t", 1.0, 0.0, sample=sample) for sample in range(50)]
    assert dependence_gaps(one_task)[0].low is None  # fifty replays of one task are one observation


def test_forks_are_the_hinted_failures() -> None:
    assert [fork.fork_id for fork in forks_in(ROLLOUTS[0])] == [
        event.event_id for event in failure_events(ROLLOUTS[0]) if event.hint
    ]
    (bare, *_) = played(level=0)
    assert list(forks_in(bare)) == []
    assert len(list(forks_in(bare, hinted=False))) == len(list(failure_events(bare))) > 0


async def test_bfcl_is_replayed_at_the_exact_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bfcl = pytest.importorskip("envtune_bfcl")
    caplog.set_level(logging.ERROR)
    task = bfcl.load_task("multi_turn_base_0")
    opened = [[bfcl.parse_call(text) for text in calls] for calls in task.data["ground_truth"]]

    def script(messages: list[BaseMessage]) -> AIMessage | str:
        turn = sum(message.type == "human" for message in messages) - 1
        calls = [(call.name, dict(call.args)) for call in opened[turn]]
        if turn > 0 or messages[-1].type == "human":
            wrong = ("cd", {"dir": "document"})
            return calls_message(wrong, position=len(messages)) if messages[-1].type == "human" else "Done."
        return calls_message(*calls, position=len(messages)) if '"hint"' in str(messages[-1].content) else "Done."

    model = ScriptedChatModel(script=script)
    source = find_task_source("bfcl")
    rollout = await run_episode(model, source.environment(task), hints=source.hint_engine(3))
    found = await replay_run([rollout], source, model, out=tmp_path)
    assert [(one.error, one.turn, one.rule, one.gap) for one in found[:2]] == [
        (None, 0, "schema.unknown_argument", 1.0),
        (None, 1, "schema.unknown_argument", 0.0),
    ]
    assert len(found) == len(rollout.turns)
    assert rollout.turns[0].score is not None
    assert rollout.turns[0].score.value == 1.0


def test_replays_survive_the_file(tmp_path: Path) -> None:
    found = asyncio.run(replays(tmp_path))
    assert read_replays(tmp_path) == found
