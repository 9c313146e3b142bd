"""`ChatTransformers`: the chat model over a local checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_core.language_models import ModelProfile
from pydantic import Field, field_validator

from envtune_agents.chat_model.adapters import adapter_path, loaded_adapter
from envtune_agents.chat_model.engines import EngineKey, shared_engine
from envtune_agents.chat_model.identity import files_stamp, model_profile
from envtune_agents.chat_model.token_model import TokenChatModel
from envtune_agents.engine import Engine
from envtune_agents.engine.worker import DEFAULT_CACHE_BYTES


class ChatTransformers(TokenChatModel):
    """A chat model over a local checkpoint: tool calls, streaming, async, and the exact sampled tokens.

        model = ChatTransformers(model="smollm2").bind_tools([get_weather], tool_choice="any")
        reply = model.invoke("What is the weather like in Paris?")
        reply.tool_calls, reply.response_metadata["token_trace"]["completion_token_ids"]

    Weights load at the first use and are shared by every instance in the process that names the same checkpoint,
    precision, device map, context, revision and cache size (`release_engines` frees them). Instances get equal shares
    of the engine, and so do the `thread_id`s of LangGraph within one. A call may bring settings of its own:
    `temperature`, `max_tokens`, `top_p`, `top_k`, `seed`, `logprobs`, `stop`, `tools`, `tool_choice`,
    `parallel_tool_calls`, `strict`, `response_format`, `model`, the name of an adapter, and `conversation`, which
    stands for a `thread_id`; another keyword raises `TypeError`.

    A reply's `response_metadata` holds `model_name`, `finish_reason` ("stop", "length" or "tool_calls"), `continuous`
    (False when an earlier sampled reply had to be tokenised anew for this prompt) and `token_trace`, the fields of
    `TokenTrace` as plain JSON.
    """

    precision: str = "auto"
    """"auto", "fp32", "bf16", "fp16", "w16a32", "8bit" or "4bit"; see `load_weights`."""
    adapters: dict[str, str] | None = None
    """LoRA adapters by name: the folder of each. A call chooses one by `model=name`."""
    device_map: str | dict[str, Any] | None = None
    """As in transformers; None is the first GPU, else the CPU."""
    max_context: int | None = None
    """Fewer tokens of context than the checkpoint has."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    cache_bytes: int = Field(default=DEFAULT_CACHE_BYTES, ge=0)
    """Memory for the prefix cache, in bytes; 0 turns it off."""

    @field_validator("adapters", mode="before")
    @classmethod
    def _as_folders(cls, value: Any) -> Any:
        return {str(name): str(path) for name, path in value.items()} if isinstance(value, Mapping) else value

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """The public place of the class, which serialised configurations name."""
        return ["envtune_agents"]

    @property
    def engine(self) -> Engine:
        """The engine that runs this checkpoint, shared in the process."""
        return shared_engine(
            EngineKey.of(
                self.model,
                precision=self.precision,
                device_map=self.device_map,
                max_context=self.max_context,
                revision=self.revision,
                cache_bytes=self.cache_bytes,
            )
        )

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Load the LoRA adapter in folder `path` (as peft saves it) into the model; calls choose it by `model=name`.

        Raises `WeightsError` when the folder holds no adapter, or one that does not fit.
        """
        loaded_adapter(self.engine, str(path))
        self.adapters = {**(self.adapters or {}), name: str(path)}

    @property
    def _llm_type(self) -> str:
        return "envtune-transformers"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What replies depend on."""
        own = {name: getattr(self, name) for name in ("precision", "adapters", "max_context", "revision")}
        return {**super()._identifying_params, "files": files_stamp(self.model), **own}

    def _resolve_model_profile(self) -> ModelProfile | None:
        return model_profile(self.model, self.max_context, self.max_tokens)

    def adapter_named(self, wanted: str | None) -> str | None:
        """The engine's name for the adapter called `wanted`, loaded if need be; None for the base model.

        Raises `WeightsError` when there is none of that name.
        """
        path = adapter_path(wanted, self.model, self.adapters or {}) if wanted else None
        return loaded_adapter(self.engine, path) if path else None
