from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, ToolRetryMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from envtune_agents import HintEngine, with_hints
from envtune_agents.hints import outcomes_in
from envtune_agents.testing import ScriptedChatModel, calls_message
from envtune_agents.types import Advice, FailureKind, Scene
from envtune_langchain import HintMiddleware

ran: list[int] = []


@tool
def divide(a: int, b: int) -> str:
    """Divide a by b."""
    ran.append(a)
    return str(a / b)


@tool
async def adivide(a: int, b: int) -> str:
    """Divide a by b, in the event loop."""
    return str(a / b)


@tool
def soft(word: str) -> dict[str, str]:
    """Answer an error politely."""
    return {"error": f"no {word}"}


BROKEN = '<tool_call>\n{"name": "divide", "arguments": {"a": 1,\n</tool_call>'
GO = {"messages": [HumanMessage("go")]}


def agent(script: Sequence[Any], *middleware: AgentMiddleware[Any, Any], tools: Any = None, **options: Any) -> Any:
    model = ScriptedChatModel(script=script)
    tools = [divide, adivide, soft] if tools is None else tools
    return create_agent(model, tools, middleware=middleware or [HintMiddleware()], **options)


def tool_messages(state: dict[str, Any]) -> list[ToolMessage]:
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


SHAPES = [
    (calls_message(("divide", {"a": 1, "b": 0})), FailureKind.TOOL_ERROR, "error"),
    (calls_message(("divide", {"a": "one", "b": 2})), FailureKind.WRONG_TYPE, "error"),
    (calls_message(("divid", {"a": 1, "b": 2})), FailureKind.UNKNOWN_TOOL, "error"),
    (calls_message(("soft", {"word": "luck"})), FailureKind.TOOL_ERROR, "success"),
    (BROKEN, FailureKind.MALFORMED_CALL, "error"),
]


@pytest.mark.parametrize(("reply", "kind", "status"), SHAPES)
@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("awaited", [False, True])
async def test_all_five_shapes_are_answered_and_the_agent_goes_on(
    reply: Any, kind: FailureKind, status: str, level: int, awaited: bool
) -> None:
    graph = agent([reply, "Sorry."], HintMiddleware(level))
    state = await graph.ainvoke(GO) if awaited else graph.invoke(GO)
    (message,) = tool_messages(state)
    (outcome,) = outcomes_in([message])
    asked = next(message for message in state["messages"] if isinstance(message, AIMessage))
    call = (asked.tool_calls or asked.invalid_tool_calls)[0]
    assert (message.name, message.tool_call_id, message.status) == (call["name"] or "", call["id"], status)
    assert outcome.failure is not None
    assert outcome.failure.kind is kind
    assert state["messages"][-1].content == "Sorry."
    if level == 0:
        assert message.content == outcome.raw_content
    elif kind is not FailureKind.TOOL_ERROR:
        assert json.loads(str(message.content))["hint"] == outcome.hint.text  # type: ignore[union-attr]


async def test_level_0_changes_no_byte_of_an_answer() -> None:
    script: list[Any] = [
        calls_message(("divide", {"a": 1, "b": 2}), ("soft", {"word": "é"}), ("divide", {"a": "x"})),
        "Done.",
    ]
    model = ScriptedChatModel(script=script)
    plain: Any = create_agent(model, [divide, soft])
    bare = plain.invoke(GO)
    hinted = agent(script, HintMiddleware(0), tools=[divide, soft]).invoke(GO)

    def seen(state: dict[str, Any]) -> list[tuple[Any, ...]]:
        return [(part.content, part.status, part.name, part.tool_call_id) for part in tool_messages(state)]

    assert seen(hinted) == seen(bare)
    assert "hint" not in str(seen(hinted))


def test_an_unknown_tool_is_hinted_by_the_whole_menu() -> None:
    (message,) = tool_messages(agent([calls_message(("soften", {})), ""]).invoke(GO))
    assert "soft" in json.loads(str(message.content))["hint"]
    (message,) = tool_messages(agent([calls_message(("soften", {})), ""], tools=[]).invoke(GO))
    assert outcomes_in([message])[0].failure.kind is FailureKind.UNKNOWN_TOOL  # type: ignore[union-attr]


