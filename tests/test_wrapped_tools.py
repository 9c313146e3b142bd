from __future__ import annotations

import asyncio
import copy
import json
import threading
import time
from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool, Tool, ToolException, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode, ToolRuntime
from langgraph.types import Command, interrupt
from pydantic import BaseModel, PrivateAttr

from envtune_agents import HintDial, HintEngine, with_hints
from envtune_agents.errors import HintRuleError
from envtune_agents.graph import HintedToolNode
from envtune_agents.hints import hint_tool_calls, outcomes_in
from envtune_agents.testing import calls_message
from envtune_agents.types import Advice, FailureKind, Scene, ToolCall, ToolFailure


@tool
def divide(a: int, b: int) -> str:
    """Divide a by b."""
    return str(a / b)


@tool
def soft(word: str) -> dict[str, str]:
    """Answer an error politely."""
    return {"error": f"no {word}"}


@tool
async def adivide(a: int, b: int) -> str:
    """Divide a by b, in the event loop."""
    await asyncio.sleep(0)
    return str(a / b)


@tool(response_format="content_and_artifact")
def fetch(page: str) -> tuple[str, list[int]]:
    """Fetch a page."""
    return ("Error: gone" if page == "old" else "text"), [1, 2]


@tool
def sleepy(seconds: float) -> str:
    """Sleep in the caller's thread."""
    time.sleep(seconds)
    return threading.current_thread().name


class Own(BaseTool):
    """A tool as a class, with a field and private state of its own."""

    name: str = "own"
    description: str = "Add to the base."
    base: int = 10
    _calls: int = PrivateAttr(default=0)

    def _run(self, x: int) -> int:
        self._calls += 1
        if x < 0:
            raise ValueError("x must not be negative")
        return self.base + x


class OwnAsync(Own):
    async def _arun(self, x: int) -> int:
        return self._run(x)


TOOLS = [divide, soft, adivide, fetch, sleepy, Own(), OwnAsync(name="own_async")]


def hinted(name: str, **options: Any) -> BaseTool:
    return next(tool for tool in with_hints(TOOLS, **options) if tool.name == name)


def as_call(name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "args": args, "id": "c1", "type": "tool_call"}


def run(tools: Sequence[BaseTool], name: str, args: dict[str, Any], **state: Any) -> ToolMessage:
    """One call through LangGraph's own `ToolNode`, unwrapped."""
    graph: Any = StateGraph(MessagesState).add_node("tools", ToolNode(tools)).add_edge(START, "tools").compile()
    message = graph.invoke({"messages": [HumanMessage("go"), calls_message((name, args))], **state})["messages"][-1]
    assert isinstance(message, ToolMessage)
    return message


FAILURES = [
    ("divide", {"a": 1, "b": 0}, FailureKind.TOOL_ERROR, "error", "division by zero"),
    ("divide", {"a": "one", "b": 1}, FailureKind.WRONG_TYPE, "error", "valid integer"),
    ("divide", {"a": 1, "c": 1}, FailureKind.UNKNOWN_ARGUMENT, "error", "b: Field required"),
    ("divide", {}, FailureKind.MISSING_ARGUMENT, "error", "a: Field required"),
    ("soft", {"word": "luck"}, FailureKind.TOOL_ERROR, "success", "no luck"),
    ("adivide", {"a": 1, "b": 0}, FailureKind.TOOL_ERROR, "error", "division by zero"),
    ("own", {"x": -1}, FailureKind.TOOL_ERROR, "error", "must not be negative"),
    ("own_async", {"x": -1}, FailureKind.TOOL_ERROR, "error", "must not be negative"),
]


@pytest.mark.parametrize(("name", "args", "kind", "status", "said"), FAILURES)
@pytest.mark.parametrize("level", [0, 3])
async def test_a_failed_call_answers(
    name: str, args: dict[str, Any], kind: FailureKind, status: str, said: str, level: int
) -> None:
    message = await hinted(name, hints=level).ainvoke(as_call(name, args))
    assert (message.name, message.tool_call_id, message.status) == (name, "c1", status)
    (outcome,) = outcomes_in([message])
    assert outcome.failure is not None
    assert outcome.failure.kind is kind
    assert outcome.args == args
    assert said in outcome.raw_content
    assert message.content == outcome.content
    assert "Traceback" not in message.content
    if level == 0:
        assert message.content == outcome.raw_content
    elif kind is not FailureKind.TOOL_ERROR:
        assert outcome.hint is not None
        assert json.loads(message.content)["hint"] == outcome.hint.text
    if name in ("divide", "soft", "own"):
        again = hinted(name, hints=level).invoke(as_call(name, args))
        assert (again.content, again.status) == (message.content, message.status)


