"""One episode without a graph: the same nodes, called one after the other in a plain loop.

What LangGraph adds (checkpoints, streaming, interrupts, callbacks of the run) a collection does not use. In: what
`run_episode` takes. Out: the record that `run_episode` gives. `collect(..., play=run_directly)` collects with it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any, Unpack

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import Command, RetryPolicy

from envtune_agents.errors import TaskError
from envtune_agents.graph import CALL_TIMEOUT_S, MAX_STEPS, HintedToolNode, ModelNode, ProgressNode, World
from envtune_agents.graph.progress_node import SCORER_TIMEOUT_S
from envtune_agents.hints import HintEngine
from envtune_agents.progress import strict_score
from envtune_agents.rollout.episode import EpisodeOptions, recorded
from envtune_agents.rollout.plain_call import plain_call
from envtune_agents.rollout.retry import with_retries
from envtune_agents.types import Environment, JsonValue, ProgressScorer, Rollout, StopReason

_APPENDED = ("messages", "scores", "evidence")
_ALONE: RunnableConfig = {"configurable": {"__pregel_runtime": Runtime()}}
"""LangGraph's ToolNode asks for the runtime of its graph, under this key (langgraph 1.2)."""


async def run_directly(
    model: BaseChatModel,
    environment: Environment,
    *,
    seed: int = 0,
    sample: int = 0,
    **options: Unpack[EpisodeOptions],
) -> Rollout:
    """The record that `run_episode` gives, at a fraction of its overhead: for models that answer fast.

    The nodes are those of the graph, so prompts, hints, scores, retries and time limits are the same. Callbacks of the
    model are called only where it has some (`plain_call`); a tool whose `Command` goes to another node is refused.
    """
    return await recorded(_states, model, environment, seed, sample, options)


async def _states(
    model: BaseChatModel,
    environment: Environment,
    *,
    hints: HintEngine,
    seed: int,
    model_retry: RetryPolicy | None,
    scorer: ProgressScorer = strict_score,
    system_prompt: str | None = None,
    max_steps: int = MAX_STEPS,
    call_timeout_s: float | None = CALL_TIMEOUT_S,
    scorer_timeout_s: float | None = SCORER_TIMEOUT_S,
    first_step_calls: bool = False,
    malformed_ends_turn: bool = False,
) -> AsyncIterator[dict[str, Any]]:
    """The episode's state after each node: one dictionary that grows."""
    world = _Onward(environment) if getattr(environment, "bounded", False) else World(environment)
    tools = HintedToolNode(hints=hints, environment=world, call_timeout_s=call_timeout_s)
    speak = _Speaker(model, world=world, system_prompt=system_prompt, first_step_calls=first_step_calls, seed=seed)
    progress = ProgressNode(world, scorer=scorer, scorer_timeout_s=scorer_timeout_s)
    state: dict[str, Any] = {name: [] for name in _APPENDED}
    while True:
        _add(state, await progress.ainvoke(state))
        yield state
        if state.get("stop_reason"):
            return
        while True:
            _add(state, await with_retries(partial(speak.ainvoke, state), model_retry))
            yield state
            reply = state["messages"][-1]
            if not (reply.tool_calls or (reply.invalid_tool_calls and not malformed_ends_turn)):
                break
            _add(state, await tools.ainvoke(state, _ALONE))
            yield state
            if state["step"] > max_steps:
                yield state | {"stop_reason": StopReason.STEP_LIMIT.value}
                return


class _Onward(World):
    """A world to which nobody returns: there are no checkpoints, and no call can hang in it."""

    def at(self, snapshot: JsonValue) -> Environment:
        return self.live

    def snapshot(self) -> JsonValue:
        return None


class _Speaker(ModelNode):
    """The graph's model node, without LangChain's wrapping of a call."""

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> dict[str, Any]:
        started = time.perf_counter()
        reply = await plain_call(self._bound(input), self._prompt(input))
        return self._update(input, reply, time.perf_counter() - started)


def _add(state: dict[str, Any], update: Any) -> None:
    """Brings a node's update into the state, as the reducers of `EpisodeState` do."""
    for part in update if isinstance(update, list) else [update]:
        if isinstance(part, Command):
            _obey(state, part)
            continue
        for name, value in part.items():
            state[name] = [*state[name], *value] if name in _APPENDED else value


def _obey(state: dict[str, Any], command: Command[Any]) -> None:
    """Brings a tool's `Command` into the state; it may replace and remove messages, but not go to another node."""
    if command.goto or command.graph or not isinstance(command.update, Mapping):
        raise TaskError("A tool answered with a Command for the graph: play with run_episode.")
    update = dict(command.update)
    if "messages" in update:
        state["messages"] = add_messages(state["messages"], update.pop("messages"))
    _add(state, update)
