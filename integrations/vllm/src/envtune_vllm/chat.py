"""`ChatServed`: the chat model over a checkpoint that a server runs."""

from __future__ import annotations

import os
import threading
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator

from envtune_agents.chat_model import TokenChatModel
from envtune_agents.errors import TaskError, WeightsError, unknown
from envtune_vllm.engine import ServedEngine, ServerSettings

KEY_VARIABLE = "ENVTUNE_API_KEY"
"""Environment variable that holds the API key where the constructor does not."""


def _key_from_environment() -> SecretStr | None:
    key = os.environ.get(KEY_VARIABLE)
    return SecretStr(key) if key else None


class ChatServed(TokenChatModel):
    """A chat model over a checkpoint served by vLLM, SGLang or `envtune serve`: with the exact sampled tokens.

        model = ChatServed(model="Qwen/Qwen3-4B-Instruct-2507", base_url="http://127.0.0.1:8000")
        reply = model.bind_tools([get_weather]).invoke("What is the weather like in Paris?")
        reply.tool_calls, reply.response_metadata["token_trace"]["completion_token_ids"]

    It is `ChatTransformers` with the model elsewhere: prompts are rendered and tokenised here, ids go to the server,
    sampled ids and log-probabilities come back, replies are parsed here. So tools, `tool_choice`, structured output,
    streaming, async and the token trace are the same, and a call takes the same settings. `model=` of a call is an
    adapter that the server has loaded. Nothing is asked before the first call.

    A reply without a `token_trace` comes from a server that does not report what it sampled; a rollout with such a
    reply is good for SFT on text only. Raises `ServerError` when the server cannot be reached, refuses or breaks off.
    """

    base_url: str = "http://127.0.0.1:8000"
    """Where the server is; "/v1" at the end may stay."""
    api_key: SecretStr | None = Field(default_factory=_key_from_environment)
    """Sent as a bearer token. Without it, the environment variable ENVTUNE_API_KEY."""
    server: Literal["auto", "vllm", "sglang"] = "auto"
    """Which way of asking; "auto" asks the server what it is."""
    tokenizer: str | None = None
    """Folder, GGUF file or hub id of the served model's tokenizer. None takes the folder that the server says it
    loaded, where it is on this disk too, else `model`."""
    timeout_s: float = Field(default=600.0, gt=0, validation_alias=AliasChoices("timeout_s", "timeout"))
    """Longest silence of the server within a call, in seconds."""
    max_retries: int = Field(default=2, ge=0)
    """How often a call that failed for a passing reason is made again."""
    default_headers: dict[str, str] | None = None
    """Sent with every request."""

    @field_validator("base_url")
    @classmethod
    def _as_root(cls, value: str) -> str:
        root = value.rstrip("/").removesuffix("/v1").rstrip("/")
        if urlsplit(root).scheme not in ("http", "https") or not urlsplit(root).netloc:
            raise TaskError(f"base_url is {value!r}. Wanted: an address such as http://127.0.0.1:8000.")
        return root

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _tokenizer_as_text(cls, value: Any) -> Any:
        return None if value is None else str(value)

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """The public place of the class, which serialised configurations name."""
        return ["envtune_vllm"]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What is left out of a serialised configuration, and which environment variable brings it back."""
        return {"api_key": KEY_VARIABLE}

    @property
    def engine(self) -> ServedEngine:
        """The client of the server, shared in the process."""
        headers = dict(self.default_headers or {})
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key.get_secret_value()}"
        return _shared(
            ServerSettings(
                base_url=self.base_url,
                model=self.model,
                server=self.server,
                tokenizer=self.tokenizer,
                headers=tuple(sorted(headers.items())),
                timeout_s=self.timeout_s,
                max_retries=self.max_retries,
            )
        )

    @property
    def _llm_type(self) -> str:
        return "envtune-served"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What replies depend on."""
        own = {name: getattr(self, name) for name in ("base_url", "server", "tokenizer")}
        return {**super()._identifying_params, **own}

    def adapter_named(self, wanted: str | None) -> str | None:
        """`wanted`, if the server has it; None for the base model. Raises `WeightsError` for any other."""
        if wanted in (None, self.model):
            return None
        served = self.engine.names()
        if wanted not in served:
            raise WeightsError(f"{unknown('model', wanted, served)} These are served at {self.base_url}.")
        return wanted


_engines: dict[ServerSettings, ServedEngine] = {}
_lock = threading.Lock()


def _shared(settings: ServerSettings) -> ServedEngine:
    with _lock:
        if settings not in _engines:
            _engines[settings] = ServedEngine(settings)
        return _engines[settings]
