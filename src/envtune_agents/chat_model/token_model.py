"""`TokenChatModel`: the LangChain face of whatever continues token ids, in this process or on a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseRunManager, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, ensure_config
from langchain_core.tools import BaseTool

from envtune_agents.chat_model.answers import Method, structured, told_the_schema
from envtune_agents.chat_model.configuration import ChatConfiguration
from envtune_agents.chat_model.history import build_prompt
from envtune_agents.chat_model.identity import model_profile
from envtune_agents.chat_model.messages import to_template
from envtune_agents.chat_model.replies import ReplyContext, ReplyStream, to_message
from envtune_agents.chat_model.settings import CallSettings, offered_tools, plain_response_format
from envtune_agents.chat_model.template import template_for
from envtune_agents.chat_model.writing import call_style, thinking_first
from envtune_agents.engine import GenerationRequest, GenerationResult, TokenEvent
from envtune_agents.grammar import ToolChoice, chosen_tools, constraint_for
from envtune_agents.weights import Weights


class TokenEngine(Protocol):
    """Whatever continues token ids: the local `Engine`, or a client of a server."""

    @property
    def weights(self) -> Weights:
        """Tokenizer, template and context of the model, and the model itself where it is in this process."""

    async def aweights(self) -> Weights:
        """As `weights`, without blocking the event loop."""

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """The whole reply."""

    async def agenerate(self, request: GenerationRequest) -> GenerationResult:
        """As `generate`, without blocking the event loop; cancelling the task stops the decoding."""

    def stream(self, request: GenerationRequest) -> Generator[TokenEvent | GenerationResult]:
        """Each token as it is sampled, then the result. Closing the iterator stops the decoding."""

    def astream(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent | GenerationResult]:
        """As `stream`, without blocking the event loop."""


class TokenChatModel(ChatConfiguration):
    """A chat model over a `TokenEngine`: prompts, tools, structured output, streams and exact tokens are here.

    A subclass says which engine, and which adapters it has; `ChatTransformers` is one.
    """

    @property
    def engine(self) -> TokenEngine:
        """What continues this model's prompts."""
        raise NotImplementedError

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: ToolChoice = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools in its prompt.

        `tool_choice`: "auto" or None leaves it to the model; "none" forbids calls; "any", "required" or True demands
        one; a name, or OpenAI's dict, demands that tool. Demands hold for certain: a grammar decodes them, by the
        tool's schema. `strict=True` decodes calls that the model makes of itself by their schemas too.
        `parallel_tool_calls=True` lets a demanded reply hold several calls; False admits one call at most in any reply.
        `response_format` (OpenAI's dict, or a schema) is the form of a reply without calls. Raises `ConstraintError`
        when the choice names no tool.
        """
        offered = offered_tools(tools)
        chosen_tools(offered, tool_choice)
        options = {
            "tool_choice": tool_choice,
            "parallel_tool_calls": parallel_tool_calls,
            "strict": strict,
            "response_format": plain_response_format(response_format),
        }
        given = {name: value for name, value in options.items() if value is not None}
        return self.bind(tools=offered, **given, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Method = "function_calling",
        include_raw: bool = False,
        strict: bool | None = None,
        tools: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model with answers of the form of `schema`: a pydantic class (v1 or v2), a TypedDict, or a JSON schema.

        "function_calling" makes the model call a tool of that form. "json_schema" tells the model the schema in the
        system message and decodes the answer by it; `tools` may then be called before. "json_mode" only decodes: by the
        schema, or any JSON object when there is none. In all three a grammar makes the answer fit and close within
        `max_tokens`. Answers are instances of a pydantic class, else dicts; with `include_raw`, dicts with "raw",
        "parsed" and "parsing_error". `strict` changes nothing here.
        """
        if kwargs:
            raise TypeError(f"Unknown arguments: {', '.join(sorted(kwargs))}. Bind decoding settings to the model.")
        return structured(self, schema, method, include_raw=include_raw, strict=strict, tools=tools)

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own tokens of a text."""
        return list(self.engine.weights.encode(text))

    def get_num_tokens_from_messages(self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of the prompt that messages and tools make; what `trim_messages(token_counter=model)` counts with."""
        if not messages:
            return 0
        weights, offered = self.engine.weights, offered_tools(tools) if tools else None
        template = template_for(weights, self.chat_template, to_template(messages), offered, self.enable_thinking)
        return len(build_prompt(template, messages, offered, self.parse_mode).token_ids)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine = self.engine
        request, context = self._prepare(engine.weights, messages, stop, run_manager, kwargs)
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
        request, context = await asyncio.to_thread(self._prepare, weights, messages, stop, run_manager, kwargs)
        return _chat_result(to_message(await engine.agenerate(request), context))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        engine = self.engine
        request, context = self._prepare(engine.weights, messages, stop, run_manager, kwargs)
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
        request, context = await asyncio.to_thread(self._prepare, weights, messages, stop, run_manager, kwargs)
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
        self,
        weights: Weights,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        run_manager: BaseRunManager | None,
        options: Mapping[str, Any],
    ) -> tuple[GenerationRequest, ReplyContext]:
        """What the engine is to do for one call, and what the reply must know of it. May wait for an adapter."""
        settings = CallSettings.of(self, stop, options)
        told = told_the_schema(messages, settings.response_format)
        tools = list(settings.tools) or None
        template = template_for(weights, self.chat_template, to_template(told), tools, self.enable_thinking)
        prompt = build_prompt(template, told, tools, self.parse_mode)
        constraint = constraint_for(
            settings.tools,
            settings.tool_choice,
            weights=weights,
            parallel=settings.parallel_tool_calls,
            strict=settings.strict,
            answer=settings.answer,
            style=call_style(self.tool_parser, template),
            thinking=thinking_first(template, prompt.prefix),
            max_new_tokens=max(1, min(settings.max_tokens, weights.context_length - len(prompt.token_ids))),
        )
        request = GenerationRequest(
            prompt_ids=prompt.token_ids,
            max_new_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=settings.seed,
            stop=settings.stop,
            constraint=constraint,
            adapter=self.adapter_named(settings.model),
            caller=f"{id(self):x}",
            conversation=settings.conversation or _thread_id(run_manager),
        )
        return request, ReplyContext(
            prompt=prompt,
            tools=tools,
            parse_mode=self.parse_mode,
            model_name=settings.model or self.model,
            template_hash=template.hash,
            constrained=constraint is not None,
            decode=weights.decode,
            shows_logprobs=settings.logprobs,
        )

    def _resolve_model_profile(self) -> ModelProfile | None:
        return model_profile(self.model, None, self.max_tokens)

    def adapter_named(self, wanted: str | None) -> str | None:
        """The engine's name for the adapter that a call wants; None for the base model."""
        raise NotImplementedError


def _chat_result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _thread_id(run_manager: BaseRunManager | None) -> str:
    """The `thread_id` of the LangGraph run that asks; "" outside of one."""
    # langchain-core 1.7 gives streams no run manager; what runs around them stands in the context
    metadata = run_manager.metadata if run_manager else ensure_config().get("metadata", {})
    return str(metadata.get("thread_id", ""))
