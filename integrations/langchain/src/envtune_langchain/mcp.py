"""The hint engine between an agent and its MCP servers: an interceptor for langchain-mcp-adapters.

In: what an MCP server answers to a call. Out: the same answer, with a hint if the call failed. It works inside and
outside of LangGraph and needs no change to the agent. It never sees a call of an unknown tool or one that does not
parse, for these do not reach a server: `HintMiddleware` sees them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.messages.content import create_text_block

from envtune_agents.deadline import await_with_deadline
from envtune_agents.errors import require
from envtune_agents.hints import (
    FailureDetector,
    HintDial,
    HintEngine,
    OutcomeScribe,
    as_engine,
    classify_failure,
    failure_kind,
    outcomes_in,
)
from envtune_agents.types import CallOutcome, FailureKind, ToolCall, ToolFailure

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool
    from langchain_mcp_adapters.interceptors import MCPToolCallRequest
    from mcp.types import CallToolResult

INSTALL = "pip install -e 'integrations/langchain[mcp]'"
Result = Any
"""What a call gives the adapters: a `CallToolResult`, a `ToolMessage` or a `Command`."""


def mcp_interceptor(
    hints: HintEngine | HintDial | int = 3,
    *,
    tools: Sequence[BaseTool] = (),
    detect: FailureDetector | None = None,
    call_timeout_s: float | None = None,
    on_outcome: Callable[[CallOutcome], None] | None = None,
) -> McpInterceptor:
    """An interceptor that answers the failed calls of MCP tools with hints.

        client = MultiServerMCPClient(servers, tool_interceptors=[mcp_interceptor()])  # the one line
        tools = await client.get_tools()

    A failed call is one that the server marks as an error, whose answer spells one out, or that `detect` recognises. A
    server that cannot be reached or takes longer than `call_timeout_s` seconds is answered for, instead of ending the
    run. `hints` is an engine, a dial or a level; at level 0, and where no rule has something to say, the server's
    answer is passed on as it is. A hint is a text block of its own behind the server's; the server's own words and its
    structured content, which the model does not see, stay as they are.

    Inside LangGraph the visible tools are known; elsewhere give `tools`, a list that may be filled later. `on_outcome`
    is called with the outcome of every call, for a log of your own.
    """
    require("mcp.types", feature="The MCP interceptor", install=INSTALL)
    return McpInterceptor(OutcomeScribe(as_engine(hints), detect), tools, call_timeout_s, on_outcome)


class McpInterceptor:
    """What `mcp_interceptor` gives: a `ToolCallInterceptor` of langchain-mcp-adapters. Holds no conversation."""

    def __init__(
        self,
        scribe: OutcomeScribe,
        tools: Sequence[BaseTool],
        call_timeout_s: float | None,
        on_outcome: Callable[[CallOutcome], None] | None,
    ) -> None:
        self._scribe = scribe
        self._tools = tools
        self._call_timeout_s = call_timeout_s
        self._on_outcome = on_outcome

    async def __call__(
        self, request: MCPToolCallRequest, handler: Callable[[MCPToolCallRequest], Awaitable[Result]]
    ) -> Result:
        """The server's answer; with a hint if the call failed. Interrupts are raised again."""
        visible = getattr(request.runtime, "tools", None) or self._tools
        call = ToolCall(_name_shown(request, visible), request.args, getattr(request.runtime, "tool_call_id", "") or "")
        started, caught = time.perf_counter(), None
        try:
            result = await await_with_deadline(handler(request), self._call_timeout_s)
        except Exception as error:
            caught = self._failure(error, call, visible, time.perf_counter() - started)
            result = _error_result(caught)
        if not hasattr(result, "isError"):
            return result  # a Command, or a message that an interceptor further in has made
        seen = time.perf_counter() - started
        outcome, hinted = self._answered(result, call, visible, request.runtime, caught, seen)
        if self._on_outcome:
            self._on_outcome(outcome)
        return hinted if outcome.hint else result

    def _failure(self, error: Exception, call: ToolCall, visible: Sequence[BaseTool], duration_s: float) -> ToolFailure:
        """What an exception on the way to the server amounts to; interrupts are raised again."""
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        limit = self._call_timeout_s
        if limit is not None and duration_s >= limit:  # a session that is cancelled raises what it likes
            error = TimeoutError(f"no answer within {limit:g} seconds")
        failure = self._scribe.caught(error, call, visible)
        return failure if failure.kind is FailureKind.TIMEOUT else ToolFailure(FailureKind.TOOL_ERROR, failure.message)

    def _answered(
        self,
        result: CallToolResult,
        call: ToolCall,
        visible: Sequence[BaseTool],
        runtime: Any,
        failure: ToolFailure | None,
        duration_s: float,
    ) -> tuple[CallOutcome, Result]:
        """The outcome of a call, and the result with its hint as one text more.

        In a graph a result of text alone becomes the tool message itself, with its outcome, so that a mount of the
        engine further out knows that it was seen to.
        """
        schemas, raw = self._scribe.schemas(visible), _text_of(result)
        failure = failure or _failure_in(raw, result.isError, call, schemas)
        history = _history(getattr(runtime, "state", None), schemas)
        if call.call_id and all(block.type == "text" for block in result.content):
            answer = _tool_message(result, call)
            message = self._scribe.message(call, raw, visible, history, failure, duration_s, answer)
            return outcomes_in([message])[0], message
        outcome = self._scribe.outcome(call, raw, visible, history, failure, duration_s)
        return outcome, _with_hint(result, outcome) if outcome.hint else result


