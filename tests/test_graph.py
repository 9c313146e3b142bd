from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from envtune_agents.errors import ScorerError, TaskError
from envtune_agents.graph import HintedToolNode, ProgressNode, build_agent_graph
from envtune_agents.graph.state import EpisodeState
from envtune_agents.hints import outcomes_in
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.testing import ScriptedChatModel, calls_message, solution_model
from envtune_agents.types import FailureKind, StopReason, Task, TurnScore

TASK = playground_tasks(0, 1, "base")[0]


def tool_messages(state: dict[str, Any]) -> list[ToolMessage]:
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


@tool
def divide(a: int, b: int) -> str:
    """Divide."""
    return str(a / b)


@tool
def soft(word: str) -> dict[str, str]:
    """Answer an error politely."""
    return {"error": f"no {word}"}


@tool
def stubborn() -> str:
    """Raise what ToolNode knows."""
    raise ToolException("not today")


@tool
async def wait_async(seconds: float) -> str:
    """Wait in the event loop."""
    import asyncio

    await asyncio.sleep(seconds)
    return "waited"


@tool
def wait_sync(seconds: float) -> str:
    """Wait in a thread."""
    time.sleep(seconds)
    return "waited"


@tool
def flood() -> str:
    """Answer 10 MB."""
    return "x" * 10_000_000


ALL_TOOLS: list[BaseTool] = [divide, soft, stubborn, wait_async, wait_sync, flood]


def run_node(*calls: tuple[str, dict[str, Any]], reply: AIMessage | None = None, **options: Any) -> list[ToolMessage]:
    """One reply through a `HintedToolNode` in a plain StateGraph of LangGraph's own MessagesState."""
    builder = StateGraph(MessagesState)
    builder.add_node("tools", HintedToolNode(ALL_TOOLS, **options))
    builder.add_edge(START, "tools")
    state = builder.compile().invoke({"messages": [HumanMessage("go"), reply or calls_message(*calls)]})
    return tool_messages(state)


async def arun_node(*calls: tuple[str, dict[str, Any]], **options: Any) -> list[ToolMessage]:
    builder = StateGraph(MessagesState)
    builder.add_node("tools", HintedToolNode(ALL_TOOLS, **options))
    builder.add_edge(START, "tools")
    return tool_messages(await builder.compile().ainvoke({"messages": [HumanMessage("go"), calls_message(*calls)]}))


FIVE_SHAPES = [
    (calls_message(("divide", {"a": 1, "b": 0})), FailureKind.TOOL_ERROR, "division by zero"),
    (calls_message(("divide", {"a": "one", "b": 2})), FailureKind.WRONG_TYPE, "a"),
    (calls_message(("divid", {})), FailureKind.UNKNOWN_TOOL, "divid"),
    (calls_message(("soft", {"word": "luck"})), FailureKind.TOOL_ERROR, "no luck"),
    (AIMessage("", invalid_tool_calls=[
        {"name": "divide", "args": "{", "id": "c1", "error": "cut off", "type": "invalid_tool_call"},
    ]), FailureKind.MALFORMED_CALL, "cut off"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "kind", "said"), FIVE_SHAPES)
@pytest.mark.parametrize("level", [0, 3])
def test_all_five_shapes_of_a_failed_call_are_seen(reply: AIMessage, kind: FailureKind, said: str, level: int) -> None:
    (message,) = run_node(reply=reply, hints=level)
    (outcome,) = outcomes_in([message])
    assert outcome.failure is not None
    assert outcome.failure.kind is kind
    assert said in outcome.raw_content
    assert "Traceback" not in str(message.content)
    assert message.tool_call_id == (reply.tool_calls or reply.invalid_tool_calls)[0]["id"]
    if level == 0:
        assert message.content == outcome.raw_content
    elif kind not in (FailureKind.TOOL_ERROR,):
        assert outcome.hint is not None
        assert json.loads(str(message.content))["hint"] == outcome.hint.text


def test_calls_run_in_order() -> None:
    seen: list[tuple[str, int]] = []

    @tool
    def note(n: int) -> str:
        """Note a number."""
        seen.append(("start", n))
        time.sleep(0.03 if n == 0 else 0)
        seen.append(("end", n))
        return str(n)

    builder = StateGraph(MessagesState)
    builder.add_node("tools", HintedToolNode([note]))
    builder.add_edge(START, "tools")
    calls = calls_message(*[("note", {"n": n}) for n in range(4)])
    state = builder.compile().invoke({"messages": [calls]})
    assert seen == [(what, n) for n in range(4) for what in ("start", "end")]
    assert [message.content for message in tool_messages(state)] == ["0", "1", "2", "3"]


