"""LangChain messages -> the OpenAI-style dicts that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, FunctionMessage, ToolMessage

from envtune_agents.errors import MessageError
from envtune_agents.qwen import flatten_content

_NOT_TEXT = frozenset(
    {"image", "image_url", "input_image", "audio", "input_audio", "video", "video_url", "file", "document", "media"}
)
_ROLES = {"human": "user", "system": "system", "ai": "assistant"}
OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"


def to_template(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """One dict for each message, with `role` and `content` (always text), and `tool_calls` and `reasoning_content`
    where there are any. Raises `MessageError` for no messages, a kind of message that has no role, and content that is
    not text."""
    if not messages:
        raise MessageError("The conversation holds no message; at least one is needed, such as HumanMessage('Hello').")
    return [_one(message, position) for position, message in enumerate(messages)]


def call_text(text: str) -> str:
    """The raw text of a malformed call, with the tag it was said in."""
    return text if OPEN_TAG in text else f"{OPEN_TAG}\n{text.strip()}\n{CLOSE_TAG}"


def mentions_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """True when a conversation holds tool calls or results, so that its template must know tools."""
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def reasoning_of(message: AIMessage) -> str:
    """What an assistant message thought: `reasoning_content`, or the text of its reasoning and thinking blocks."""
    if found := message.additional_kwargs.get("reasoning_content"):
        return str(found)
    blocks = message.content if isinstance(message.content, list) else []
    thought = (
        block.get("reasoning") or block.get("thinking")
        for block in blocks
        if isinstance(block, dict) and block.get("type") in ("reasoning", "thinking")
    )
    return "".join(text for text in thought if isinstance(text, str))


def _refuse_other_media(message: BaseMessage, position: int) -> None:
    for block in message.content if isinstance(message.content, list) else ():
        if isinstance(block, dict) and block.get("type") in _NOT_TEXT:
            raise MessageError(
                f"Message {position + 1} ({message.type}) holds a block of type {block['type']!r}; this model reads "
                "text only. Describe it in words, or use a model that takes it."
            )


def _one(message: BaseMessage, position: int) -> dict[str, Any]:
    _refuse_other_media(message, position)
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
        raise MessageError(
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
    if reasoning := reasoning_of(message):
        rendered["reasoning_content"] = reasoning
    return rendered
