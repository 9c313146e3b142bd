"""The chat model that a command line names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from envtune_agents.errors import TaskError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

MODEL_HELP = "A folder, a GGUF file, a hub id, smollm2, or module:factory, a function of yours that gives a chat model."
ModelOption = Annotated[str, typer.Option(help=MODEL_HELP)]


def find_chat_model(name: str, **settings: Any) -> BaseChatModel:
    """The chat model called `name`: local weights under `settings`, or what your `module:factory` returns."""
    from envtune_agents.chat_model import ChatTransformers
    from envtune_agents.cli.app import err

    if ":" in name and "/" not in name and "\\" not in name:
        return _made(name)
    model = ChatTransformers(model=name, **settings)
    with err.status(f"loading {name}"):
        _ = model.engine.weights
    return model


def _made(name: str) -> BaseChatModel:
    from langchain_core.language_models import BaseChatModel

    module, _, factory = name.partition(":")
    try:
        model = getattr(import_module(module), factory)()
    except Exception as error:  # somebody else's module and function
        raise TaskError(
            f"Cannot make the chat model {name!r}: {type(error).__name__}: {error}. Expected 'module:factory', a "
            "function without arguments that returns a LangChain chat model."
        ) from error
    if not isinstance(model, BaseChatModel):
        raise TaskError(f"{name!r} gave {type(model).__name__}; it must return a LangChain chat model.")
    return model
