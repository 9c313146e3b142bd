"""Odd tools and odd answers under every mount: a clear error at once or a recorded one, never a changed answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.prebuilt.tool_node import ToolCallRequest

from envtune_agents import HintEngine, build_agent_graph, with_hints
from envtune_agents.errors import HintRuleError
from envtune_agents.graph import HintedToolNode
from envtune_agents.hints import hint_tool_calls, outcomes_in
from envtune_agents.hints.answers import changed
from envtune_agents.hints.carried import History
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.testing import ScriptedChatModel, calls_message
from envtune_agents.types import Advice, CallOutcome, Scene, ToolCall

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
MEGABYTES = "x" * 10_000_000
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}

ANSWERS: dict[str, Any] = {
    "text": "fine",
    "nothing": "",
    "bytes": b"\xff\x00fine",
    "none": None,
    "number": 3.5,
    "object": {"b": [1, {"c": None}]},
    "list": [1, "two"],
    "texts": ["one", "two"],
    "image": [IMAGE],
    "image and text": [{"type": "text", "text": "a cat"}, IMAGE],
    "a value of no known type": {1, 2},
    "ten megabytes": MEGABYTES,
    "ten megabytes in a list": [MEGABYTES],
}
FAILURES: dict[str, Any] = {
    "object": {"error": "a is not known"},
    "list": [{"error": "a is not known"}],
    "text": "Error: a is not known",
    "blocks": [{"type": "text", "text": "Error: a is not known"}, IMAGE],
}


def tool(answer: Any, schema: Any = SCHEMA, name: str = "odd", description: str = "Do it.") -> BaseTool:
    return StructuredTool(name=name, description=description, args_schema=schema, func=lambda **_: answer)


def bare(tools: list[BaseTool], hints: Any) -> Any:
    return ToolNode(tools)


def wrapped(tools: list[BaseTool], hints: Any) -> Any:
    return ToolNode(tools, **hint_tool_calls(hints)._asdict())


def on_tools(tools: list[BaseTool], hints: Any) -> Any:
    return ToolNode(with_hints(tools, hints))


def own_node(tools: list[BaseTool], hints: Any) -> Any:
    return HintedToolNode(tools, hints=hints)


MOUNTS: list[Callable[[list[BaseTool], Any], Any]] = [wrapped, on_tools, own_node]
mounts = pytest.mark.parametrize("mount", MOUNTS, ids=lambda mount: mount.__name__)


def answered(node: Any, args: dict[str, Any], name: str = "odd") -> tuple[ToolMessage, CallOutcome | None]:
    graph: Any = StateGraph(MessagesState).add_node("tools", node).add_edge(START, "tools").compile()
    message = graph.invoke({"messages": [calls_message((name, args))]})["messages"][-1]
    assert isinstance(message, ToolMessage)
    return message, next(iter(outcomes_in([message])), None)


@mounts
@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("level", [0, 3])
def test_a_success_is_what_a_bare_node_gives(mount: Any, name: str, level: int) -> None:
    got, outcome = answered(mount([tool(ANSWERS[name])], level), {"a": "x"})
    plain, _ = answered(bare([tool(ANSWERS[name])], 0), {"a": "x"})
    assert outcome is not None
    assert (outcome.failure, outcome.hint, outcome.hint_error) == (None, None, None)
    assert outcome.content == outcome.raw_content
    if "megabytes" in name:
        assert len(outcome.content) < 110_000
        assert "first 100,000 are shown" in outcome.content
    else:
        assert got.content == plain.content
    assert got.status == plain.status == "success"


@mounts
@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_hinted_and_nothing_of_it_is_lost(mount: Any, name: str) -> None:
    got, outcome = answered(mount([tool(FAILURES[name])], 3), {"a": "x"})
    plain, _ = answered(bare([tool(FAILURES[name])], 0), {"a": "x"})
    silent, before = answered(mount([tool(FAILURES[name])], 0), {"a": "x"})
    assert before is not None
    assert silent.content == plain.content
    assert before.content == before.raw_content
    assert before.failure is not None
    assert outcome is not None
    assert outcome.raw_content == before.raw_content
    assert outcome.hint is not None
    assert outcome.hint.text in json.dumps(got.content, ensure_ascii=False).replace('\\\\\\"', '"').replace('\\"', '"')
    if isinstance(plain.content, list):
        assert got.content[:-1] == plain.content


@pytest.mark.parametrize("name", ANSWERS)
def test_plain_arguments_get_the_very_answer(name: str) -> None:
    if "megabytes" not in name:
        assert with_hints([tool(ANSWERS[name])], 3)[0].invoke({"a": "x"}) is ANSWERS[name]


def test_content_blocks_get_one_more_with_the_hint() -> None:
    """As the tools of MCP servers answer, which say an error in text."""
    plain = FAILURES["blocks"]
    got = with_hints([tool(plain)], 3)[0].invoke({"a": "x"})
    assert got[:-1] == plain
    assert "a = " in json.loads(got[-1]["text"])["hint"]
    assert with_hints([tool(plain)], 0)[0].invoke({"a": "x"}) is plain


BROKEN: dict[str, Any] = {
    "properties is a list": {"type": "object", "properties": ["a"]},
    "a property is text": {"type": "object", "properties": {"a": "string"}},
    "a type is an object": {"type": "object", "properties": {"a": {"type": {"x": 1}}}},
    "required is a number": {"type": "object", "properties": {"a": {"type": "string"}}, "required": 1},
    "anyOf is text": {"type": "object", "properties": {"a": {"anyOf": "x"}}},
    "no schema at all": {},
    "a loop": {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}},
}


@mounts
@pytest.mark.parametrize("schema", BROKEN)
def test_a_broken_schema_never_changes_an_answer(mount: Any, schema: str) -> None:
    for answer in ("fine", {"error": "no"}):
        for level in (0, 3):
            got, outcome = answered(mount([tool(answer, BROKEN[schema])], level), {"a": 5})
            plain, _ = answered(bare([tool(answer, BROKEN[schema])], 0), {"a": 5})
            assert outcome is not None
            assert outcome.raw_content == plain.content
            assert got.content == plain.content or outcome.hint is not None
            if level == 0 or answer == "fine":
                assert got.content == plain.content
            elif " is " in schema:
                assert outcome.hint_error is not None
                assert "'odd' was read in part" in outcome.hint_error


@mounts
def test_a_tool_without_a_description_works(mount: Any) -> None:
    _, outcome = answered(mount([tool("fine", description="")], 3), {"b": 1})
    assert outcome is not None
    assert outcome.failure is None
    _, outcome = answered(mount([tool({"error": "no"}, description="")], 3), {"b": 1})
    assert outcome is not None
    assert outcome.hint is not None


def test_two_tools_of_one_name_are_refused_at_once() -> None:
    pair = [tool("one"), tool("two")]
    for load in (
        with_hints,
        HintedToolNode,
        lambda tools: build_agent_graph(ScriptedChatModel(script=[]), tools=tools),
    ):
        with pytest.raises(HintRuleError, match="given twice: odd"):
            load(pair)


class Fails:
    """A rule that raises."""

    name = "fails"

    def __call__(self, scene: Scene) -> Advice | None:
        raise OSError("no such table")


@mounts
def test_a_rule_that_raises_is_recorded_under_every_mount(mount: Any) -> None:
    got, outcome = answered(mount([tool({"error": "no"})], HintEngine((Fails(),))), {"a": "x"})
    assert got.content == '{"error": "no"}'
    assert outcome is not None
    assert outcome.hint_error == "rule 'fails': OSError: no such table"
    assert outcome == replace(outcome, hint=None)


class Shrugs(Playground):
    """A world whose calls answer with anything."""

    answer: Any = None

    def run_call(self, call: ToolCall) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [b"bytes", None, {"error": "no"}, 7, {1}])
def test_a_world_may_answer_with_anything(answer: Any) -> None:
    world = Shrugs(playground_tasks(seed=0, n=1)[0])
    world.answer = answer
    model = ScriptedChatModel(script=[calls_message(("list_items", {})), "Done."])
    state = build_agent_graph(model, world, hints=3).invoke({})
    assert all(isinstance(one.raw_content, str) for one in outcomes_in(state["messages"]))
    assert outcomes_in(state["messages"])


@pytest.mark.parametrize("mount", [wrapped, own_node])
def test_rules_see_what_the_conversation_holds_latest_first(mount: Any) -> None:
    """An outcome is read from its message only when a rule asks for it."""
    node: Any = mount([tool({"error": "closed today"})], 3)
    graph: Any = StateGraph(MessagesState).add_node("tools", node).add_edge(START, "tools").compile()
    state: Any = {"messages": []}
    for _ in range(2):
        state = graph.invoke({"messages": [*state["messages"], calls_message(("odd", {"a": "x"}))]})
    first, again = outcomes_in(state["messages"])
    assert first.hint is None
    assert again.hint is not None
    assert again.hint.rule == "call.same_again"
    history = History(state["messages"])
    assert list(reversed(history)) == [again, first]
    assert history[-1] == again
    assert history[:1] == [first]
    assert history.same_calls(ToolCall("odd", {"a": "x"}), 8) == [again, first]
    assert history.same_calls(ToolCall("odd", {"a": "x"}), 1) == [again]
    assert history.same_calls(ToolCall("odd", {"a": "y"}), 8) == []
    assert history.same_calls(ToolCall("even", {"a": "x"}), 8) == []


@pytest.mark.parametrize("answer", [ANSWERS["text"], FAILURES["object"], FAILURES["list"], FAILURES["text"]])
def test_the_short_way_of_a_text_ends_where_the_long_one_does(answer: Any) -> None:
    """With a detector every answer goes the long way, through a record of its own."""
    short, long = (
        answered(ToolNode([tool(answer)], **hint_tool_calls(3, detect=detect)._asdict()), {"a": "x"})
        for detect in (None, lambda call, raw: None)
    )
    assert short[1] is not None
    assert long[1] is not None
    assert replace(short[1], duration_s=0.0) == replace(long[1], duration_s=0.0)
    assert short[0].content == long[0].content
    assert short[0].additional_kwargs["outcome"].keys() == long[0].additional_kwargs["outcome"].keys()


def test_a_message_that_a_tool_keeps_is_not_written_to() -> None:
    kept = ToolMessage("fine", tool_call_id="kept", additional_kwargs={"mine": 1})
    runtime: Any = None
    request = ToolCallRequest({"name": "odd", "args": {"a": "x"}, "id": "1"}, None, {"messages": []}, runtime)
    wrap = hint_tool_calls(3).wrap_tool_call
    for _ in range(2):
        message = wrap(request, lambda _: kept)
        assert message.additional_kwargs["mine"] == 1
        assert outcomes_in([message])[0].call_id == "1"
        assert kept.additional_kwargs == {"mine": 1}
        assert kept.model_fields_set == {"content", "tool_call_id", "additional_kwargs"}


def test_a_changed_message_is_the_copy_that_pydantic_makes() -> None:
    message = AIMessage("a", response_metadata={"b": 1}, extra_field={"c": 2})
    fields = {"response_metadata": {"b": 2}, "name": "n"}
    got, wanted = changed(message, fields), message.model_copy(update=fields)
    assert got == wanted
    assert got.model_fields_set == wanted.model_fields_set
    assert got.model_extra == wanted.model_extra == {"extra_field": {"c": 2}}
    assert got.model_extra is not message.model_extra
    assert (message.name, message.response_metadata) == (None, {"b": 1})