@pytest.mark.parametrize(("name", "args", "kind", "status", "said"), FAILURES)
async def test_plain_arguments_get_a_plain_answer(
    name: str, args: dict[str, Any], kind: FailureKind, status: str, said: str
) -> None:
    answer = await hinted(name).ainvoke(args)
    assert isinstance(answer, dict if name == "soft" else str)
    assert said in str(answer)
    assert await hinted("adivide").ainvoke({"a": 1, "b": 2}) == "0.5"


class Always:
    """A rule that has something to say about every failure."""

    name = "always"

    def __call__(self, scene: Scene) -> Advice | None:
        return Advice(f"It failed. Tools: {len(scene.tools)}.")


def test_a_dictionary_stays_one_and_the_rules_see_the_whole_menu() -> None:
    engine = HintEngine(rules=(Always(),))
    assert hinted("soft", hints=engine).invoke({"word": "luck"}) == {
        "error": "no luck",
        "hint": f"It failed. Tools: {len(TOOLS)}.",
    }


def test_bad_arguments_read_as_under_a_tool_node() -> None:
    """The very words of a `ToolNode` around the bare tool, with the wrappers of the same engine."""
    call = calls_message(("divide", {"a": 1, "c": 1}))
    node = ToolNode([divide], **hint_tool_calls(3)._asdict())
    graph = StateGraph(MessagesState).add_node("tools", node).add_edge(START, "tools").compile()
    expected = graph.invoke({"messages": [call]})["messages"][-1]
    got = run(with_hints([divide]), "divide", {"a": 1, "c": 1})
    assert (got.content, got.status, got.name) == (expected.content, expected.status, expected.name)


@pytest.mark.parametrize("original", TOOLS, ids=lambda original: original.name)
def test_a_tool_looks_the_same_from_outside(original: BaseTool) -> None:
    (copied,) = with_hints([original])
    fields = ["name", "description", "args_schema", "metadata", "tags", "return_direct", "response_format", "extras"]
    assert [getattr(copied, field) for field in fields] == [getattr(original, field) for field in fields]
    assert convert_to_openai_tool(copied) == convert_to_openai_tool(original)
    assert isinstance(copied, type(original))
    assert copied.args == original.args


def test_the_given_tools_stay_as_they_are() -> None:
    own = Own(base=1, metadata={"a": 1}, tags=["t"], return_direct=True)
    (copied,) = with_hints([own])
    assert (copied.base, copied.metadata, copied.tags, copied.return_direct) == (1, {"a": 1}, ["t"], True)  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        divide.invoke({"a": 1, "b": 0})
    with pytest.raises(ValueError, match="negative"):
        own.invoke({"x": -1})
    assert "negative" in copy.deepcopy(copied).invoke({"x": -1})
    assert type(with_hints([copied])[0]) is type(copied)


def test_functions_and_schemaless_tools_are_taken() -> None:
    def shout(word: str) -> str:
        """Shout."""
        return word.upper()

    def boom(text: str) -> str:
        raise ValueError("boom")

    legacy = Tool(name="legacy", func=boom, description="Old style.")
    loud, old = with_hints([shout, legacy])
    assert loud.invoke({"word": "a"}) == "A"
    assert convert_to_openai_tool(old) == convert_to_openai_tool(legacy)
    assert old.invoke("x") == "Error: boom"


def test_what_is_no_tool_is_named() -> None:
    def silent(word: str) -> str:
        return word

    with pytest.raises(HintRuleError, match=r"Cannot make a tool of 'silent': .*docstring"):
        with_hints([silent])


class QuotaError(Exception):
    """An error that says what it is by its name alone."""


def test_an_exception_of_your_own_is_told_by_its_name() -> None:
    def spend(amount: int) -> str:
        """Spend money."""
        raise QuotaError(amount)

    def pay(amount: int) -> str:
        """Pay."""
        raise QuotaError("The card has no money.")

    spending, paying = with_hints([spend, pay], hints=0)
    assert spending.invoke({"amount": 7}) == "Error: QuotaError: 7"
    assert paying.invoke({"amount": 7}) == "Error: The card has no money."


