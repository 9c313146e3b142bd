"""A model call without LangChain's wrapping, where nothing of the wrapping is in use.

`BaseChatModel.ainvoke` sets up callbacks, tracing, a response cache, a rate limiter and streaming before it calls the
model's own `_agenerate`; for a model that answers in milliseconds that is most of the call. Whoever uses any of these
gets `ainvoke`.
"""

from __future__ import annotations

from typing import Any

from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.runnables.config import var_child_runnable_config
from langsmith.utils import tracing_is_enabled

_IN_USE = ("callbacks", "cache", "rate_limiter", "streaming")
_V0 = (None, "v0")


async def plain_call(runnable: Runnable[Any, Any], messages: list[BaseMessage]) -> AIMessage:
    """What `runnable.ainvoke(messages)` gives, but for the message's random id.

    A chat model with bound settings is called by itself; anything else, and a model with callbacks, a cache, a rate
    limiter or streaming, through LangChain.
    """
    model, settings = _unbound(runnable)
    if model is None or not _is_plain(model, settings):
        reply: AIMessage = await runnable.ainvoke(messages)
        return reply
    generation = (await model._agenerate(messages, **settings)).generations[0]
    said = generation.message
    if generation.generation_info:
        said.response_metadata = {**generation.generation_info, **said.response_metadata}
    if not isinstance(said, AIMessage):
        raise TypeError(f"{type(model).__name__} answered with a {type(said).__name__}, expected an AIMessage.")
    return said


def _unbound(runnable: Runnable[Any, Any]) -> tuple[BaseChatModel | None, dict[str, Any]]:
    """The chat model inside bindings of settings, with all settings; None where something else is in between."""
    settings: dict[str, Any] = {}
    while isinstance(runnable, RunnableBinding) and not runnable.config and not runnable.config_factories:
        settings = {**runnable.kwargs, **settings}
        runnable = runnable.bound
    return (runnable if isinstance(runnable, BaseChatModel) else None), settings


def _is_plain(model: BaseChatModel, settings: dict[str, Any]) -> bool:
    return (
        not any(getattr(model, name, None) for name in _IN_USE)
        and getattr(model, "output_version", None) in _V0
        and not settings.keys() & {"stream", "stop"}
        and get_llm_cache() is None
        and var_child_runnable_config.get() is None
        and not tracing_is_enabled()
    )
