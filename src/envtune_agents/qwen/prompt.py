"""The built-in Qwen prompt: messages and tools -> text, for checkpoints whose own template ignores tools.

In: OpenAI-style messages and tools. Out: byte for byte what the chat template of Qwen3-4B-Instruct-2507 renders, with
list content flattened first (the template would drop it). A checkpoint whose template knows tools is driven by its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

Message = Mapping[str, Any]

_TOOLS_HEAD: Final = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_TAIL: Final = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def render_prompt(
    messages: Sequence[Message],
    tools: Iterable[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = True,
    enable_thinking: bool | None = None,
) -> str:
    """The prompt for `messages`, ending where the assistant has to go on.

    Roles are system, user, assistant (with `tool_calls`) and tool; other roles are skipped, as the template does.
    `enable_thinking=False` closes an empty think block in advance, as the hybrid Qwen3 template does; None and True
    leave that to the model.
    """
    declared = list(tools or ())
    first_is_system = bool(messages) and messages[0].get("role") == "system"
    text = _system(flatten_content(messages[0].get("content")) if first_is_system else None, declared)
    for index, message in enumerate(messages):
        if index or not first_is_system:
            text.append(_turn(messages, index, message))
    if add_generation_prompt:
        text.append("<|im_start|>assistant\n")
        if enable_thinking is False:
            text.append("<think>\n\n</think>\n\n")
    return "".join(text)


def flatten_content(content: object) -> str:
    """The text of a message's content: a string as it is, text blocks joined, everything else left out."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    return "".join(map(_block_text, content))


def format_call(name: str, args: Mapping[str, Any]) -> str:
    """One call in the canonical Qwen form, the inverse of `parse_reply` for a single call."""
    return f"<tool_call>\n{_dump({'name': name, 'arguments': dict(args)})}\n</tool_call>"


def _block_text(block: object) -> str:
    if isinstance(block, str):
        return block
    text = block.get("text") if isinstance(block, Mapping) else None
    return text if isinstance(text, str) and block.get("type", "text") == "text" else ""  # type: ignore[attr-defined]


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _system(system: str | None, tools: list[Mapping[str, Any]]) -> list[str]:
    if tools:
        lines = "".join(f"\n{_dump(tool)}" for tool in tools)
        head = "" if system is None else f"{system}\n\n"
        return [f"<|im_start|>system\n{head}{_TOOLS_HEAD}{lines}{_TOOLS_TAIL}<|im_end|>\n"]
    return [] if system is None else [f"<|im_start|>system\n{system}<|im_end|>\n"]


def _turn(messages: Sequence[Message], index: int, message: Message) -> str:
    role, content = message.get("role"), flatten_content(message.get("content"))
    if role in ("user", "system"):
        return f"<|im_start|>{role}\n{content}<|im_end|>\n"
    if role == "assistant":
        calls = "".join(_rendered_calls(message.get("tool_calls") or (), content))
        return f"<|im_start|>assistant\n{content}{calls}<|im_end|>\n"
    if role == "tool":
        opens = index == 0 or messages[index - 1].get("role") != "tool"
        closes = index + 1 == len(messages) or messages[index + 1].get("role") != "tool"
        head, tail = "<|im_start|>user" if opens else "", "<|im_end|>\n" if closes else ""
        return f"{head}\n<tool_response>\n{content}\n</tool_response>{tail}"
    return ""


def _rendered_calls(calls: Iterable[Mapping[str, Any]], content: str) -> Iterable[str]:
    for index, call in enumerate(calls):
        function = call.get("function") or call
        arguments = function["arguments"]
        args = arguments if isinstance(arguments, str) else _dump(arguments)
        newline = "\n" if index or content else ""
        # The name stands between the quotes as it is: the template does not escape it either.
        yield f'{newline}<tool_call>\n{{"name": "{function["name"]}", "arguments": {args}}}\n</tool_call>'
