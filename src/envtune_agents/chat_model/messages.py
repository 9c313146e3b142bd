"""LangChain messages -> the OpenAI-style dicts that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, FunctionMessage, ToolMessage

from envtune_agents.qwen import flatten_content

_ROLES = {"human": "user", "system": "system", "ai": "assistant"}
OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"


def to_template(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """One dict for each message, with `role` and `content` (always text), and `tool_calls` and `reasoning_content`
    where there are any. Raises `ValueError` for a kind of message that has no role."""
    return [_one(message) for message in messages]


def call_text(text: str) -> str:
    """The raw text of a malformed call, with the tag it was said in."""
    return text if OPEN_TAG in text else f"{OPEN_TAG}\n{text.strip()}\n{CLOSE_TAG}"


def mentions_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """True when a conversation holds tool calls or results, so that its template must know tools."""
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def _one(message: BaseMessage) -> dict[str, Any]:
    text = flatten_content(message.content)
    if isinstance(message, AIMessage):
        return _assistant(message, text)
    if isinstance(message, ToolMessage):
        return {"role": "tool", "content": text, "tool_call_id": message.tool_call_id, "name": message.name or ""}
    if isinstance(message, FunctionMessage):
        return {"role": "tool", "content": text, "name": message.name}
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": text}
    if message.type not in _ROLES:
        raise ValueError(
            f"A message of type {message.type!r} has no place in a prompt. Known: {', '.join(_ROLES)}, tool."
        )
    return {"role": _ROLES[message.type], "content": text}


def _assistant(message: AIMessage, text: str) -> dict[str, Any]:
    broken = [call_text(call.get("args") or "") for call in message.invalid_tool_calls]
    rendered: dict[str, Any] = {"role": "assistant", "content": "\n".join([text, *broken] if text else broken)}
    if message.tool_calls:
        rendered["tool_calls"] = [
            {"type": "function", "id": call["id"], "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    if reasoning := message.additional_kwargs.get("reasoning_content"):
        rendered["reasoning_content"] = reasoning
    return rendered
