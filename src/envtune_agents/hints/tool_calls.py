"""The engine mounted on LangGraph's `ToolNode`: a pair of wrappers around each tool call.

    node = ToolNode(tools, **hint_tool_calls(3)._asdict())

A wrapped call never raises: what the tool raised, a timeout and an oversized answer all become the tool message of a
failed call. Interrupts and `Command` results pass through untouched.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from envtune_agents.deadline import await_with_deadline, call_with_deadline
from envtune_agents.errors import HintRuleError
from envtune_agents.hints.answers import changed, hint_block, text_of, text_of_blocks
from envtune_agents.hints.carried import OUTCOME_KEY, History, plain_outcome, plain_success
from envtune_agents.hints.dial import HintDial
from envtune_agents.hints.engine import HintEngine, as_engine
from envtune_agents.hints.failures import FailureDetector, error_message, failure_kind
from envtune_agents.tool_schema import same_objects, tool_schemas
from envtune_agents.types import CallOutcome, FailureKind, ToolCall, ToolFailure

if TYPE_CHECKING:
    from langchain_core.messages import InvalidToolCall, ToolMessage
    from langchain_core.tools import BaseTool
    from langgraph.prebuilt.tool_node import ToolCallRequest

MAX_CONTENT_CHARS = 100_000
Menu = TypeVar("Menu", bound=Sequence[Any])
Answer = Any
"""What a tool call gives LangGraph: a `ToolMessage`, a `Command`, or a list of them."""


class ToolCallWrappers(NamedTuple):
    """The two keyword arguments of `ToolNode` that mount an engine."""

    wrap_tool_call: Callable[[ToolCallRequest, Callable[[ToolCallRequest], Answer]], Answer]
    awrap_tool_call: Callable[[ToolCallRequest, Callable[[ToolCallRequest], Awaitable[Answer]]], Awaitable[Answer]]


def hint_tool_calls(
    hints: HintEngine | HintDial | int = 3,
    *,
    detect: FailureDetector | None = None,
    call_timeout_s: float | None = None,
    max_content_chars: int = MAX_CONTENT_CHARS,
) -> ToolCallWrappers:
    """The `wrap_tool_call` and `awrap_tool_call` that add hints to the failed calls of a `ToolNode`.

    `hints` is an engine, a dial or a level from 0 to 3; `detect` recognises failures that look like success. A call
    that takes longer than `call_timeout_s` seconds fails; an answer longer than `max_content_chars` is cut, with a
    note.
    """
    scribe = OutcomeScribe(as_engine(hints), detect, max_content_chars)

    def wrap(request: ToolCallRequest, execute: Callable[[ToolCallRequest], Answer]) -> Answer:
        started = time.perf_counter()
        try:
            if call_timeout_s is None:
                answer = execute(request)
            else:
                answer = call_with_deadline(partial(execute, request), call_timeout_s)
        except Exception as error:
            answer = scribe.caught(error, _call(request.tool_call), _visible(request))
        return scribe.answered(answer, request, time.perf_counter() - started)

    async def awrap(request: ToolCallRequest, execute: Callable[[ToolCallRequest], Awaitable[Answer]]) -> Answer:
        started = time.perf_counter()
        try:
            answer = await await_with_deadline(execute(request), call_timeout_s)
        except Exception as error:
            answer = scribe.caught(error, _call(request.tool_call), _visible(request))
        return scribe.answered(answer, request, time.perf_counter() - started)

    return ToolCallWrappers(wrap, awrap)


class OutcomeScribe:
    """Turns what a call gave into the tool message that the model sees and the outcome that the record keeps."""

    def __init__(
        self,
        engine: HintEngine,
        detect: FailureDetector | None = None,
        max_content_chars: int = MAX_CONTENT_CHARS,
    ) -> None:
        self._engine = engine
        self._detect = detect
        self._max_chars = max_content_chars
        self._known: tuple[Sequence[BaseTool], dict[str, dict[str, Any]]] = ((), {})

    def caught(self, error: Exception, call: ToolCall, tools: Sequence[BaseTool]) -> ToolFailure:
        """The failure that an exception amounts to; interrupts are raised again, and so is LangChain's word to the
        developer that a coroutine cannot be called from `invoke`: no model could do anything about it."""
        from langgraph.errors import GraphBubbleUp, is_invalid_resume

        not_awaited = isinstance(error, NotImplementedError) and "does not support sync" in str(error)
        if isinstance(error, GraphBubbleUp) or is_invalid_resume(error) or not_awaited:
            raise error
        return failure_of(error, call, self.schemas(tools))

    def answered(self, answer: Answer | ToolFailure, request: ToolCallRequest, duration_s: float) -> Answer:
        """What `written` gives for the answer to a request of LangGraph's.

        Most calls succeed, with text. These touch neither a schema nor the engine and make no record: code that has
        not run for a while costs several times what it costs in a loop.
        """
        if type(answer) is _message_type() and answer.status != "error" and self._detect is None:
            raw, kwargs = answer.content, answer.additional_kwargs
            if type(raw) is str and len(raw) <= self._max_chars and OUTCOME_KEY not in kwargs:
                said = error_message(raw)
                if said is None:
                    plain = plain_success(request.tool_call, raw, duration_s)
                    return changed(answer, {"additional_kwargs": {**kwargs, OUTCOME_KEY: plain}})
                call, tools = _call(request.tool_call), _visible(request)
                failure = ToolFailure(failure_kind(call, self.schemas(tools)), said)
                return self.message(call, raw, tools, History(request.state), failure, duration_s, answer)
        call, tools = _call(request.tool_call), _visible(request)
        return self.written(answer, call, tools, History(request.state), duration_s)

    def written(
        self,
        answer: Answer | ToolFailure,
        call: ToolCall,
        tools: Sequence[BaseTool],
        history: Sequence[CallOutcome] = (),
        duration_s: float = 0.0,
    ) -> Answer:
        """The tool message for `answer`, with its outcome.

        Anything but a tool message passes through, and so does a tool message that already carries an outcome: where
        two mounts of the engine meet, the one next to the tool speaks.
        """
        if isinstance(answer, ToolFailure):
            return self.message(call, error_text(answer), tools, history, answer, duration_s)
        if not isinstance(answer, _message_type()) or OUTCOME_KEY in answer.additional_kwargs:
            return answer
        raw = text_of(answer)
        failure = None
        if answer.status == "error":
            failure = ToolFailure(failure_kind(call, self.schemas(tools)), raw)
        return self.message(call, raw, tools, history, failure, duration_s, answer)

    def unreadable(
        self, call: InvalidToolCall, tools: Sequence[BaseTool], history: Sequence[CallOutcome] = ()
    ) -> ToolMessage:
        """The tool message that answers a call which could not be parsed, under the call's own id and name."""
        failure = ToolFailure(FailureKind.MALFORMED_CALL, call["error"] or "the call is not valid JSON")
        asked = ToolCall(call["name"] or "", {}, call["id"] or "")
        return self.message(asked, error_text(failure), tools, history, failure)

    def message(
        self,
        call: ToolCall,
        raw_content: str,
        tools: Sequence[BaseTool],
        history: Sequence[CallOutcome],
        failure: ToolFailure | None = None,
        duration_s: float = 0.0,
        answer: ToolMessage | None = None,
    ) -> ToolMessage:
        """The tool message for one call. Fields of `answer`, if the tool gave one, are kept, content blocks too."""
        outcome = self.outcome(call, raw_content, tools, history, failure, duration_s)
        if answer is None:
            return _tool_message(outcome, failed=failure is not None)
        fields: dict[str, Any] = {}
        if isinstance(answer.content, list) and outcome.hint and outcome.raw_content is raw_content:
            fields["content"] = [*answer.content, hint_block(outcome.hint)]
            outcome = replace(outcome, content=text_of_blocks(fields["content"]))
        elif outcome.content is not raw_content or not answer.content:
            fields["content"] = outcome.content
        fields["additional_kwargs"] = {**answer.additional_kwargs, OUTCOME_KEY: plain_outcome(outcome)}
        return changed(answer, fields)

    def outcome(
        self,
        call: ToolCall,
        raw_content: str,
        tools: Sequence[BaseTool],
        history: Sequence[CallOutcome] = (),
        failure: ToolFailure | None = None,
        duration_s: float = 0.0,
    ) -> CallOutcome:
        """The outcome of a call; its `content` is the very object `raw_content` where nothing was cut or added."""
        return self._engine.outcome(
            call,
            self._capped(raw_content),
            tools=self.schemas(tools),
            history=history,
            detect=self._detect,
            failure=failure,
            duration_s=duration_s,
        )

    def schemas(self, tools: Sequence[BaseTool]) -> dict[str, dict[str, Any]]:
        """`tool_schemas(tools)`, worked out once for as long as the same tools are visible."""
        known, schemas = self._known
        if not same_objects(known, tools):
            schemas = tool_schemas(tools)
            self._known = (tuple(tools), schemas)
        return schemas

    def _capped(self, text: str) -> str:
        if len(text) <= self._max_chars:
            return text
        note = f"[cut: the answer had {len(text):,} characters, the first {self._max_chars:,} are shown]"
        return f"{text[: self._max_chars]}\n{note}"