def test_a_hanging_call_fails_and_the_others_run() -> None:
    messages = run_node(("wait_sync", {"seconds": 5}), ("divide", {"a": 1, "b": 2}), call_timeout_s=0.7)
    assert outcomes_in(messages)[0].failure is not None
    assert outcomes_in(messages)[0].failure.kind is FailureKind.TIMEOUT  # type: ignore[union-attr]
    assert messages[1].content == "0.5"


@pytest.mark.parametrize("name", ["wait_sync", "wait_async"])
async def test_a_hanging_call_fails_under_ainvoke_too(name: str) -> None:
    messages = await arun_node((name, {"seconds": 5}), ("wait_async", {"seconds": 0.0}), call_timeout_s=0.7)
    assert [outcome.failure and outcome.failure.kind for outcome in outcomes_in(messages)] == [
        FailureKind.TIMEOUT,
        None,
    ]


def test_a_flood_is_cut_with_a_note() -> None:
    (message,) = run_node(("flood", {}), max_content_chars=1_000)
    assert len(message.content) < 1_200
    assert "10,000,000 characters" in str(message.content)


def test_a_tool_exception_is_a_failure_and_not_a_crash() -> None:
    (message,) = run_node(("stubborn", {}))
    assert "not today" in str(message.content)


def test_commands_pass_through() -> None:
    @tool
    def leave() -> Command[Any]:
        """Leave the graph."""
        return Command(goto="elsewhere", graph=None, update={"messages": [ToolMessage("bye", tool_call_id="call_0_0")]})

    builder = StateGraph(MessagesState)
    builder.add_node("tools", HintedToolNode([leave]))
    builder.add_node("elsewhere", lambda state: {"messages": [AIMessage("arrived")]})
    builder.add_edge(START, "tools")
    state = builder.compile().invoke({"messages": [calls_message(("leave", {}))]})
    assert [message.content for message in state["messages"]][-2:] == ["bye", "arrived"]


def test_a_state_may_be_an_object() -> None:
    class State(BaseModel):
        messages: Annotated[list[Any], add_messages]

    builder = StateGraph(State)
    builder.add_node("tools", HintedToolNode(ALL_TOOLS))
    builder.add_edge(START, "tools")
    state = builder.compile().invoke({"messages": [calls_message(("divide", {"a": 1, "b": 4}), ("soft", {}))]})
    assert [outcome.failure is None for outcome in outcomes_in(tool_messages(state))] == [True, False]


