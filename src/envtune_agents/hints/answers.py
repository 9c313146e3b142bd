"""What tools answer, as text: values that are no text, and content blocks; and messages with other fields.

In: a tool's answer or its message. Out: the text of it, or a copy. Nothing here changes what it is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from envtune_agents.types import Hint

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage, ToolMessage

Message = TypeVar("Message", bound="BaseMessage")


def as_text(answer: Any) -> str:
    """An answer that is no text, as the text a model sees: JSON where JSON can hold it."""
    if isinstance(answer, bytes | bytearray):
        return bytes(answer).decode("utf-8", errors="replace")
    try:
        return json.dumps(answer, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(answer)


def text_of(message: ToolMessage) -> str:
    """The text of a tool message, content blocks joined."""
    return message.content if isinstance(message.content, str) else text_of_blocks(message.content)


def text_of_blocks(blocks: Sequence[Any]) -> str:
    """The text in content blocks; "" for blocks without text, such as images."""
    parts = (block if isinstance(block, str) else str(block.get("text", "")) for block in blocks)
    return "\n".join(part for part in parts if part)


def is_blocks(answer: Any) -> bool:
    """Whether an answer is a list of content blocks, as the tools of MCP servers give it."""
    return (
        isinstance(answer, list)
        and bool(answer)
        and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in answer)
    )


def hint_block(hint: Hint) -> dict[str, str]:
    """A hint as a content block of its own, so that the images and other blocks beside it stay what they are."""
    return {"type": "text", "text": json.dumps({"hint": hint.text}, ensure_ascii=False)}


def changed(message: Message, fields: Mapping[str, Any]) -> Message:
    """`message.model_copy(update=fields)` at half its cost; `fields` are fields that its class declares."""
    extra, private = message.__pydantic_extra__, message.__pydantic_private__
    copied = type(message).__new__(type(message))
    copied.__setstate__(
        {
            "__dict__": {**message.__dict__, **fields},
            "__pydantic_extra__": extra if extra is None else {**extra},
            "__pydantic_fields_set__": {*message.__pydantic_fields_set__, *fields},
            "__pydantic_private__": private if private is None else {**private},
        }
    )
    return copied