def failure_of(error: Exception, call: ToolCall, tools: Mapping[str, Mapping[str, Any]]) -> ToolFailure:
    """The failure that an exception out of a tool amounts to, without a traceback."""
    if isinstance(error, TimeoutError):
        return ToolFailure(FailureKind.TIMEOUT, str(error) or "no answer in time")
    text, kind = str(error).strip(), type(error).__name__
    bare = " " not in text and type(error).__module__ != "builtins"  # QuotaExceeded(100): the name says what it is
    if text and (bare or isinstance(error, LookupError | AttributeError | AssertionError)):
        text = f"{kind}: {text}"  # a slip inside the tool, whose text alone is a bare name
    return ToolFailure(failure_kind(call, tools), text or kind)


def error_text(failure: ToolFailure) -> str:
    """A failure that has no answer of its own, as a tool message says it."""
    message = failure.message
    return message if message.lower().startswith("error") else f"Error: {message}"


def distinct(tools: Menu) -> Menu:
    """The same tools. Raises HintRuleError when two share a name: only one of them could ever be called."""
    names = Counter(str(getattr(tool, "name", None) or getattr(tool, "__name__", "")) for tool in tools)
    doubled = [name for name, count in names.items() if count > 1]
    if doubled:
        raise HintRuleError(
            f"Every tool needs a name of its own; given twice: {', '.join(doubled)}. Rename one: tool.name = '…'."
        )
    return tools


def _tool_message(outcome: CallOutcome, *, failed: bool) -> ToolMessage:
    return _message_type()(
        outcome.content,
        name=outcome.name,
        tool_call_id=outcome.call_id,
        status="error" if failed else "success",
        additional_kwargs={OUTCOME_KEY: plain_outcome(outcome)},
    )


@cache
def _message_type() -> type[ToolMessage]:
    """`ToolMessage`, imported when the first call is answered: an import costs a little each time."""
    from langchain_core.messages import ToolMessage

    return ToolMessage


def _call(tool_call: Mapping[str, Any]) -> ToolCall:
    return ToolCall(tool_call["name"], tool_call["args"], tool_call["id"] or "")


def _visible(request: ToolCallRequest) -> Sequence[BaseTool]:
    return getattr(request.runtime, "tools", None) or ([request.tool] if request.tool else [])