def test_an_interrupt_inside_a_tool_pauses_and_resumes() -> None:
    @tool
    def ask(question: str) -> str:
        """Ask a person."""
        return f"they said {interrupt(question)}"

    model = ScriptedChatModel(script=[calls_message(("ask", {"question": "Really?"})), "Good."])
    graph = build_agent_graph(model, tools=[ask], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    paused = graph.invoke({"messages": [HumanMessage("go")]}, config)
    assert paused["__interrupt__"][0].value == "Really?"
    done = graph.invoke(Command(resume="yes"), config)
    assert tool_messages(done)[0].content == "they said yes"
    assert done["messages"][-1].content == "Good."


@pytest.mark.parametrize("task", playground_tasks(0, 4), ids=lambda task: task.task_id)
def test_an_episode_is_played_scored_and_ended(task: Task) -> None:
    state = build_agent_graph(solution_model([task]), Playground(task)).invoke({})
    assert state["stop_reason"] == StopReason.DONE
    assert [score["value"] for score in state["scores"]] == [1.0] * len(task.turns)
    assert [message.content for message in state["messages"] if isinstance(message, HumanMessage)] == list(task.turns)


async def test_it_runs_under_ainvoke_and_streams() -> None:
    graph = build_agent_graph(solution_model([TASK]), Playground(TASK))
    nodes = [name async for update in graph.astream({}, stream_mode="updates") for name in update]
    assert nodes[:4] == ["progress", "model", "tools", "model"]
    assert nodes[-1] == "progress"


def test_a_malformed_call_does_not_end_the_turn() -> None:
    model = ScriptedChatModel(script=['<tool_call>\n{"name": "list_items", \n</tool_call>', "Sorry."])
    state = build_agent_graph(model, Playground(TASK)).invoke({})
    assert outcomes_in(state["messages"])[0].failure.kind is FailureKind.MALFORMED_CALL  # type: ignore[union-attr]


def test_too_many_steps_end_the_episode() -> None:
    def again(messages: list[Any]) -> AIMessage:
        return calls_message(("list_items", {"room": "attic"}), position=len(messages))

    state = build_agent_graph(ScriptedChatModel(script=again), Playground(TASK), max_steps=3).invoke({})
    assert state["stop_reason"] == StopReason.STEP_LIMIT
    assert state["step"] == 4
    assert state.get("scores", []) == []


def test_without_an_environment_it_is_the_graph_people_deploy() -> None:
    model = ScriptedChatModel(script=[calls_message(("divide", {"a": 1, "b": 0})), "Division by zero."])
    graph = build_agent_graph(model, tools=[divide])
    state = graph.invoke({"messages": [HumanMessage("1 / 0?")]})
    assert state["messages"][-1].content == "Division by zero."
    assert {"messages", "step"} <= set(graph.channels)
    assert not {"turn", "scores", "evidence", "world", "stop_reason"} & set(graph.channels)  # each costs every step
    with pytest.raises(TaskError):
        build_agent_graph(model)
    with pytest.raises(TaskError):
        build_agent_graph(model, Playground(TASK), tools=[divide])


class Tagged(ScriptedChatModel):
    """A model whose tools come with a config of their own."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return super().bind_tools(tools, **kwargs).with_config(tags=["with tools"])


class Listener(BaseCallbackHandler):
    """Notes what a model call is started with."""

    def __init__(self) -> None:
        self.heard: list[tuple[list[str], list[str]]] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, *, tags: Any = None, **kwargs: Any) -> None:
        shown = [one["function"]["name"] for one in kwargs["invocation_params"]["tools"]]
        self.heard.append((sorted(set(tags or []) & {"mine", "with tools"}), shown))


@pytest.mark.parametrize("kind", [ScriptedChatModel, Tagged])
def test_the_model_is_called_with_its_tools_and_every_config(kind: type[ScriptedChatModel]) -> None:
    listener = Listener()
    graph = build_agent_graph(kind(script=["Done."]), tools=[divide])
    graph.invoke({"messages": [HumanMessage("Go.")]}, {"callbacks": [listener], "tags": ["mine"]})
    assert listener.heard == [(["mine", "with tools"] if kind is Tagged else ["mine"], ["divide"])]


def test_time_travel_goes_back_in_the_world_too() -> None:
    graph = build_agent_graph(solution_model([TASK]), Playground(TASK), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    first = graph.invoke({}, config)
    after_first_turn = next(
        past for past in graph.get_state_history(config) if past.next == ("model",) and len(past.values["scores"]) == 1
    )
    again = graph.invoke(None, after_first_turn.config)
    assert again["scores"] == first["scores"]
    assert [message.content for message in again["messages"]] == [message.content for message in first["messages"]]


def test_a_second_thread_starts_from_the_beginning() -> None:
    graph = build_agent_graph(solution_model([TASK]), Playground(TASK), checkpointer=InMemorySaver())
    states = [graph.invoke({}, {"configurable": {"thread_id": name}}) for name in "ab"]
    assert states[0]["scores"] == states[1]["scores"] == [{"state": 1.0, "response": 1.0, "value": 1.0}] * 3


def test_the_progress_node_works_alone_in_anyones_graph() -> None:
    builder = StateGraph(EpisodeState)
    builder.add_node("turns", ProgressNode(Playground(TASK)))
    builder.add_edge(START, "turns")
    builder.add_conditional_edges("turns", lambda state: END if state.get("stop_reason") else "turns")
    state = builder.compile().invoke({})
    assert state["stop_reason"] == StopReason.DONE
    assert [score["value"] for score in state["scores"]] == [0.0, 0.0, 0.0]


@pytest.fixture
def hang() -> Iterator[Callable[[Any], TurnScore]]:
    release = threading.Event()

    def scorer(evidence: Any) -> TurnScore:
        release.wait()
        return TurnScore(1, 1, 1)

    yield scorer
    release.set()


def test_a_scorer_that_hangs_or_raises_stops_the_graph_and_is_no_zero(hang: Any) -> None:
    with pytest.raises(TimeoutError, match="no answer within"):
        build_agent_graph(solution_model([TASK]), Playground(TASK), scorer=hang, scorer_timeout_s=0.05).invoke({})
    with pytest.raises(ScorerError):
        build_agent_graph(solution_model([TASK]), Playground(TASK), scorer=lambda evidence: TurnScore(2, 1, 1)).invoke(
            {}
        )
