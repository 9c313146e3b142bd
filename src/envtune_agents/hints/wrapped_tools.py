"""The engine mounted on the tools themselves: for any loop that runs LangChain tools.

    tools = with_hints(tools, hints=3)

In: tools and functions. Out: the same tools, whose failing calls answer instead of raising. It does not see the
conversation, so rules that look at the episode's history have none here, and it never sees a call of an unknown tool or
one that does not parse: `hint_tool_calls`, `HintedToolNode` and `HintMiddleware` see those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

from envtune_agents.deadline import acall_with_deadline, await_with_deadline, call_with_deadline
from envtune_agents.errors import HintRuleError
from envtune_agents.hints.answers import as_text, hint_block, is_blocks, text_of_blocks
from envtune_agents.hints.dial import HintDial
from envtune_agents.hints.engine import HintEngine, as_engine
from envtune_agents.hints.failures import FailureDetector
from envtune_agents.hints.tool_calls import MAX_CONTENT_CHARS, Answer, OutcomeScribe, distinct, error_text
from envtune_agents.types import ToolCall, ToolFailure

if TYPE_CHECKING:
    from langchain_core.messages import ToolMessage
    from langchain_core.messages.tool import ToolOutputMixin
    from langchain_core.tools import BaseTool


def with_hints(
    tools: Sequence[BaseTool | Callable[..., Any]],
    hints: HintEngine | HintDial | int = 3,
    *,
    detect: FailureDetector | None = None,
    call_timeout_s: float | None = None,
    max_content_chars: int = MAX_CONTENT_CHARS,
) -> list[BaseTool]:
    """The same tools, each answering a failed call with a hint instead of raising.

        tools = with_hints([search, book], hints=3)
        tools[0].invoke({"quer": "a room"})  # '{"error": "Error invoking tool …", "hint": "…"}'

    Name, description, schema, injected arguments, artifact, metadata and class of every tool are kept, and the given
    tools stay as they are. What a tool raises, bad arguments, a timeout and an error in a polite answer are failures;
    interrupts are raised again, `Command` results pass through. Invoked with a tool call, a tool answers with a
    `ToolMessage` whose status is "error" where LangChain would have raised, and whose
    `additional_kwargs["outcome"]` holds the outcome. Invoked with plain arguments, it answers with its own value; a
    failure is text, or the tool's own dictionary with one more key, "hint", or its own content blocks with one more.

    At level 0 what a tool answers is unchanged in every byte, and what it raises still becomes an answer, as with
    `hint_tool_calls`. An unknown tool never gets here: that is the business of the node or loop that looks it up.
    """
    menu = distinct(tuple(_as_tool(tool) for tool in tools))
    scribe = OutcomeScribe(as_engine(hints), detect, max_content_chars)
    return [_mounted(HintMount(tool, menu, scribe, call_timeout_s)) for tool in menu]


def _as_tool(given: BaseTool | Callable[..., Any]) -> BaseTool:
    """A tool as it is, or a function as a tool."""
    from langchain_core.tools import BaseTool
    from langchain_core.tools import tool as as_tool

    if isinstance(given, BaseTool):
        return given
    try:
        made: BaseTool = as_tool(given)
    except (ValueError, TypeError, AttributeError) as error:  # no docstring, no function at all
        raise HintRuleError(
            f"Cannot make a tool of {getattr(given, '__name__', given)!r}: {error} Expected a LangChain tool or a "
            "function with a docstring and annotated arguments."
        ) from error
    return made


@dataclass(frozen=True, slots=True)
class HintMount:
    """What a tool with hints holds: the tool it came from, the menu it belongs to, and who writes its answers."""

    tool: BaseTool
    menu: tuple[BaseTool, ...]
    scribe: OutcomeScribe
    call_timeout_s: float | None

    def call(self, tool_input: Any, tool_call_id: str | None) -> ToolCall:
        """The call as the model made it: without what LangGraph injected."""
        if isinstance(tool_input, Mapping):
            args = self.tool._filter_injected_args(dict(tool_input))
        else:
            parameters = self.scribe.schemas(self.menu)[self.tool.name].get("parameters") or {}
            args = dict.fromkeys(list(parameters.get("properties") or ())[:1], tool_input)
        return ToolCall(self.tool.name, args, tool_call_id or "")

    def run(self, call: ToolCall, in_a_message: bool, function: Callable[[], Answer]) -> Answer:
        """What `function` answers, or its failure as an answer."""
        started = time.perf_counter()
        try:
            answer = call_with_deadline(function, self.call_timeout_s)
        except Exception as error:
            answer = self._caught(error, call)
        return self._written(answer, call, in_a_message, time.perf_counter() - started)

    async def arun(self, call: ToolCall, in_a_message: bool, awaitable: Any) -> Answer:
        """`run` for something that is awaited, and that keeps its own deadline."""
        started = time.perf_counter()
        try:
            answer = await awaitable
        except Exception as error:
            answer = self._caught(error, call)
        return self._written(answer, call, in_a_message, time.perf_counter() - started)

    def _caught(self, error: Exception, call: ToolCall) -> ToolFailure:
        failure = self.scribe.caught(error, call, self.menu)
        refusal = _refusal(error, call, self.tool)
        return ToolFailure(failure.kind, refusal) if refusal else failure

    def _written(self, answer: Answer | ToolFailure, call: ToolCall, in_a_message: bool, duration_s: float) -> Answer:
        message_type, of_messages = _answer_types()
        if isinstance(answer, message_type) or (in_a_message and isinstance(answer, ToolFailure)):
            return self.scribe.written(answer, call, self.menu, (), duration_s)
        if isinstance(answer, ToolFailure):
            return self.scribe.outcome(call, error_text(answer), self.menu, (), answer, duration_s).content
        parts = answer if isinstance(answer, list) else [answer]
        if parts and all(isinstance(part, of_messages) for part in parts):
            return answer
        return self._plain(answer, call, duration_s)

    def _plain(self, answer: Any, call: ToolCall, duration_s: float) -> Any:
        blocks = is_blocks(answer)
        raw = answer if isinstance(answer, str) else text_of_blocks(answer) if blocks else as_text(answer)
        outcome = self.scribe.outcome(call, raw, self.menu, (), None, duration_s)
        if outcome.content is raw:
            return answer
        if outcome.hint and outcome.raw_content is raw:
            if blocks:
                return [*answer, hint_block(outcome.hint)]
            if isinstance(answer, dict):
                return {**answer, "hint": outcome.hint.text}
        return outcome.content


@cache
def _answer_types() -> tuple[type[ToolMessage], type[ToolOutputMixin]]:
    """A tool message, and all that LangGraph takes from a tool as it is; imported when the first call is answered."""
    from langchain_core.messages import ToolMessage
    from langchain_core.messages.tool import ToolOutputMixin

    return ToolMessage, ToolOutputMixin


def _mounted(mount: HintMount) -> BaseTool:
    """A copy of the mount's tool that goes through the mount.

    A wrapper around the tool would change what is asked of its class and its `func`: which arguments LangGraph injects
    and how LangChain shows a schemaless `Tool` to a model. A copy in a subclass of the tool's own class keeps both.
    """
    copied: Any = mount.tool.model_copy()
    object.__setattr__(copied, "__class__", _hinted_class(type(mount.tool)))
    copied._hint_mount = mount
    return cast("BaseTool", copied)


@cache
def _hinted_class(tool_class: type[BaseTool]) -> type[BaseTool]:
    """A subclass whose `run` and `arun`, the way of every call, go through the tool's mount."""
    from pydantic import PrivateAttr

    if "_hint_mount" in tool_class.__private_attributes__:
        return tool_class  # has hints already; a new mount replaces the old one

    class Hinted(tool_class):  # type: ignore[misc, valid-type]
        _hint_mount: HintMount = PrivateAttr()

        def run(self, tool_input: Any, *args: Any, tool_call_id: str | None = None, **kwargs: Any) -> Any:
            call = self._hint_mount.call(tool_input, tool_call_id)
            function = partial(super().run, tool_input, *args, tool_call_id=tool_call_id, **kwargs)
            return self._hint_mount.run(call, tool_call_id is not None, function)

        async def arun(self, tool_input: Any, *args: Any, tool_call_id: str | None = None, **kwargs: Any) -> Any:
            call = self._hint_mount.call(tool_input, tool_call_id)
            timeout_s = self._hint_mount.call_timeout_s
            if is_async(self):
                running = super().arun(tool_input, *args, tool_call_id=tool_call_id, **kwargs)
                waiting: Any = await_with_deadline(running, timeout_s)
            else:
                function = partial(super().run, tool_input, *args, tool_call_id=tool_call_id, **kwargs)
                waiting = acall_with_deadline(function, timeout_s)
            return await self._hint_mount.arun(call, tool_call_id is not None, waiting)

    Hinted.__name__ = f"Hinted{tool_class.__name__}"
    return Hinted


def is_async(tool: BaseTool) -> bool:
    """Whether awaiting the tool runs a coroutine of its own, and not its function in a thread."""
    from langchain_core.tools import BaseTool

    if hasattr(tool, "coroutine"):
        return tool.coroutine is not None
    return type(tool)._arun is not BaseTool._arun


def _refusal(error: Exception, call: ToolCall, tool: BaseTool) -> str:
    """What LangGraph's `ToolNode` says of arguments that do not validate; "" for any other error.

    A validation error's own text shows the whole input, injected state included.
    """
    from langgraph.prebuilt.tool_node import ToolInvocationError
    from pydantic import ValidationError
    from pydantic.v1 import ValidationError as ValidationErrorV1

    if not isinstance(error, ValidationError | ValidationErrorV1):
        return ""
    faults: list[Any] = list(error.errors())
    from_model = [fault for fault in faults if tool._filter_injected_args({str(part): 0 for part in fault["loc"][:1]})]
    return ToolInvocationError(call.name, error, dict(call.args), from_model or faults).message  # type: ignore[arg-type]
