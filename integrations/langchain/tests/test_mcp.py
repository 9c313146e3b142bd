from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.errors import GraphInterrupt
from langgraph.types import Command

from envtune_agents import HintDial, HintEngine
from envtune_agents.hint_rules import DEFAULT_RULES
from envtune_agents.hints import outcomes_in
from envtune_agents.testing import ScriptedChatModel, calls_message
from envtune_agents.types import Advice, CallOutcome, FailureKind, Scene
from envtune_langchain import HintMiddleware, mcp_interceptor

pytest.importorskip("langchain_mcp_adapters")
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.interceptors import MCPToolCallRequest, ToolCallInterceptor
from langchain_mcp_adapters.tools import load_mcp_tools
from mcp.shared.memory import create_connected_server_and_client_session

SERVER = Path(__file__).with_name("mcp_server.py")
DESK: Any = {"desk": {"transport": "stdio", "command": sys.executable, "args": [str(SERVER)]}}
GO = {"messages": [HumanMessage("go")]}


def server_in_memory() -> Any:
    """The same server in this process: the real protocol, without the seconds that a process takes to start."""
    spec = importlib.util.spec_from_file_location("mcp_server", SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.server


@asynccontextmanager
async def desk(*interceptors: ToolCallInterceptor, **options: Any) -> AsyncIterator[dict[str, BaseTool]]:
    """The server's tools by name."""
    async with create_connected_server_and_client_session(server_in_memory()) as session:
        tools = await load_mcp_tools(session, tool_interceptors=list(interceptors), server_name="desk", **options)
        yield {tool.name: tool for tool in tools}


async def answer(tool: BaseTool, **args: Any) -> ToolMessage:
    message = await tool.ainvoke({"name": tool.name, "args": args, "id": "call_1", "type": "tool_call"})
    assert isinstance(message, ToolMessage)
    return message


def shown(message: ToolMessage) -> tuple[Any, ...]:
    """What a message holds, without the random ids of its blocks."""
    blocks = [{key: part for key, part in block.items() if key != "id"} for block in message.content]  # type: ignore[union-attr]
    return blocks, message.status, message.artifact, message.name, message.tool_call_id


def texts(message: ToolMessage) -> list[str]:
    assert isinstance(message.content, list)
    return [str(block["text"]) for block in message.content if isinstance(block, dict) and block["type"] == "text"]


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("reserve", {"item": "lamp", "count": 2}),
    ("reserve", {"item": "lamp", "count": 9}),
    ("reserve", {"itm": "lamp", "count": 2}),
    ("look_up", {"name": "Ada"}),
    ("look_up", {"name": "nobody"}),
    ("picture", {"good": True}),
    ("picture", {"good": False}),
    ("bare", {}),
    ("two_parts", {}),
]


async def test_successes_and_level_0_are_passed_on_as_they_are() -> None:
    async with desk() as plain, desk(mcp_interceptor(0)) as off, desk(mcp_interceptor(3)) as on:
        for name, args in CALLS:
            wanted = shown(await answer(plain[name], **args))
            assert shown(await answer(off[name], **args)) == wanted
            if (name, args) in (CALLS[0], CALLS[3], CALLS[5]):
                assert shown(await answer(on[name], **args)) == wanted


class Says:
    """A rule that answers every failure, so that its place can be seen."""

    name = "says"

    def __call__(self, scene: Scene) -> Advice | None:
        return Advice(f"{scene.call.name}: {scene.failure.kind.value}, {len(scene.history)} before.")


async def test_every_way_to_fail_is_hinted() -> None:
    seen: list[CallOutcome] = []
    tools: list[BaseTool] = []
    interceptor = mcp_interceptor(HintEngine((Says(),)), tools=tools, on_outcome=seen.append)
    async with desk(interceptor) as desk_tools:
        tools += desk_tools.values()
        raised = await answer(desk_tools["reserve"], item="lamp", count=9)
        schema = await answer(desk_tools["reserve"], itm="lamp", count=2)
        soft = await answer(desk_tools["look_up"], name="nobody")
        mixed = await answer(desk_tools["picture"], good=False)
        bare = await answer(desk_tools["bare"])
        parts = await answer(desk_tools["two_parts"])
    assert texts(raised) == [
        "Error executing tool reserve: only 3 x lamp left",
        '{"hint": "reserve: tool_error, 0 before."}',
    ]
    assert texts(schema)[1] == '{"hint": "reserve: unknown_argument, 0 before."}'
    assert [json.loads(text) for text in texts(soft)] == [
        {"error": "no nobody"},
        {"hint": "look_up: tool_error, 0 before."},
    ]
    assert soft.artifact == {"structured_content": {"error": "no nobody"}}
    assert [block["type"] for block in mixed.content if isinstance(block, dict)] == ["image", "text", "text"]
    assert texts(mixed) == ["Error: too dark", '{"hint": "picture: tool_error, 0 before."}']
    assert texts(bare) == ['{"hint": "bare: tool_error, 0 before."}']
    assert bare.artifact == {"structured_content": {"error": "no paper"}}
    assert texts(parts) == ["Error: first", "second", '{"hint": "two_parts: tool_error, 0 before."}']
    assert [message.status for message in (raised, schema, soft, mixed, bare, parts)] == [
        "error", "error", "success", "success", "success", "error",
    ]  # fmt: skip
    assert {message.tool_call_id for message in (raised, soft, parts)} == {"call_1"}
    assert [outcome.name for outcome in seen] == ["reserve", "reserve", "look_up", "picture", "bare", "two_parts"]
    assert all("hint" not in outcome.raw_content for outcome in seen)