def test_a_call_that_hangs_fails() -> None:
    @tool
    def sleepy() -> str:
        """Sleep."""
        import time

        time.sleep(5)
        return "awake"

    state = agent([calls_message(("sleepy", {})), ""], HintMiddleware(call_timeout_s=0.05), tools=[sleepy]).invoke(GO)
    assert outcomes_in(state["messages"])[0].failure.kind is FailureKind.TIMEOUT  # type: ignore[union-attr]


class History:
    """A rule that says how many outcomes the episode has shown."""

    name = "history"

    def __call__(self, scene: Scene) -> Advice | None:
        return Advice(f"Seen {len(scene.history)}.")


def test_rules_see_the_episode_so_far() -> None:
    script = [calls_message(("soft", {"word": "a"})), BROKEN, calls_message(("soft", {"word": "b"}), position=9), ""]
    state = agent(script, HintMiddleware(HintEngine(rules=(History(),)))).invoke(GO)
    assert [outcome.hint.text for outcome in outcomes_in(state["messages"]) if outcome.hint] == [
        "Seen 0.",
        "Seen 1.",
        "Seen 2.",
    ]


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("awaited", [False, True])
async def test_malformed_replies_are_sent_back_a_few_times(retries: int, awaited: bool) -> None:
    graph = agent([BROKEN] * 5, HintMiddleware(max_malformed_retries=retries))
    state = await graph.ainvoke(GO) if awaited else graph.invoke(GO)
    assert [message.type for message in state["messages"]] == ["human", *["ai", "tool"] * retries, "ai"]
    answers = tool_messages(state)
    invalid = [message.invalid_tool_calls[0]["id"] for message in state["messages"] if message.type == "ai"]
    assert [message.tool_call_id for message in answers] == invalid[:-1]


