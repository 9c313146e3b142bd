"""The model node: one model call on the conversation so far, with the tools that are visible now."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.tools import BaseTool

from envtune_agents.graph.world import World
from envtune_agents.hints.answers import changed
from envtune_agents.tool_schema import same_objects


class ModelNode(Runnable[Any, Any]):
    """Calls a chat model with the visible tools bound, and counts the step.

    `first_step_calls` makes the first reply of every turn a tool call (`tool_choice="any"`), for models that would not
    write one by themselves. `seed` is passed to models that have such a field, changed from step to step.
    """

    def __init__(
        self,
        model: BaseChatModel,
        tools: Sequence[BaseTool] = (),
        *,
        world: World | None = None,
        system_prompt: str | None = None,
        first_step_calls: bool = False,
        seed: int | None = None,
    ) -> None:
        self._model = model
        self._tools = list(tools)
        self._world = world
        self._system = [SystemMessage(system_prompt)] if system_prompt else []
        self._first_step_calls = first_step_calls
        self._seed = seed if "seed" in type(model).model_fields else None
        self._bindings: dict[bool, tuple[list[BaseTool], Runnable[Any, Any]]] = {}

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> dict[str, Any]:
        started = time.perf_counter()
        model, settings = _unbound(self._bound(input))
        reply = model.invoke(self._prompt(input), config, **settings)
        return self._update(input, reply, time.perf_counter() - started)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> dict[str, Any]:
        started = time.perf_counter()
        model, settings = _unbound(self._bound(input))
        reply = await model.ainvoke(self._prompt(input), config, **settings)
        return self._update(input, reply, time.perf_counter() - started)

    def _prompt(self, state: dict[str, Any]) -> list[BaseMessage]:
        return [*self._system, *state["messages"]]

    def _bound(self, state: dict[str, Any]) -> Runnable[Any, Any]:
        tools = list(self._world.at(state.get("world")).tools()) if self._world else self._tools
        step = state.get("step", 0)
        bound = self._with_tools(tools, must_call=self._first_step_calls and step == 0) if tools else self._model
        if self._seed is None:
            return bound
        return bound.bind(seed=(self._seed + 1_000_003 * state.get("turn", 0) + 10_007 * step) % 2**31)

    def _with_tools(self, tools: list[BaseTool], *, must_call: bool) -> Runnable[Any, Any]:
        """The model with these tools bound; turning tools into schemas is slow, so it happens once for each menu."""
        known = self._bindings.get(must_call)
        if known is None or not same_objects(known[0], tools):
            settings: dict[str, Any] = {"tool_choice": "any"} if must_call else {}
            known = self._bindings[must_call] = (tools, self._model.bind_tools(tools, **settings))
        return known[1]

    def _update(self, state: dict[str, Any], reply: AIMessage, duration_s: float) -> dict[str, Any]:
        noted = {**reply.response_metadata, "duration_s": duration_s}
        return {"messages": [changed(reply, {"response_metadata": noted})], "step": state.get("step", 0) + 1}


def _unbound(model: Runnable[Any, Any]) -> tuple[Runnable[Any, Any], Mapping[str, Any]]:
    """A model and the settings bound to it: a binding without a config of its own still merges configs at each call."""
    if isinstance(model, RunnableBinding) and not model.config and not model.config_factories:
        return model.bound, model.kwargs
    return model, {}
