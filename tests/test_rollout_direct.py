"""Episodes without a graph: the records are those of the graph, whatever goes wrong."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool, InjectedToolCallId, tool
from langgraph.types import Command

from envtune_agents.errors import ContextOverflowError
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import collect, patient, read_rollouts, run_directly, run_episode
from envtune_agents.rollout.plain_call import plain_call
from envtune_agents.testing import ScriptedChatModel, calls_message, solution_model, tiny_qwen
from envtune_agents.testing.token_script import TokenScript, tokenizer_only
from envtune_agents.types import Rollout, StopReason, Task, TurnEvidence, TurnScore

TASKS = playground_tasks(0, 4)
BROKEN = '<tool_call>\n{"name": "list_items", "arguments": {\n</tool_call>'


def plain(rollout: Rollout) -> Any:
    """The record without the times, which differ from run to run."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(part) for key, part in value.items() if key not in ("duration_s", "timings")}
        return [cleaned(part) for part in value] if isinstance(value, list | tuple) else value

    return cleaned(dataclasses.asdict(rollout))


def raising(error: Exception) -> ScriptedChatModel:
    def reply(messages: list[Any]) -> str:
        raise error

    return ScriptedChatModel(script=reply)


def bad_scorer(evidence: TurnEvidence) -> TurnScore:
    return TurnScore(1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (solution_model(TASKS), {}),
        (
            ScriptedChatModel(script=[calls_message(("no_such_tool", {}), ("list_items", {"x": 1})), "Hm."]),
            {"hints": 2},
        ),
        (ScriptedChatModel(script=[BROKEN, "Hm."]), {"hints": 3}),
        (ScriptedChatModel(script=[BROKEN, "Hm."]), {"malformed_ends_turn": True}),
        (ScriptedChatModel(script=lambda _: calls_message(("list_items", {}))), {"max_steps": 3}),
        (ScriptedChatModel(script=["Hm."]), {"system_prompt": "Be brief.", "stage": "one", "hints": 0}),
        (raising(ValueError("bad\nmodel")), {}),
        (raising(ContextOverflowError("too long")), {}),
        (raising(ConnectionResetError("gone")), {"model_retry": patient(2, 0.01)._replace(jitter=False)}),
        (raising(ConnectionResetError("gone")), {"model_retry": None}),
        (ScriptedChatModel(script=["Hm."]), {"scorer": bad_scorer}),
    ],
)
@pytest.mark.parametrize("task", TASKS[:2], ids=lambda task: task.task_id)
async def test_the_record_is_that_of_the_graph(model: ScriptedChatModel, options: dict[str, Any], task: Task) -> None:
    through_graph = await run_episode(model, Playground(task), seed=3, sample=1, **options)
    direct = await run_directly(model, Playground(task), seed=3, sample=1, **options)
    assert plain(direct) == plain(through_graph)


async def test_the_tokens_are_those_of_the_graph(tmp_path: Path) -> None:
    weights = tokenizer_only(str(tiny_qwen(tmp_path / "tiny")))
    model = TokenScript(model="scripted", script=["One.", "Two.", "Three.", "Four."], scripted_weights=weights)
    through_graph = await run_episode(model, Playground(TASKS[0]), seed=5)
    direct = await run_directly(model, Playground(TASKS[0]), seed=5)
    assert direct.turns[0].steps[0].completion_token_ids
    assert plain(direct) == plain(through_graph)


async def test_a_model_with_a_seed_is_given_that_of_the_graph() -> None:
    class Seeded(ScriptedChatModel):
        seed: int | None = None
        seen: list[int] = []  # noqa: RUF012 - a pydantic field

        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
            self.seen.append(kwargs["seed"])
            return super()._generate(messages)

    model = Seeded(script=["Hm."])
    for play in (run_episode, run_directly):
        await play(model, Playground(TASKS[1]), seed=5, sample=2)
    half = len(model.seen) // 2
    assert half > 1
    assert model.seen[:half] == model.seen[half:]


async def test_an_episode_that_takes_too_long_is_cut() -> None:
    class Slow(ScriptedChatModel):
        async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
            await asyncio.sleep(60)
            raise AssertionError

    rollout = await run_directly(Slow(script=["Hm."]), Playground(TASKS[0]), episode_timeout_s=0.05)
    assert rollout.stop_reason is StopReason.TIMEOUT


async def test_collect_plays_directly(tmp_path: Path) -> None:
    model = solution_model(TASKS)
    done = await collect(TASKS, model, Playground, out=tmp_path, play=run_directly)
    assert (done.written, done.errors) == (4, 0)
    assert {rollout.reward for rollout in read_rollouts(tmp_path)} == {1.0}


class Jumpy(Playground):
    """Its only tool answers with a `Command`."""

    says: tuple[Any, ...] = ()
    goto: str = ""

    def tools(self) -> list[BaseTool]:
        @tool
        def jump(tool_call_id: Annotated[str, InjectedToolCallId]) -> Any:
            """Jump."""
            answer = ToolMessage("jumped", tool_call_id=tool_call_id)
            return Command(update={"messages": [answer, *self.says]}, goto=self.goto)

        return [jump]


async def test_a_command_is_obeyed_as_in_the_graph_unless_it_goes_elsewhere() -> None:
    model = ScriptedChatModel(script=[calls_message(("jump", {})), "Hm."])
    worlds = [Jumpy(TASKS[0]) for _ in range(3)]
    for world in worlds[:2]:
        world.says = (HumanMessage("And I said."),)
    through_graph, direct = await run_episode(model, worlds[0]), await run_directly(model, worlds[1])
    assert plain(direct) == plain(through_graph)
    assert [turn.user for turn in direct.turns][1] == "And I said."
    worlds[2].goto = "elsewhere"
    elsewhere = await run_directly(model, worlds[2])
    assert "TaskError" in (elsewhere.error or "")
    assert "run_episode" in (elsewhere.error or "")


class Counting(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.calls = 0

    async def on_llm_end(self, *_: Any, **__: Any) -> None:
        self.calls += 1


class Informed(ScriptedChatModel):
    """Reports something beside its message."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        info = {"finish_reason": "length"}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("Hm."), generation_info=info)])


async def test_a_plain_call_gives_what_langchain_gives() -> None:
    model: BaseChatModel = Informed(script=[])
    bound = model.bind_tools([]).bind(seed=1)
    mine, theirs = await plain_call(bound, [AIMessage("x")]), await bound.ainvoke([AIMessage("x")])
    assert mine.response_metadata == {"finish_reason": "length"}
    assert mine.model_dump(exclude={"id"}) == theirs.model_dump(exclude={"id"})


async def test_callbacks_and_chains_go_through_langchain() -> None:
    counting = Counting()
    await plain_call(ScriptedChatModel(script=["Hm."], callbacks=[counting]), [])
    await plain_call(ScriptedChatModel(script=["Hm."]).with_config(callbacks=[counting]), [])
    assert counting.calls == 2
    chain = ScriptedChatModel(script=["Hm."]) | RunnableLambda(lambda message: AIMessage(message.content + "!"))
    assert (await plain_call(chain, [])).content == "Hm.!"