async def test_a_coroutine_called_from_invoke_is_the_developers_error() -> None:
    (waiting,) = with_hints([adivide])
    with pytest.raises(NotImplementedError, match="sync"):
        waiting.invoke({"a": 4, "b": 2})
    assert await waiting.ainvoke({"a": 4, "b": 2})


@pytest.mark.parametrize(
    ("name", "args"),
    [("divide", {"a": 1, "b": 2}), ("soft", {"word": "é"}), ("fetch", {"page": "old"}), ("own", {"x": 1})],
)
def test_level_0_changes_nothing_that_a_tool_answers(name: str, args: dict[str, Any]) -> None:
    original = next(tool for tool in TOOLS if tool.name == name)
    assert hinted(name, hints=0).invoke(args) == original.invoke(args)
    message = hinted(name, hints=0).invoke(as_call(name, args))
    assert message.model_copy(update={"additional_kwargs": {}}) == original.invoke(as_call(name, args))
    assert outcomes_in([message])[0].hint is None


def test_an_artifact_is_kept() -> None:
    engine = HintEngine(rules=(Always(),))
    message = hinted("fetch", hints=engine).invoke(as_call("fetch", {"page": "old"}))
    assert message.artifact == [1, 2]
    assert json.loads(message.content)["error"] == "Error: gone"
    assert hinted("fetch").invoke(as_call("fetch", {"page": "new"})).artifact == [1, 2]


def test_injected_arguments_work_and_are_not_shown() -> None:
    class Wide(MessagesState):
        city: str

    @tool
    def look(
        room: str,
        city: Annotated[str, InjectedState("city")],
        call_id: Annotated[str, InjectedToolCallId],
        runtime: ToolRuntime,
        config: RunnableConfig,
    ) -> str:
        """Look into a room."""
        if room == "cellar":
            raise ValueError("dark")
        return f"{room} in {city} {call_id} {len(runtime.state['messages'])} {runtime.tool_call_id} {bool(config)}"

    graph = StateGraph(Wide).add_node("tools", ToolNode(with_hints([look]))).add_edge(START, "tools").compile()

    def answer(args: dict[str, Any], city: Any = "Rome") -> ToolMessage:
        message: ToolMessage = graph.invoke({"messages": [calls_message(("look", args))], "city": city})["messages"][-1]
        return message

    assert answer({"room": "attic"}).content == "attic in Rome call_0_0 1 call_0_0 True"
    dark = answer({"room": "cellar"})
    assert outcomes_in([dark])[0].args == {"room": "cellar"}
    assert dark.content == "Error: dark"
    bad = answer({"roof": "attic"})
    assert "Rome" not in bad.content
    assert "room: Field required" in bad.content
    assert outcomes_in([bad])[0].failure.kind is FailureKind.UNKNOWN_ARGUMENT  # type: ignore[union-attr]
    assert "city" not in answer({"roof": "attic"}, city=5).content


@pytest.mark.parametrize("timeout_s", [None, 5])
def test_interrupts_stop_the_graph_and_resume(timeout_s: float | None) -> None:
    class Yes(BaseModel):
        yes: bool

    @tool
    def ask(question: str) -> str:
        """Ask a person."""
        return f"they said {interrupt(question)}"

    node = ToolNode(with_hints([ask], call_timeout_s=timeout_s))
    graph = StateGraph(MessagesState).add_node("tools", node).add_edge(START, "tools")
    compiled = graph.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    paused = compiled.invoke({"messages": [calls_message(("ask", {"question": "Really?"}))]}, config)
    assert paused["__interrupt__"][0].value == "Really?"
    assert compiled.invoke(Command(resume="yes"), config)["messages"][-1].content == "they said yes"


