"""LangChain's own unit tests, every flag on that a text model can have. They load no weights."""

from __future__ import annotations

from typing import Any

import pytest

from envtune_agents.chat_model import ChatTransformers

ChatModelUnitTests = pytest.importorskip("langchain_tests.unit_tests").ChatModelUnitTests


class TestChatTransformersUnit(ChatModelUnitTests):  # type: ignore[misc, valid-type]
    """A chat model that is never asked anything."""

    chat_model_class = ChatTransformers
    chat_model_params = {"model": "some/model", "temperature": 0}  # noqa: RUF012
    has_tool_calling = True
    has_tool_choice = True
    has_structured_output = True
    supports_json_mode = True
    supports_anthropic_inputs = True
    returns_usage_metadata = True
    supports_model_override = True
    model_override_value = "an-adapter"

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"ENVTUNE_MODEL": "some/model"}, {}, {"model": "some/model"}
