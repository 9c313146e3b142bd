"""`/v1/chat/completions`: OpenAI's messages and tools in, our chat model's replies out."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages

from envtune_agents.serve.refusals import Refusal
from envtune_agents.serve.requests import Body, conversation_of, given, stop_texts, usage, wants_usage
from envtune_agents.types import TOKEN_TRACE_KEY

if TYPE_CHECKING:
    from envtune_agents.chat_model import ChatTransformers

_OPTIONS = (
    "tools", "tool_choice", "parallel_tool_calls", "temperature", "top_p", "top_k", "seed", "logprobs",
    "response_format",
)  # fmt: skip


async def chat_completion(model: ChatTransformers, body: Body, adapter: str | None, name: str) -> dict[str, Any]:
    """The whole answer to one request; `name` is what the client called the model."""
    messages, options = _asked(body, adapter)
    reply = await model.ainvoke(messages, **options)
    choice = {"index": 0, "message": _message(reply), "finish_reason": reply.response_metadata["finish_reason"]}
    choice["logprobs"] = _logprobs(reply)
    return {**_head("chat.completion", name), "choices": [{**choice, **_ids(reply, body)}], "usage": _usage(reply)}


async def chat_chunks(
    model: ChatTransformers, body: Body, adapter: str | None, name: str
) -> AsyncGenerator[dict[str, Any]]:
    """The chunks of a stream; their deltas add up to the whole answer."""
    messages, options = _asked(body, adapter)
    head = _head("chat.completion.chunk", name)
    calls, begun = _CallDeltas(), False
    async for chunk in model.astream(messages, **options):
        if not begun:  # not before: what is wrong with the request must still get its own status
            begun = True
            yield {**head, "choices": [_delta({"role": "assistant", "content": ""})]}
        for delta in calls.of(chunk):
            yield {**head, "choices": [_delta(delta)]}
        if finish := chunk.response_metadata.get("finish_reason"):
            last = {**_delta({}), "finish_reason": finish, "logprobs": _logprobs(chunk), **_ids(chunk, body)}
            yield {**head, "choices": [last]}
            if wants_usage(body):
                yield {**head, "choices": [], "usage": _usage(chunk)}


class _CallDeltas:
    """Our stream's chunks as OpenAI's deltas. A malformed call, which OpenAI's protocol has no form for, is content."""

    def __init__(self) -> None:
        self._names: dict[int, dict[str, Any]] = {}
        self._sent: dict[int, int] = {}

    def of(self, chunk: AIMessageChunk) -> list[dict[str, Any]]:
        """The deltas of one chunk, in order."""
        found: list[dict[str, Any]] = []
        if thought := chunk.additional_kwargs.get("reasoning_content"):
            found.append({"reasoning_content": thought})
        if isinstance(chunk.content, str) and chunk.content:
            found.append({"content": chunk.content})
        for part in chunk.tool_call_chunks:
            index = int(part["index"] or 0)
            if part["name"] is not None or part["id"] is not None:
                self._names[index] = {"id": part["id"], "name": part["name"]}
            if part["args"]:
                found.append(self._delta(index, part["args"]))
        return found

    def _delta(self, index: int, text: str) -> dict[str, Any]:
        if index in self._sent:
            return {"tool_calls": [{"index": self._sent[index], "function": {"arguments": text}}]}
        if not text.lstrip().startswith("{"):
            return {"content": text}
        self._sent[index] = len(self._sent)
        named = self._names[index]
        function = {"name": named["name"], "arguments": text}
        call = {"index": self._sent[index], "id": named["id"], "type": "function", "function": function}
        return {"tool_calls": [call]}


def _asked(body: Body, adapter: str | None) -> tuple[list[BaseMessage], dict[str, Any]]:
    """The messages and the settings of a call on our chat model."""
    options = given(body, *_OPTIONS)
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if most is not None:
        options["max_tokens"] = most
    if adapter is not None:
        options["model"] = adapter
    if conversation := conversation_of(body):
        options["conversation"] = conversation
    stop = stop_texts(body)
    return _messages(body.get("messages")), {**options, **({"stop": stop} if stop else {})}


def _messages(plain: Any) -> list[BaseMessage]:
    if not isinstance(plain, list) or not plain:
        raise Refusal(400, "messages should be a list of at least one message.")
    try:
        return convert_to_messages(plain)
    except Exception as error:  # langchain-core raises four kinds for what it cannot read
        reason = str(error).strip().splitlines()
        raise Refusal(400, f"messages cannot be read: {reason[0] if reason else type(error).__name__}") from error


def _message(reply: AIMessage) -> dict[str, Any]:
    broken = [str(call.get("args") or "") for call in reply.invalid_tool_calls]
    content = "\n".join(part for part in (str(reply.text), *broken) if part)
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if reply.tool_calls else "")}
    if reply.tool_calls:
        message["tool_calls"] = [_call(call) for call in reply.tool_calls]
    if thought := reply.additional_kwargs.get("reasoning_content"):
        message["reasoning_content"] = thought
    return message


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call["args"], ensure_ascii=False)
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _delta(delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": None}


def _head(kind: str, name: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": name}


def _logprobs(reply: AIMessage) -> dict[str, Any] | None:
    found = reply.response_metadata.get("logprobs")
    return {"content": [{**token, "bytes": None} for token in found["content"]]} if found else None


def _ids(reply: AIMessage, body: Body) -> dict[str, Any]:
    """The exact tokens, for clients that ask with `return_token_ids`, as vLLM's do."""
    if not body.get("return_token_ids"):
        return {}
    trace = reply.response_metadata[TOKEN_TRACE_KEY]
    return {"prompt_token_ids": trace["prompt_token_ids"], "token_ids": trace["completion_token_ids"]}


def _usage(reply: AIMessage) -> dict[str, Any]:
    counts: Mapping[str, Any] = reply.usage_metadata or {}
    return usage(
        counts.get("input_tokens", 0),
        counts.get("output_tokens", 0),
        (counts.get("input_token_details") or {}).get("cache_read", 0),
        (counts.get("output_token_details") or {}).get("reasoning", 0),
    )
