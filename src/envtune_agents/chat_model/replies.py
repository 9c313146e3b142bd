"""A finished generation -> `AIMessage`, and a running one -> `AIMessageChunk`s that add up to the same message."""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, ToolCall
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

from envtune_agents.chat_model.history import Prompt
from envtune_agents.chat_model.messages import call_text
from envtune_agents.engine import GenerationResult, TokenEvent
from envtune_agents.qwen import ParsedReply, ReplyParser, parse_reply
from envtune_agents.qwen.think import THINK, THINK_END, opens_think
from envtune_agents.types import TOKEN_TRACE_KEY, TokenTrace


@dataclass(frozen=True, slots=True)
class ReplyContext:
    """What a reply must know of its request."""

    prompt: Prompt
    tools: list[dict[str, Any]] | None
    parse_mode: str
    model_name: str
    template_hash: str
    constrained: bool
    decode: Callable[[Sequence[int]], str]
    """Token ids -> text, special tokens kept."""
    shows_logprobs: bool = False


def to_message(result: GenerationResult, context: ReplyContext) -> AIMessage:
    """The whole reply."""
    parsed = parse_reply(result.text, tools=context.tools, prefix=context.prompt.prefix, mode=context.parse_mode)
    calls, invalid = _calls(parsed)
    return AIMessage(
        content=parsed.content,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        additional_kwargs={"reasoning_content": parsed.reasoning} if parsed.reasoning else {},
        usage_metadata=_usage(result, context),
        response_metadata=_metadata(result, context, bool(calls)),
    )


class ReplyStream:
    """Engine events in, chunks out.

    Text streams as it comes, a tool call once the parser knows that it is complete: LangChain fills in the rest of half
    a call's JSON when it adds chunks up, and a cut call must never run.
    """

    def __init__(self, context: ReplyContext) -> None:
        self._context = context
        self._parser = ReplyParser(tools=context.tools, prefix=context.prompt.prefix, mode=context.parse_mode)
        self._calls = 0

    def feed(self, event: TokenEvent | GenerationResult) -> Iterator[AIMessageChunk]:
        """The chunks this event completes; the result's last chunk carries usage and metadata."""
        if isinstance(event, TokenEvent):
            yield from self._chunks(self._parser.feed(event.text))
            return
        yield from self._chunks(self._parser.feed(event.tail))
        events, parsed = self._parser.close()
        yield from self._chunks(events)
        for index, bad in enumerate(parsed.invalid, start=self._calls):
            yield _call_chunk(index, bad.name, _call_id(), "")
            yield _call_chunk(index, None, None, call_text(bad.text))
        yield AIMessageChunk(
            content="",
            usage_metadata=_usage(event, self._context),
            response_metadata=_metadata(event, self._context, bool(parsed.tool_calls)),
            chunk_position="last",
        )

    def _chunks(self, events: Iterable[tuple[Any, ...]]) -> Iterator[AIMessageChunk]:
        for kind, *rest in events:
            if kind == "content":
                yield AIMessageChunk(content=rest[0])
            elif kind == "reasoning":
                yield AIMessageChunk(content="", additional_kwargs={"reasoning_content": rest[0]})
            elif kind == "name":
                self._calls += 1
                yield _call_chunk(rest[0], rest[1], _call_id(), "")
            else:
                yield _call_chunk(rest[0], None, None, rest[1])


def _call_chunk(index: int, name: str | None, call_id: str | None, args: str) -> AIMessageChunk:
    chunk = tool_call_chunk(name=name, args=args, id=call_id, index=index)
    return AIMessageChunk(content="", tool_call_chunks=[chunk])


def _calls(parsed: ParsedReply) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """Calls and malformed calls in LangChain's form, each with an id of its own.

    A malformed call keeps its opening tag in `args`: without it LangChain would read half a call's JSON as arguments
    when it adds stream chunks up.
    """
    calls = [tool_call(name=call.name, args=dict(call.args), id=_call_id()) for call in parsed.tool_calls]
    invalid = [
        invalid_tool_call(name=bad.name, args=call_text(bad.text), id=_call_id(), error=bad.error)
        for bad in parsed.invalid
    ]
    return calls, invalid


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _usage(result: GenerationResult, context: ReplyContext) -> UsageMetadata:
    output = len(result.token_ids) or result.unreported_tokens
    return UsageMetadata(
        input_tokens=result.prompt_tokens,
        output_tokens=output,
        total_tokens=result.prompt_tokens + output,
        input_token_details=InputTokenDetails(cache_read=result.cached_tokens),
        output_token_details=OutputTokenDetails(reasoning=_thought_tokens(result, context)),
    )


def _thought_tokens(result: GenerationResult, context: ReplyContext) -> int:
    """How many of the sampled tokens belong to the think block, its closing tag included; 0 where nobody knows them."""
    text = result.full_text
    if not (opens_think(context.prompt.prefix) or text.lstrip().startswith(THINK)):
        return 0
    end = text.find(THINK_END)
    if end < 0:
        return len(result.token_ids)
    end += len(THINK_END)
    return bisect_left(
        range(len(result.token_ids)), end, key=lambda count: len(context.decode(result.token_ids[:count]))
    )


def _logprobs(result: GenerationResult, context: ReplyContext) -> dict[str, Any]:
    """Each sampled token with its log-probability, as OpenAI's API gives them."""
    pairs = zip(result.token_ids, result.logprobs, strict=True)
    return {
        "content": [{"token": context.decode([token]), "logprob": value, "top_logprobs": []} for token, value in pairs]
    }


def _metadata(result: GenerationResult, context: ReplyContext, called: bool) -> dict[str, Any]:
    trace = TokenTrace(
        prompt_token_ids=context.prompt.token_ids,
        completion_token_ids=result.token_ids,
        logprobs=result.logprobs,
        text=result.full_text,
        template_hash=context.template_hash,
        constrained=context.constrained,
    )
    finish = "length" if result.finish_reason == "length" else "tool_calls" if called else "stop"
    return {
        "model_name": context.model_name,
        "finish_reason": finish,
        "continuous": context.prompt.continuous,
        **({"logprobs": _logprobs(result, context)} if context.shows_logprobs and result.token_ids else {}),
        **({TOKEN_TRACE_KEY: trace.as_plain()} if result.token_ids else {}),
    }