async def test_an_agent_is_led_by_the_tools_it_sees_over_stdio() -> None:
    script = [
        calls_message(("reserve", {"itm": "lamp", "count": 2}), position=1),
        calls_message(("reserve", {"item": "lamp", "count": 2}), position=3),
        calls_message(("look_up", {"name": "nobody"}), position=5),
        "Done.",
    ]
    interceptor = mcp_interceptor(HintEngine((*DEFAULT_RULES, Says())))
    client = MultiServerMCPClient(DESK)
    async with client.session("desk") as session:
        tools = await load_mcp_tools(session, tool_interceptors=[interceptor])
        state = await create_agent(ScriptedChatModel(script=script), tools).ainvoke(GO)
    first, second, third = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    assert "Its arguments are: item (string, required), count (integer, required)" in texts(first)[1]
    assert (first.status, first.name, first.tool_call_id) == ("error", "reserve", "call_1_0")
    assert texts(second) == ["reserved 2 x lamp"]
    assert json.loads(texts(third)[0]) == {"error": "no nobody"}
    assert texts(third)[1].startswith('{"hint": ')
    assert third.artifact == {"structured_content": {"error": "no nobody"}}
    assert state["messages"][-1].content == "Done."


async def test_rules_see_the_conversation_and_names_as_the_model_knows_them() -> None:
    script = [
        calls_message(("desk_look_up", {"name": "Ada"}), position=1),
        calls_message(("desk_look_up", {"name": "nobody"}), position=3),
        "Done.",
    ]
    async with desk(mcp_interceptor(HintEngine((Says(),))), tool_name_prefix=True) as tools:
        state = await create_agent(ScriptedChatModel(script=script), list(tools.values())).ainvoke(GO)
    last = [message for message in state["messages"] if isinstance(message, ToolMessage)][-1]
    assert texts(last)[1] == '{"hint": "desk_look_up: tool_error, 1 before."}'


@pytest.mark.parametrize("outer", [0, 3])
async def test_beside_the_middleware_every_call_is_hinted_once(outer: int) -> None:
    engine = HintEngine((Says(),), HintDial(outer))
    script = [calls_message(("look_up", {"name": "nobody"}), ("two_parts", {})), "Done."]
    async with desk(mcp_interceptor(HintEngine((Says(),)))) as tools:
        agent = create_agent(
            ScriptedChatModel(script=script), list(tools.values()), middleware=[HintMiddleware(engine)]
        )
        state = await agent.ainvoke(GO)
    messages = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    for message in messages:
        assert sum('"hint"' in text for text in texts(message)) == 1
        (outcome,) = outcomes_in([message])
        assert outcome.hint is not None
        assert "hint" not in outcome.raw_content


async def test_a_server_that_is_slow_is_answered_for() -> None:
    seen: list[CallOutcome] = []
    interceptor = mcp_interceptor(HintEngine((Says(),)), call_timeout_s=0.2, on_outcome=seen.append)

    async def slow(_: MCPToolCallRequest) -> Any:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError as error:
            raise ExceptionGroup("unhandled errors", [BrokenPipeError("gone")]) from error

    result = await interceptor(MCPToolCallRequest("nap", {}, "desk"), slow)
    assert result.isError
    assert result.content[0].text == "no answer within 0.2 seconds"
    assert [outcome.failure.kind for outcome in seen if outcome.failure] == [FailureKind.TIMEOUT]


async def test_without_known_tools_a_failure_is_still_one() -> None:
    async with desk(mcp_interceptor(HintEngine((Says(),)))) as tools:
        assert texts(await answer(tools["look_up"], name="nobody"))[1] == '{"hint": "look_up: tool_error, 0 before."}'
        assert texts(await answer(tools["look_up"], name="Ada"))[1:] == []


async def test_a_server_that_is_gone_is_answered_for() -> None:
    client = MultiServerMCPClient(DESK)
    async with client.session("desk") as session:
        tools = await load_mcp_tools(session, tool_interceptors=[mcp_interceptor(HintEngine((Says(),)))])
        crash = next(tool for tool in tools if tool.name == "crash")
        message = await answer(crash)
    assert message.status == "error"
    assert "hint" in texts(message)[-1]


async def test_interrupts_commands_and_messages_pass_through() -> None:
    request = MCPToolCallRequest("f", {}, "desk")
    interceptor = mcp_interceptor()
    assert isinstance(interceptor, ToolCallInterceptor)

    async def interrupts(_: MCPToolCallRequest) -> Any:
        raise GraphInterrupt

    with pytest.raises(GraphInterrupt):
        await interceptor(request, interrupts)
    for made in (Command(update={}), ToolMessage("Error: mine", tool_call_id="1")):

        async def gives(_: MCPToolCallRequest, made: Any = made) -> Any:
            return made

        assert await interceptor(request, gives) is made