def _name_shown(request: MCPToolCallRequest, visible: Sequence[BaseTool]) -> str:
    """The tool's name as the model knows it: the adapters may put the server's name in front."""
    names = {tool.name for tool in visible}
    prefixed = f"{request.server_name}_{request.name}"
    return prefixed if prefixed in names and request.name not in names else request.name


def _text_of(result: CallToolResult) -> str:
    if not result.content and result.structuredContent is not None:
        return json.dumps(result.structuredContent, ensure_ascii=False)
    return "\n".join(_texts_of(result))


def _texts_of(result: CallToolResult) -> list[str]:
    return [block.text for block in result.content if block.type == "text"]


def _with_hint(result: CallToolResult, outcome: CallOutcome) -> CallToolResult:
    from mcp.types import TextContent

    hint = json.dumps({"hint": outcome.hint.text if outcome.hint else ""}, ensure_ascii=False)
    return result.model_copy(update={"content": [*result.content, TextContent(type="text", text=hint)]})


def _tool_message(result: CallToolResult, call: ToolCall) -> ToolMessage:
    """The message that langchain-mcp-adapters 0.3 makes of a result of text alone."""
    blocks: list[Any] = [create_text_block(text=text) for text in _texts_of(result)]
    structured = result.structuredContent
    return ToolMessage(
        content=blocks,
        name=call.name,
        tool_call_id=call.call_id,
        status="error" if result.isError else "success",
        artifact=None if structured is None else {"structured_content": structured},
    )


def _error_result(failure: ToolFailure) -> CallToolResult:
    from mcp.types import CallToolResult, TextContent

    return CallToolResult(content=[TextContent(type="text", text=failure.message)], isError=True)


def _history(state: Any, schemas: dict[str, dict[str, Any]]) -> list[CallOutcome]:
    """The outcomes of the conversation so far; where a tool message carries none, what it says."""
    messages: Sequence[AnyMessage] = state.get("messages", ()) if isinstance(state, dict) else ()
    asked = {
        call["id"]: ToolCall(call["name"], call["args"], call["id"] or "")
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    }
    outcomes: list[CallOutcome] = []
    for message in messages:
        if isinstance(message, ToolMessage) and message.tool_call_id in asked:
            outcomes += outcomes_in([message]) or [_read(message, asked[message.tool_call_id], schemas)]
    return outcomes


def _read(message: ToolMessage, call: ToolCall, schemas: dict[str, dict[str, Any]]) -> CallOutcome:
    text = str(message.text)
    failure = _failure_in(text, message.status == "error", call, schemas)
    return CallOutcome(call.name, call.args, text, text, failure, call_id=call.call_id)


def _failure_in(text: str, is_error: bool, call: ToolCall, schemas: dict[str, dict[str, Any]]) -> ToolFailure | None:
    """The failure that a server's answer is or spells out. What a server has answered is no unknown tool."""
    if is_error:
        failure: ToolFailure | None = ToolFailure(failure_kind(call, schemas), text)
    else:
        failure = classify_failure(call, text, tools=schemas)
    if failure is not None and call.name not in schemas:
        return ToolFailure(FailureKind.TOOL_ERROR, failure.message)
    return failure
