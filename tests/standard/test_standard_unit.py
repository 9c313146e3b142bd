"""LangChain's own unit tests, every flag on that a text model can have. They load no weights."""

from __future__ import annotations

from typing import Any

import pytest
from standard_flags import Flags

from envtune_agents.chat_model import ChatTransformers

ChatModelUnitTests = pytest.importorskip("langchain_tests.unit_tests").ChatModelUnitTests


class TestChatTransformersUnit(Flags, ChatModelUnitTests):  # type: ignore[misc, valid-type]
    """A chat model that is never asked anything."""

    chat_model_class = ChatTransformers
    chat_model_params = {"model": "some/model", "temperature": 0}  # noqa: RUF012

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"ENVTUNE_MODEL": "some/model"}, {}, {"model": "some/model"}
