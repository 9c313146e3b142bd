"""A served checkpoint or a provider behind the OpenAI protocol, as a chat model."""

from __future__ import annotations

import os
import re
from typing import Any

from langchain_core.language_models import BaseChatModel

from envtune_agents.errors import TaskError, require

INSTALL = "pip install langchain-openai"
TIMEOUT_S = 600.0


def served_model(endpoint: str, model: str, *, temperature: float = 0.0, max_tokens: int = 1024) -> BaseChatModel:
    """The model called `model` at an OpenAI-compatible address such as "http://localhost:8000/v1".

    The key is the environment's OPENAI_API_KEY; servers without keys need none. Raises `MissingDependencyError` without
    langchain-openai, `TaskError` for an address that is none.
    """
    if not re.match(r"https?://[^\s/]+", endpoint):
        raise TaskError(f"The endpoint {endpoint!r} is no address. Expected one such as http://localhost:8000/v1.")
    module: Any = require("langchain_openai", feature="An endpoint", install=INSTALL)
    made: BaseChatModel = module.ChatOpenAI(
        model=model,
        base_url=endpoint,
        api_key=os.environ.get("OPENAI_API_KEY") or "none",
        temperature=temperature,
        max_tokens=max_tokens,
        timeout=TIMEOUT_S,
        max_retries=0,  # the model node tries again, for every provider alike
    )
    return made
