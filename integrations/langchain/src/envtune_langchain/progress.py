"""An environment's turns played by a LangChain agent, and scored in its state.

In: an environment and an agent that answers. Out: user messages turn by turn, the environment's tools, and one
`TurnScore` for each closed turn. It is `ProgressNode` for `create_agent`; it gives no hints and keeps no step limit.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from threading import Condition
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, hook_config
from langchain.tools.tool_node import ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.runtime import Runtime
from langgraph.types import Command
from pydantic import SkipValidation

from envtune_agents.deadline import call_with_deadline
from envtune_agents.errors import EnvironmentStateError
from envtune_agents.progress import checked_score, strict_score
from envtune_agents.types import Environment, ProgressScorer, ReadsReplies, RunsCalls, StopReason, ToolCall

Answer = ToolMessage | Command[Any]
_ARRIVAL_S = 1.0


class ProgressState(AgentState[Any]):
    """The agent's state with the progress of its episode; plain values only."""

    turn: NotRequired[int]
    """0-based index of the open turn."""
    scores: NotRequired[Annotated[list[dict[str, float]], operator.add]]
    """One `TurnScore` for each closed turn, as a plain dictionary."""
    stop_reason: NotRequired[str]
    """"done" once every turn was played."""


class ProgressMiddleware(AgentMiddleware[ProgressState, Any, Any]):
    """The agent plays an environment's task, and every turn is scored.

        agent = create_agent(model, [], middleware=[ProgressMiddleware(environment), HintMiddleware()])
        state = agent.invoke({"messages": []})
        state["scores"], state["stop_reason"]

    It opens the first turn, shows the environment's visible tools beside the agent's own, makes the calls of one reply
    in order (LangChain would make them at the same time), and closes the turn when a reply makes no call. List it
    before `HintMiddleware`, which then sends malformed calls back before they would end the turn. `scorer` is as in
    `ProgressNode`: one that raises, leaves [0, 1] or takes longer than `scorer_timeout_s` seconds ends the run with an
    exception, never with a score of 0.

    An environment is single-use, and so is this: one run, in one process. To limit the steps of a run add LangChain's
    `ModelCallLimitMiddleware`.
    """

    state_schema = ProgressState

    def __init__(
        self,
        environment: Environment,
        *,
        scorer: ProgressScorer = strict_score,
        scorer_timeout_s: float | None = 60.0,
    ) -> None:
        super().__init__()
        self._environment = environment
        self._scorer = scorer
        self._scorer_timeout_s = scorer_timeout_s
        self._order = _Order()
        self._started = False

    @hook_config(can_jump_to=["end"])
    def before_agent(self, state: ProgressState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """The first user message; nothing when a turn is open already.

        Raises EnvironmentStateError when the environment is in another run, or has been.
        """
        if "turn" in state:
            return None
        if self._started:
            raise EnvironmentStateError(
                "An environment is single-use, and this one has been played. Make the environment, the middleware and "
                "the agent anew for each run."
            )
        self._started = True
        opened = self._opened(-1)
        return opened | ({"jump_to": "end"} if "stop_reason" in opened else {})

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """The reply of a model that sees the tools visible in this turn."""
        return handler(self._with_tools(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """`wrap_model_call` for an agent that is awaited."""
        return await handler(self._with_tools(request))

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Answer]) -> Answer:
        """The answer of the environment's tool, after those to the calls before it in the same reply."""
        call_id = str(request.tool_call["id"])
        self._order.wait(call_id, self._before(request))
        try:
            return handler(self._in_world(request))
        finally:
            self._order.finish(call_id)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Answer]]
    ) -> Answer:
        """`wrap_tool_call` for an agent that is awaited."""
        call_id = str(request.tool_call["id"])
        await self._order.await_(call_id, self._before(request))
        try:
            return await handler(self._in_world(request))
        finally:
            self._order.finish(call_id)

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: ProgressState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """After a reply without a call: the turn's score, and the next turn's message and the way back to the model."""
        reply = state["messages"][-1]
        if not isinstance(reply, AIMessage) or reply.tool_calls or "turn" not in state or state.get("stop_reason"):
            return None
        scored = call_with_deadline(partial(self._closed, str(reply.text)), self._scorer_timeout_s)
        opened = self._opened(state["turn"])
        return scored | opened | ({} if "stop_reason" in opened else {"jump_to": "model"})

    def _closed(self, last_words: str) -> dict[str, Any]:
        if isinstance(self._environment, ReadsReplies):
            self._environment.read_reply(last_words)
        return {"scores": [asdict(checked_score(self._scorer, self._environment.close_turn()))]}

    def _opened(self, turn: int) -> dict[str, Any]:
        message = self._environment.open_turn()
        if message is None:
            return {"stop_reason": StopReason.DONE.value}
        return {"messages": [HumanMessage(message)], "turn": turn + 1}

    def _with_tools(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        visible = list(self._environment.tools())
        names = {tool.name for tool in visible}
        own = [tool for tool in request.tools if not isinstance(tool, BaseTool) or tool.name not in names]
        return request.override(tools=[*own, *visible])

    def _in_world(self, request: ToolCallRequest) -> ToolCallRequest:
        """The request with the environment's tool, and with what is visible now for the hint rules to see."""
        visible = {tool.name: tool for tool in self._environment.tools()}
        own = {tool.name: tool for tool in getattr(request.runtime, "tools", None) or ()}
        name = request.tool_call["name"]
        tool = visible.get(name) or own.get(name)
        if tool is None and isinstance(self._environment, RunsCalls):
            tool = _answered_by(self._environment, name)
        runtime = replace(request.runtime, tools=[*{**own, **visible}.values()])
        return replace(request, tool=tool, runtime=runtime)

    def _before(self, request: ToolCallRequest) -> list[str]:
        """Ids of the calls that stand before this one in its reply and are not answered yet."""
        messages: Sequence[AnyMessage] = request.state["messages"]
        reply = next(message for message in reversed(messages) if isinstance(message, AIMessage))
        answered = {message.tool_call_id for message in messages if isinstance(message, ToolMessage)}
        ids = [str(call["id"]) for call in reply.tool_calls]
        return [call_id for call_id in ids[: ids.index(str(request.tool_call["id"]))] if call_id not in answered]


class _Order:
    """Lets the calls of one reply run one after the other, whichever thread or task each is in.

    A call that never comes, because other middleware has answered it, is waited for one second.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._come: set[str] = set()
        self._finished: set[str] = set()

    def wait(self, call_id: str, before: Sequence[str]) -> None:
        with self._changed:
            self._arrive(call_id)
            self._changed.wait_for(lambda: self._come.issuperset(before), timeout=_ARRIVAL_S)
            expected = self._come.intersection(before)
            self._changed.wait_for(lambda: self._finished.issuperset(expected))

    async def await_(self, call_id: str, before: Sequence[str]) -> None:
        with self._changed:
            self._arrive(call_id)
        async for _ in _moments(_ARRIVAL_S):
            if self._come.issuperset(before):
                break
        expected = self._come.intersection(before)
        async for _ in _moments(None):
            if self._finished.issuperset(expected):
                return

    def finish(self, call_id: str) -> None:
        with self._changed:
            self._finished.add(call_id)
            self._changed.notify_all()

    def _arrive(self, call_id: str) -> None:
        self._come.add(call_id)
        self._finished.discard(call_id)  # an interrupted call comes a second time
        self._changed.notify_all()


async def _moments(seconds: float | None) -> AsyncIterator[None]:
    """One moment after the other, for so long."""
    loop = asyncio.get_running_loop()
    end = None if seconds is None else loop.time() + seconds
    while end is None or loop.time() < end:
        yield
        await asyncio.sleep(0.002)


def _answered_by(world: RunsCalls, name: str) -> BaseTool:
    """A tool for a name that is not visible: some environments answer such calls themselves."""
    schema = {"type": "object", "properties": {}, "additionalProperties": True}
    return _WorldTool(name=name, description="", args_schema=schema, world=world)


class _WorldTool(BaseTool):
    """Hands on every argument; `StructuredTool` keeps those called config, callbacks and run_manager."""

    world: SkipValidation[RunsCalls]

    def _run(self, /, **args: Any) -> str:
        return self.world.run_call(ToolCall(self.name, args))
