"""What a chat model is: its settings, its name, what it can do, and when two of them would give the same reply."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel, LangSmithParams
from pydantic import AliasChoices, ConfigDict, Field, field_validator, model_validator

from envtune_agents.chat_model.settings import DECODING, offered_tools, plain_response_format
from envtune_agents.chat_model.template import AUTO
from envtune_agents.chat_model.writing import PARSERS
from envtune_agents.errors import TaskError, unknown

MODEL_VARIABLE = "ENVTUNE_MODEL"
"""Environment variable that names the model where the constructor does not."""
_OTHER_NAMES = ("model_name", "max_completion_tokens", "stop_sequences")
_OF_SERVERS = (
    "api_key", "base_url", "organization", "timeout", "request_timeout", "max_retries", "streaming", "stream_usage",
    "default_headers",
)  # fmt: skip
"""Options of hosted chat models that mean nothing here; taken, so that an app keeps its constructor call."""
_IDENTITY = (*DECODING, "stop", "tool_parser", "parse_mode", "chat_template", "enable_thinking")


def _model_from_environment() -> str:
    named = os.environ.get(MODEL_VARIABLE)
    if not named:
        raise TaskError(
            "No model was named. Give model= a folder, a GGUF file, a hub id or 'smollm2', or set the environment "
            f"variable {MODEL_VARIABLE}."
        )
    return named


class ChatConfiguration(BaseChatModel):
    """The settings that all our chat models share: plain values, which pickle, serialise and compare. Runs nothing."""

    model: str = Field(default_factory=_model_from_environment, validation_alias=AliasChoices("model", "model_name"))
    """A folder with safetensors, a GGUF file, a hub id, or "smollm2"; see `load_weights`. Without it, the environment
    variable ENVTUNE_MODEL."""
    temperature: float = Field(default=0.7, ge=0)
    """0 is greedy. The default is Qwen's own recommendation."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """1 keeps every token: what a rollout for training needs."""
    top_k: int = Field(default=0, ge=0)
    """0 keeps every token."""
    max_tokens: int = Field(default=1024, ge=1, validation_alias=AliasChoices("max_tokens", "max_completion_tokens"))
    """Most tokens of one reply, clipped to what the context leaves."""
    stop: list[str] | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    """Texts that end a reply and are cut from it; a call's own `stop` replaces them."""
    seed: int | None = None
    """Seed of every reply's random generator: the same prompt gets the same reply. None draws one each time."""
    logprobs: bool = False
    """Whether a reply's `response_metadata` also holds "logprobs" in OpenAI's form."""
    tool_parser: str = "auto"
    """How demanded calls are written: "qwen" (JSON), "qwen_xml", or "auto", as the chat template shows it. Replies are
    read in both forms."""
    parse_mode: Literal["strict", "repair"] = "strict"
    """"strict" for scoring and training; "repair" mends small slips in a call's JSON."""
    chat_template: str = AUTO
    """"auto": the checkpoint's own, or the built-in Qwen one where the own drops tools. "qwen": the built-in one. Else
    Jinja text."""
    enable_thinking: bool | None = None
    """Passed to the chat template where not None."""

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        """A misspelt option must not be silently ignored."""
        if isinstance(values, Mapping):
            known = {*cls.model_fields, *_OTHER_NAMES, *_OF_SERVERS}
            strange = sorted(str(name) for name in values if name not in known)
            if strange:
                own = sorted(set(cls.model_fields) - set(BaseChatModel.model_fields))
                raise TaskError(unknown("option", strange[0], own))
        return values

    @field_validator("model", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """A `Path` becomes text that cannot be taken for a hub id."""
        if not isinstance(value, Path):
            return value
        return str(value) if len(value.parts) > 2 or value.is_absolute() else f".{os.sep}{value}"

    @field_validator("tool_parser")
    @classmethod
    def _known_parser(cls, value: str) -> str:
        if value not in PARSERS:
            raise TaskError(unknown("tool parser", value, PARSERS))
        return value

    @property
    def model_name(self) -> str:
        """`model`, by the name that other chat models give it."""
        return self.model

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: `dumps` and `loads` of langchain_core give an equal chat model."""
        return True

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What replies depend on."""
        return {"model": self.model, **{name: getattr(self, name) for name in _IDENTITY}}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of LangChain's response cache: the identity above and the settings of this call.

        Replaces the inherited one, which leaves out defaults, the state of the files, and what a class says.
        """
        call = dict(kwargs)
        if call.get("tools"):
            call["tools"] = offered_tools(call["tools"])
        if call.get("response_format") is not None:
            call["response_format"] = plain_response_format(call["response_format"])
        whole = {**self._identifying_params, "type": self._llm_type, "output_version": self.output_version}
        return json.dumps([whole, {**call, "stop": stop}], sort_keys=True, default=repr)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="envtune",
            ls_model_name=str(kwargs.get("model") or self.model),
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if stop or self.stop:
            params["ls_stop"] = stop or self.stop or []
        return params
