"""The chat model that a command line names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from envtune_agents.cli.app import err
from envtune_agents.cli.options import look_here
from envtune_agents.errors import TaskError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

MODEL_HELP = "A folder, a GGUF file, a hub id, smollm2, or module:factory, a function of yours that gives a chat model."
ModelOption = Annotated[str, typer.Option(help=MODEL_HELP)]


def find_chat_model(name: str, **settings: Any) -> BaseChatModel:
    """The chat model called `name`: what your `module:factory` returns, or local weights under `settings`.

    The files of local weights are looked for at once, and fetched where they are a hub id, before anything heavy is
    imported; `load` reads them.
    """
    if is_own_model(name):
        return _made(name)
    find_checkpoint(name)
    from envtune_agents.chat_model import ChatTransformers

    return ChatTransformers(model=name, **settings)


def find_checkpoint(name: str) -> None:
    """Refuses a name that leads to no checkpoint; fetches one that is a hub id and not on this disk."""
    from envtune_agents.weights.source import find_weights

    with err.status(f"looking for {name}"):
        find_weights(name)


def load(model: BaseChatModel) -> BaseChatModel:
    """The same model with its weights in memory; one that has none here is as it was."""
    from envtune_agents.chat_model import ChatTransformers

    if isinstance(model, ChatTransformers):
        with err.status(f"loading {model.model}"):
            _ = model.engine.weights
    return model


def is_own_model(name: str) -> bool:
    """Whether `name` is module:factory rather than files: a colon that is not part of a path."""
    return ":" in name and "/" not in name and "\\" not in name and not Path(name).exists()


def _made(name: str) -> BaseChatModel:
    from langchain_core.language_models import BaseChatModel

    module, _, factory = name.partition(":")
    look_here()
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
