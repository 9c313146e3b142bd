"""The tool node: every call of the last reply, in order, each with a hint if it failed.

LangGraph's own `ToolNode` runs the calls of one reply in parallel; a stateful environment needs them in order, so this
node hands it one call at a time and leaves everything else (injection, validation, `Command`, interrupts) to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode

from envtune_agents.deadline import acall_with_deadline, call_with_deadline
from envtune_agents.graph.world import World
from envtune_agents.hints import HintDial, HintEngine, OutcomeScribe, as_engine, hint_tool_calls, outcomes_in
from envtune_agents.hints.answers import as_text
from envtune_agents.hints.carried import History, messages_in
from envtune_agents.hints.tool_calls import (
    MAX_CONTENT_CHARS,
    distinct,
    error_text,
    failure_of,
)
from envtune_agents.hints.wrapped_tools import is_async
from envtune_agents.tool_schema import same_objects
from envtune_agents.types import (
    DetectsFailures,
    Environment,
    FailureKind,
    RunsCalls,
    ToolCall,
    ToolFailure,
)

CALL_TIMEOUT_S = 30.0
"""Seconds for one tool call in an episode; what `build_agent_graph` and `collect` allow unless told otherwise."""


class HintedToolNode(Runnable[Any, Any]):
    """A node for any StateGraph with a `messages` key: `builder.add_node("tools", HintedToolNode(tools, hints=3))`.

    Give it `tools`, or the `environment` that shows them. It sees all shapes of a failed call: a tool that raises, bad
    arguments, an unknown tool, an error in a polite answer, and a call that could not be parsed
    (`AIMessage.invalid_tool_calls`). No tool can raise out of it or flood the prompt with more than
    `max_content_chars` characters. With `call_timeout_s` seconds, which `build_agent_graph` sets, no tool can hang it
    either: a call then runs on a thread of its own, unless its tool is a coroutine.
    """

    def __init__(
        self,
        tools: Sequence[BaseTool | Callable[..., Any]] = (),
        *,
        hints: HintEngine | HintDial | int = 3,
        environment: Environment | World | None = None,
        call_timeout_s: float | None = None,
        max_content_chars: int = MAX_CONTENT_CHARS,
    ) -> None:
        self._world = World.of(environment) if environment is not None else None
        engine = as_engine(hints).for_episode(self._world.live.task if self._world else None)
        detect = self._detect if self._world else None
        self._scribe = OutcomeScribe(engine, detect, max_content_chars)
        self._hints_at_once = not engine.dial.level or all(getattr(rule, "bounded", False) for rule in engine.rules)
        self._call_timeout_s = call_timeout_s
        self._wrappers = hint_tool_calls(
            engine, detect=detect, call_timeout_s=call_timeout_s, max_content_chars=max_content_chars
        )
        self._node = ToolNode(distinct(tools), **self._wrappers._asdict())

    @property
    def static_tools(self) -> list[BaseTool]:
        """The tools given at construction, as LangChain tools; none when an environment shows them."""
        return [] if self._world else list(self._node.tools_by_name.values())

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
        calls, answer = self._calls(input), None
        while True:
            try:
                call, state = calls.send(answer)
            except StopIteration as end:
                return end.value
            answer = self._run(call, state, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
        calls, answer = self._calls(input), None
        while True:
            try:
                call, state = calls.send(answer)
            except StopIteration as end:
                return end.value
            answer = await self._arun(call, state, config)

    def _calls(self, state: Any) -> Generator[tuple[dict[str, Any], Any], Any, Any]:
        """Yields each call of the last reply when its turn comes, with the state as it is then; takes the call's
        answer, and returns the state update."""
        before_reply = messages_in(state)
        reply = next(message for message in reversed(before_reply) if isinstance(message, AIMessage))
        messages: list[ToolMessage] = []
        commands: list[Any] = []
        if self._world:
            self._world.at(state.get("world"))
        for call in reply.tool_calls:
            before = self._world.snapshot() if self._world else None
            seen = {**state, "messages": [*before_reply, *messages]} if isinstance(state, dict) else state
            answer = yield dict(call), seen
            for part in answer if isinstance(answer, list) else [answer]:
                if isinstance(part, dict):
                    messages.extend(part["messages"])
                else:
                    (messages if isinstance(part, ToolMessage) else commands).append(part)
            if self._world and _timed_out(messages):
                self._world.rewind(before)
        for invalid in reply.invalid_tool_calls:
            history = History([*before_reply, *messages])
            messages.append(self._scribe.unreadable(invalid, self._visible(), history))
        update = {"messages": messages, **(self._world.update() if self._world else {})}
        return [update, *commands] if commands else update

    def _run(self, call: dict[str, Any], state: Any, config: RunnableConfig | None) -> Any:
        if self._world and isinstance(self._world.live, RunsCalls):
            return self._run_in_world(self._world.live, call, state)
        return self._current_node().invoke(_payload(call, state), config)

    async def _arun(self, call: dict[str, Any], state: Any, config: RunnableConfig | None) -> Any:
        if self._world and isinstance(self._world.live, RunsCalls):
            return await self._arun_in_world(self._world.live, call, state)
        node = self._current_node()
        tool = node.tools_by_name.get(call["name"])
        if tool is not None and is_async(tool):
            return await node.ainvoke(_payload(call, state), config)
        return await acall_with_deadline(partial(node.invoke, _payload(call, state), config), None)

    def _run_in_world(self, world: RunsCalls, call: dict[str, Any], state: dict[str, Any]) -> ToolMessage:
        asked, started = _asked(call), time.perf_counter()
        try:
            ask, limit_s = partial(_text_of_call, world, asked), None if self._at_once() else self._call_timeout_s
            answer: str | Exception = call_with_deadline(ask, limit_s)
        except Exception as error:
            answer = error
        return self._answered(asked, answer, state, time.perf_counter() - started)

    async def _arun_in_world(self, world: RunsCalls, call: dict[str, Any], state: dict[str, Any]) -> ToolMessage:
        asked, started = _asked(call), time.perf_counter()
        try:
            ask = partial(_text_of_call, world, asked)
            answer: str | Exception = ask() if self._at_once() else await acall_with_deadline(ask, self._call_timeout_s)
        except Exception as error:
            answer = error
        finish = partial(self._answered, asked, answer, state, time.perf_counter() - started)
        return finish() if self._hints_at_once else await acall_with_deadline(finish, None)

    def _answered(
        self, asked: ToolCall, answer: str | Exception, state: dict[str, Any], duration_s: float
    ) -> ToolMessage:
        """The message for what a world answered to a call, or for what it raised."""
        visible = self._visible()
        failure = failure_of(answer, asked, self._scribe.schemas(visible)) if isinstance(answer, Exception) else None
        raw = error_text(failure) if failure else str(answer)
        return self._scribe.message(asked, raw, visible, History(state["messages"]), failure, duration_s)

    def _at_once(self) -> bool:
        """Whether the environment needs neither a deadline nor a thread of its own."""
        return self._world is not None and self._world.bounded

    def _visible(self) -> list[BaseTool]:
        return list(self._world.live.tools() if self._world else self._node.tools_by_name.values())

    def _current_node(self) -> ToolNode:
        if self._world is None:
            return self._node
        visible = self._visible()
        if not same_objects(list(self._node.tools_by_name.values()), visible):
            self._node = ToolNode(distinct(visible), **self._wrappers._asdict())
        return self._node

    def _detect(self, call: ToolCall, raw_content: str) -> ToolFailure | None:
        environment = self._world.live if self._world else None
        return environment.detect_failure(call, raw_content) if isinstance(environment, DetectsFailures) else None


def _payload(call: dict[str, Any], state: Any) -> dict[str, Any]:
    """One call with its state, in the form in which a `ToolNode` takes it."""
    return {"__type": "tool_call_with_context", "tool_call": {**call, "type": "tool_call"}, "state": state}


def _asked(call: dict[str, Any]) -> ToolCall:
    return ToolCall(call["name"], call["args"], call["id"] or "")


def _text_of_call(world: RunsCalls, asked: ToolCall) -> str:
    answer: Any = world.run_call(asked)
    return answer if isinstance(answer, str) else as_text(answer)


def _timed_out(messages: Sequence[ToolMessage]) -> bool:
    last = outcomes_in(messages[-1:])
    return bool(last) and last[0].failure is not None and last[0].failure.kind is FailureKind.TIMEOUT
