"""The hint engine as middleware of a LangChain agent.

In: what the agent's tools answer, and replies whose calls do not parse. Out: tool messages with hints. It chooses no
tools, changes no prompt, and leaves interrupts and `Command` results to LangChain.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState, hook_config
from langchain.tools.tool_node import ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.runtime import Runtime
from langgraph.types import Command

from envtune_agents.hints import (
    FailureDetector,
    HintDial,
    HintEngine,
    OutcomeScribe,
    as_engine,
    hint_tool_calls,
    outcomes_in,
)

Answer = ToolMessage | Command[Any]


class HintMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Every failed tool call of the agent is answered with an actionable hint, and none ends the run.

        agent = create_agent(model, tools, middleware=[HintMiddleware()])

    Seen are all shapes of a failed call: a tool that raises or takes longer than `call_timeout_s` seconds, bad
    arguments, an unknown tool, an error in a polite answer (`detect` recognises more of them), and a call that could
    not be parsed (`AIMessage.invalid_tool_calls`), at which `create_agent` by itself stops without a word. `hints` is
    an engine, a dial or a level; level 0 changes no byte of what a tool answers. Every tool message carries its
    outcome (`envtune_agents.hints.outcomes_in`).

    A reply with nothing but unreadable calls goes back to the model with what was wrong, at most
    `max_malformed_retries` times in a row; then the agent ends as it would without the middleware. Beside readable
    calls, unreadable ones are answered and the readable ones run once, as usual. A hint for an unreadable call
    cannot name tools: LangChain does not tell this hook which ones are visible.
    """

    def __init__(
        self,
        hints: HintEngine | HintDial | int = 3,
        *,
        detect: FailureDetector | None = None,
        call_timeout_s: float | None = None,
        max_malformed_retries: int = 2,
    ) -> None:
        super().__init__()
        engine = as_engine(hints)
        self._wrappers = hint_tool_calls(engine, detect=detect, call_timeout_s=call_timeout_s)
        self._scribe = OutcomeScribe(engine, detect)
        self._max_malformed_retries = max_malformed_retries

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Answer]) -> Answer:
        """The tool's answer; with a hint if the call failed."""
        answer: Answer = self._wrappers.wrap_tool_call(request, handler)
        return answer

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Answer]]
    ) -> Answer:
        """`wrap_tool_call` for an agent that is awaited."""
        answer: Answer = await self._wrappers.awrap_tool_call(request, handler)
        return answer

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Tool messages for the calls of the reply that do not parse, and the way back to the model."""
        messages = state["messages"]
        reply, answered = _last_reply(messages)
        if reply is None or state.get("structured_response") is not None:
            return None
        unreadable = [call for call in reply.invalid_tool_calls if call["id"] not in answered]
        again = not reply.tool_calls
        if not unreadable or (again and _malformed_in_a_row(messages) > self._max_malformed_retries):
            return None
        history = outcomes_in(messages)
        answers = [self._scribe.unreadable(call, (), history) for call in unreadable]
        return {"messages": answers, "jump_to": "model"} if again else {"messages": answers}

    @hook_config(can_jump_to=["model"])
    async def aafter_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """`after_model` for an agent that is awaited."""
        return self.after_model(state, runtime)


def _last_reply(messages: Sequence[AnyMessage]) -> tuple[AIMessage | None, set[str]]:
    """The last reply of the model, and the ids of its calls that other middleware has answered already."""
    answered: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            return message, answered
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
    return None, answered


def _malformed_in_a_row(messages: Sequence[AnyMessage]) -> int:
    """How many replies at the end of the conversation hold nothing but unreadable calls."""
    count = 0
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            break
        if isinstance(message, AIMessage):
            if message.tool_calls or not message.invalid_tool_calls:
                break
            count += 1
    return count