def test_the_count_starts_again_after_a_readable_call_and_in_the_next_turn() -> None:
    readable = [calls_message(("soft", {"word": "a"}), position=position) for position in (1, 2)]
    script = [BROKEN, readable[0], BROKEN, readable[1], BROKEN, BROKEN, BROKEN, "Done."]
    graph = agent(script, HintMiddleware(max_malformed_retries=1), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    first = graph.invoke(GO, config)
    assert sum(message.type == "ai" for message in first["messages"]) == 6
    second = graph.invoke({"messages": [HumanMessage("again")]}, config)
    assert second["messages"][-1].content == "Done."
    assert [message.type for message in second["messages"]][-4:] == ["human", "ai", "tool", "ai"]


@pytest.mark.parametrize("awaited", [False, True])
async def test_beside_readable_calls_unreadable_ones_are_answered_and_nothing_runs_twice(awaited: bool) -> None:
    ran.clear()
    reply = calls_message(("divide", {"a": 7, "b": 2}))
    reply.invalid_tool_calls = [
        {"name": "divide", "args": "{", "id": "bad", "error": "cut off", "type": "invalid_tool_call"}
    ]
    graph = agent([reply, "Done."])
    state = await graph.ainvoke(GO) if awaited else graph.invoke(GO)
    assert ran == [7]
    answers = {message.tool_call_id: message for message in tool_messages(state)}
    assert answers["call_0_0"].content == "3.5"
    assert outcomes_in([answers["bad"]])[0].failure.kind is FailureKind.MALFORMED_CALL  # type: ignore[union-attr]
    assert len(tool_messages(state)) == 2
    assert state["messages"][-1].content == "Done."


@pytest.mark.parametrize("awaited", [False, True])
async def test_interrupts_stop_the_agent_and_resume(awaited: bool) -> None:
    @tool
    def ask(question: str) -> str:
        """Ask a person."""
        return f"they said {interrupt(question)}"

    graph = agent([calls_message(("ask", {"question": "Really?"})), "Good."], tools=[ask], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    resume: Any = Command(resume="yes")
    paused = await graph.ainvoke(GO, config) if awaited else graph.invoke(GO, config)
    assert paused["__interrupt__"][0].value == "Really?"
    done = await graph.ainvoke(resume, config) if awaited else graph.invoke(resume, config)
    assert tool_messages(done)[0].content == "they said yes"
    assert done["messages"][-1].content == "Good."


def test_a_human_in_the_loop_decides_first() -> None:
    def people(first: bool) -> list[AgentMiddleware[Any, Any]]:
        human: Any = HumanInTheLoopMiddleware(interrupt_on={"divide": True})
        return [human, HintMiddleware()] if first else [HintMiddleware(), human]

    for middleware in (people(True), people(False)):
        script = [BROKEN, calls_message(("divide", {"a": 1, "b": 0}), position=1), "Done."]
        graph = agent(script, *middleware, checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "1"}}
        paused = graph.invoke(GO, config)
        assert len(paused["__interrupt__"]) == 1
        done = graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
        kinds = [outcome.failure.kind for outcome in outcomes_in(done["messages"]) if outcome.failure]
        assert kinds == [FailureKind.MALFORMED_CALL, FailureKind.TOOL_ERROR]
        assert done["messages"][-1].content == "Done."


@pytest.mark.parametrize("awaited", [False, True])
async def test_commands_pass_through(awaited: bool) -> None:
    @tool
    def note(call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Write into the state."""
        return Command(update={"messages": [ToolMessage("Error: noted", tool_call_id=call_id)]})

    graph = agent([calls_message(("note", {})), "Done."], tools=[note])
    state = await graph.ainvoke(GO) if awaited else graph.invoke(GO)
    (message,) = tool_messages(state)
    assert message.content == "Error: noted"
    assert outcomes_in([message]) == []


def test_retries_belong_inside() -> None:
    attempts: list[int] = []

    @tool
    def flaky() -> str:
        """Fail twice."""
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError("lost")
        return "there"

    retry: Any = ToolRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    state = agent([calls_message(("flaky", {})), ""], HintMiddleware(), retry, tools=[flaky]).invoke(GO)
    assert tool_messages(state)[0].content == "there"


def test_tools_that_have_hints_already_keep_them() -> None:
    tools: list[BaseTool] = with_hints([divide])
    (message,) = tool_messages(agent([calls_message(("divide", {"a": 1})), ""], tools=tools).invoke(GO))
    assert "hint" not in outcomes_in([message])[0].raw_content
    assert json.loads(str(message.content))["hint"]


def test_outcomes_survive_a_checkpointer() -> None:
    config: Any = {"configurable": {"thread_id": "1"}}
    graph = agent([calls_message(("divide", {"a": 1})), ""], checkpointer=InMemorySaver())
    state = graph.invoke(GO, config)
    written = outcomes_in(state["messages"])
    assert type(tool_messages(state)[0].additional_kwargs["outcome"]["failure"]["kind"]) is str
    assert outcomes_in(graph.get_state(config).values["messages"]) == written


def test_what_other_middleware_has_answered_is_left_alone() -> None:
    class Answers(AgentMiddleware[Any, Any]):
        def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
            calls = state["messages"][-1].invalid_tool_calls
            return {"messages": [ToolMessage("mine", tool_call_id=call["id"]) for call in calls]}

    state = agent([BROKEN, "never"], HintMiddleware(), Answers()).invoke(GO)
    assert [message.content for message in tool_messages(state)] == ["mine"]


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_a_structured_answer_ends_the_agent(strategy: Any) -> None:
    class Verdict(BaseModel):
        """The verdict."""

        good: bool

    reply = calls_message(("Verdict", {"good": True})) if strategy is ToolStrategy else AIMessage('{"good": true}')
    reply.invalid_tool_calls = [
        {"name": "divide", "args": "{", "id": "bad", "error": "cut off", "type": "invalid_tool_call"}
    ]
    state = agent([reply, "never"], response_format=strategy(Verdict)).invoke(GO)
    assert state["structured_response"] == Verdict(good=True)
    assert sum(message.type == "ai" for message in state["messages"]) == 1