def test_commands_and_lists_of_messages_pass_through() -> None:
    @tool
    def leave(call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Say goodbye."""
        return Command(update={"messages": [ToolMessage("Error: bye", tool_call_id=call_id)]})

    @tool
    def both(call_id: Annotated[str, InjectedToolCallId]) -> list[Any]:
        """Say it and go on."""
        return [ToolMessage("Error: bye", tool_call_id=call_id), Command(update={})]

    for each in (leave, both):
        assert run(with_hints([each]), each.name, {}).content == "Error: bye"


def test_what_a_tool_handles_itself_keeps_its_words() -> None:
    @tool
    def stubborn() -> str:
        """Raise."""
        raise ToolException("not today")

    stubborn.handle_tool_error = "Handled: not today."
    (copied,) = with_hints([stubborn])
    message = copied.invoke(as_call("stubborn", {}))
    assert (message.content, message.status) == ("Handled: not today.", "error")
    assert outcomes_in([message])[0].failure == ToolFailure(FailureKind.TOOL_ERROR, "Handled: not today.")


class Slow(BaseTool):
    name: str = "slow"
    description: str = "Slow."

    def _run(self, seconds: float) -> str:
        time.sleep(seconds)
        return "awake"


async def test_a_call_that_hangs_fails() -> None:
    @tool
    async def asleep(seconds: float) -> str:
        """Sleep in the event loop."""
        await asyncio.sleep(seconds)
        return "awake"

    for each in with_hints([asleep, sleepy, Slow()], call_timeout_s=0.05):
        message = await each.ainvoke(as_call(each.name, {"seconds": 5}))
        assert outcomes_in([message])[0].failure.kind is FailureKind.TIMEOUT  # type: ignore[union-attr]
    assert "0.05 seconds" in hinted("sleepy", call_timeout_s=0.05).invoke({"seconds": 5})


@pytest.mark.parametrize("original", [sleepy, Slow()], ids=lambda original: original.name)
def test_a_call_that_hangs_does_not_hold_the_end_of_the_program(original: BaseTool) -> None:
    (copied,) = with_hints([original], call_timeout_s=0.05)
    started = time.perf_counter()
    assert "no answer" in asyncio.run(copied.ainvoke({"seconds": 30}))
    assert time.perf_counter() - started < 20


async def test_a_blocking_tool_does_not_block_the_loop() -> None:
    everybody_is_here = threading.Barrier(4)

    @tool
    def meet() -> str:
        """Wait for the other three, which come only if the event loop is free."""
        everybody_is_here.wait(30)
        return threading.current_thread().name

    (blocking, quick) = with_hints([meet, Own()])
    *names, answer = await asyncio.gather(*(blocking.ainvoke({}) for _ in range(4)), quick.ainvoke({"x": 1}))
    assert answer == 11
    assert len({*names, threading.current_thread().name}) == 5


def test_a_flood_is_cut() -> None:
    @tool
    def flood() -> str:
        """Answer a lot."""
        return "x" * 10_000

    (copied,) = with_hints([flood], max_content_chars=100)
    assert len(copied.invoke({})) < 250
    assert "10,000 characters" in copied.invoke(as_call("flood", {})).content


def test_the_owner_recognises_polite_failures() -> None:
    def detect(call: ToolCall, raw: str) -> ToolFailure | None:
        return ToolFailure(FailureKind.EMPTY_RESULT, "nothing") if raw == "text" else None

    engine = HintEngine(rules=(Always(),), dial=HintDial(1))
    (copied,) = with_hints([fetch], engine, detect=detect)
    assert json.loads(copied.invoke({"page": "x"})) == {"result": "text", "hint": "It failed. Tools: 1."}


@pytest.mark.parametrize("node", [HintedToolNode, lambda tools: ToolNode(tools, **hint_tool_calls(3)._asdict())])
def test_two_mounts_give_one_hint(node: Any) -> None:
    graph = StateGraph(MessagesState).add_node("tools", node(with_hints([divide, adivide]))).add_edge(START, "tools")
    message = graph.compile().invoke({"messages": [calls_message(("divide", {"a": 1}))]})["messages"][-1]
    assert message.content == hinted("divide").invoke(as_call("divide", {"a": 1})).content
    assert "hint" not in outcomes_in([message])[0].raw_content


def test_the_node_answers_for_an_unknown_tool() -> None:
    message = run(with_hints([divide]), "devide", {})
    assert "not a valid tool" in message.content
    assert outcomes_in([message]) == []


async def test_a_tool_with_a_plain_json_schema_is_taken() -> None:
    """The shape of tools that come from an MCP server: a dictionary for a schema, a coroutine, an artifact."""

    async def served(**args: Any) -> tuple[str, dict[str, Any]]:
        if args.get("x") == 0:
            raise ToolException("the server refused")
        return str(args), {"raw": args}

    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    remote = StructuredTool(
        name="remote",
        description="Remote.",
        args_schema=schema,
        coroutine=served,
        response_format="content_and_artifact",
    )
    (copied,) = with_hints([remote])
    assert (await copied.ainvoke(as_call("remote", {"x": 1}))).artifact == {"raw": {"x": 1}}
    refused = await copied.ainvoke(as_call("remote", {"x": 0}))
    assert (refused.content, refused.status) == ("Error: the server refused", "error")
