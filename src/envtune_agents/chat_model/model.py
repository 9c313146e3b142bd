"""`ChatTransformers`: the LangChain face of a local checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import AliasChoices, ConfigDict, Field, field_validator

from envtune_agents.chat_model.engines import EngineKey, shared_engine
from envtune_agents.chat_model.history import build_prompt
from envtune_agents.chat_model.messages import to_template
from envtune_agents.chat_model.replies import ReplyContext, ReplyStream, to_message
from envtune_agents.chat_model.template import AUTO, template_for
from envtune_agents.engine import Engine, GenerationRequest
from envtune_agents.engine.worker import DEFAULT_CACHE_BYTES
from envtune_agents.errors import TaskError, unknown
from envtune_agents.grammar import ToolChoice, chosen_tools, constraint_for
from envtune_agents.weights import Weights

PARSERS = ("auto", "qwen", "qwen_xml")
_DECODING = ("temperature", "max_tokens", "top_p", "top_k", "seed")
_CALL_OPTIONS = frozenset({*_DECODING, "tools", "tool_choice", "parallel_tool_calls", "strict"})


class ChatTransformers(BaseChatModel):
    """A chat model over a local checkpoint: tool calls, streaming, async, and the exact sampled tokens.

        model = ChatTransformers(model="smollm2").bind_tools([get_weather], tool_choice="any")
        reply = model.invoke("What is the weather like in Paris?")
        reply.tool_calls, reply.response_metadata["token_trace"]["completion_token_ids"]

    Weights load at the first use and are shared by every instance in the process that names the same checkpoint,
    precision, device map, context, revision and cache size (`release_engines` frees them). Decoding settings can be
    given for each call: `temperature`, `max_tokens`, `top_p`, `top_k`, `seed`, `stop`, `tools`, `tool_choice`,
    `parallel_tool_calls`; another keyword raises `TypeError`.

    A reply's `response_metadata` holds `model_name`, `finish_reason` ("stop", "length" or "tool_calls"), `continuous`
    (False when an earlier sampled reply had to be tokenised anew for this prompt) and `token_trace`, the fields of
    `TokenTrace` as plain JSON.
    """

    model: str | Path = Field(validation_alias=AliasChoices("model", "model_name"))
    """A folder with safetensors, a GGUF file, a hub id, or "smollm2"; see `load_weights`."""
    precision: str = "auto"
    """"auto", "fp32", "bf16", "8bit" or "4bit"; see `load_weights`."""
    temperature: float = Field(default=0.7, ge=0)
    """0 is greedy. The default is Qwen's own recommendation."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """1 keeps every token: what a rollout for training needs."""
    top_k: int = Field(default=0, ge=0)
    """0 keeps every token."""
    max_tokens: int = Field(default=1024, ge=1)
    """Most tokens of one reply, clipped to what the context leaves."""
    stop: list[str] | None = None
    """Texts that end a reply and are cut from it; a call's own `stop` replaces them."""
    seed: int | None = None
    """Seed of every reply's random generator: the same prompt gets the same reply. None draws one each time."""
    device_map: str | dict[str, Any] | None = None
    """As in transformers; None is the first GPU, else the CPU."""
    max_context: int | None = None
    """Fewer tokens of context than the checkpoint has."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    tool_parser: str = "auto"
    """"auto", "qwen" (JSON) or "qwen_xml": one parser reads both forms."""
    parse_mode: Literal["strict", "repair"] = "strict"
    """"strict" for scoring and training; "repair" mends small slips in a call's JSON."""
    chat_template: str = AUTO
    """"auto": the checkpoint's own, or the built-in Qwen one where the own drops tools. "qwen": the built-in one. Else
    Jinja text."""
    enable_thinking: bool | None = None
    """Passed to the chat template where not None."""
    cache_bytes: int = Field(default=DEFAULT_CACHE_BYTES, ge=0)
    """Memory for the prefix cache, in bytes; 0 turns it off."""

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True, protected_namespaces=())

    @field_validator("tool_parser")
    @classmethod
    def _known_parser(cls, value: str) -> str:
        if value not in PARSERS:
            raise TaskError(unknown("tool parser", value, PARSERS))
        return value

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

    @property
    def _llm_type(self) -> str:
        return "envtune-transformers"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What replies depend on; also the key of LangChain's response cache."""
        names = (*_DECODING, "precision", "stop", "max_context", "revision", "chat_template", "enable_thinking")
        return {
            "model": str(self.model),
            "parse_mode": self.parse_mode,
            **{name: getattr(self, name) for name in names},
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="envtune",
            ls_model_name=str(kwargs.get("model", self.model)),
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if stop or self.stop:
            params["ls_stop"] = stop or self.stop
        return params

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: ToolChoice = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools in its prompt.

        `tool_choice`: "auto" or None leaves it to the model; "none" forbids calls; "any", "required" or True demands
        one; a name, or OpenAI's dict, demands that tool. Demands hold for certain: a grammar decodes them.
        `parallel_tool_calls=True` lets a demanded reply hold several calls. `strict` is accepted and changes nothing,
        since a demanded call always follows its schema. Raises `ConstraintError` when the choice names no tool.
        """
        offered = [convert_to_openai_tool(tool) for tool in tools]
        chosen_tools(offered, tool_choice)
        options = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        given = {name: value for name, value in options.items() if value is not None}
        return self.bind(tools=offered, **given, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine = self.engine
        request, context = self._prepare(engine.weights, messages, stop, kwargs)
        return _chat_result(to_message(engine.generate(request), context))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine = self.engine
        weights = await engine.aweights()
        request, context = await asyncio.to_thread(self._prepare, weights, messages, stop, kwargs)
        return _chat_result(to_message(await engine.agenerate(request), context))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        engine = self.engine
        request, context = self._prepare(engine.weights, messages, stop, kwargs)
        reply = ReplyStream(context)
        for event in engine.stream(request):
            for message in reply.feed(event):
                chunk = ChatGenerationChunk(message=message)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine = self.engine
        weights = await engine.aweights()
        request, context = await asyncio.to_thread(self._prepare, weights, messages, stop, kwargs)
        reply = ReplyStream(context)
        events = engine.astream(request)
        try:
            async for event in events:
                for message in reply.feed(event):
                    chunk = ChatGenerationChunk(message=message)
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        finally:
            await events.aclose()

    def _prepare(
        self, weights: Weights, messages: Sequence[BaseMessage], stop: list[str] | None, options: Mapping[str, Any]
    ) -> tuple[GenerationRequest, ReplyContext]:
        """What the engine is to do for one call, and what the reply must know of it."""
        _refuse_unknown(options)
        tools = [convert_to_openai_tool(tool) for tool in options.get("tools") or []] or None
        template = template_for(weights, self.chat_template, to_template(messages), tools, self.enable_thinking)
        prompt = build_prompt(template, messages, tools, self.parse_mode)
        settings = {name: options[name] if options.get(name) is not None else getattr(self, name) for name in _DECODING}
        budget = settings.pop("max_tokens")
        constraint = constraint_for(
            tools or [],
            options.get("tool_choice"),
            weights=weights,
            parallel=bool(options.get("parallel_tool_calls")),
            max_new_tokens=budget,
        )
        request = GenerationRequest(
            prompt_ids=prompt.token_ids,
            max_new_tokens=budget,
            stop=tuple(stop if stop is not None else self.stop or ()),
            constraint=constraint,
            **settings,
        )
        name = str(self.model)
        return request, ReplyContext(prompt, tools, self.parse_mode, name, template.hash, constraint is not None)


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    """A misspelt option must not be silently ignored; `ls_…` ones are LangChain's notes to its tracer."""
    strange = sorted(name for name in options if name not in _CALL_OPTIONS and not name.startswith("ls_"))
    if strange:
        raise TypeError(f"{unknown('option', strange[0], sorted(_CALL_OPTIONS | {'stop'}))}")


def _chat_result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])
