"""Which chat template drives a checkpoint, and rendering with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from envtune_agents.chat_model.messages import mentions_tools
from envtune_agents.errors import MessageError
from envtune_agents.qwen import render_prompt
from envtune_agents.weights import Weights

Message = Mapping[str, Any]
AUTO, BUILT_IN = "auto", "qwen"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool_7",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"probe": {"type": "string"}}, "required": ["probe"]},
    },
}
_PROBE: list[dict[str, Any]] = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "probe_tool_7", "arguments": {"probe": "x"}}}],
    },
    {"role": "tool", "content": "r"},
]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """One way of turning messages and tools into a prompt."""

    weights: Weights
    source: str | None
    """Jinja text, or None for the library's built-in Qwen template."""
    enable_thinking: bool | None = None
    """Passed to the template where not None."""

    def render(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> str:
        """The prompt text, ending where the assistant is to speak."""
        shown = [dict(message) for message in messages]
        offered = [dict(tool) for tool in tools] if tools else None
        if self.source is None:
            return render_prompt(shown, offered, enable_thinking=self.enable_thinking)
        options = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        try:
            text = self.weights.tokenizer.apply_chat_template(
                shown,
                tools=offered,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
        except Exception as error:  # whatever a template raises is about these messages or about the template
            raise MessageError(
                f"The chat template of '{self.weights.name}' fails on this conversation ({type(error).__name__}: "
                f"{str(error).strip() or 'no details'}). Change the order or kind of messages to what it knows, or use "
                "chat_template='qwen', the built-in one."
            ) from error
        return str(text)

    @property
    def shows_thoughts(self) -> bool:
        """True when it shows the `reasoning_content` of a reply at least until the next user message."""
        return self.source is not None and _shows_thoughts(self.weights.tokenizer, self.source)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the template."""
        return _hash(self.source)


def template_for(
    weights: Weights, choice: str, messages: Sequence[Message], tools: Sequence[Message] | None, thinking: bool | None
) -> ChatTemplate:
    """The template for one call.

    `choice`: "auto" is the checkpoint's own, unless it has none or drops tools while the conversation needs them: then
    the built-in Qwen one. "qwen" is always the built-in one; anything else is Jinja text.
    """
    if choice == BUILT_IN:
        return ChatTemplate(weights, None, thinking)
    if choice != AUTO:
        return ChatTemplate(weights, choice, thinking)
    needs_tools = bool(tools) or mentions_tools(messages)
    own = weights.chat_template
    usable = own is not None and (not needs_tools or renders_tools(weights))
    return ChatTemplate(weights, own if usable else None, thinking)


def renders_tools(weights: Weights) -> bool:
    """True when the checkpoint's own template shows a bound tool and a tool call made earlier."""
    if weights.chat_template is None:
        return False
    return _renders_tools(weights.tokenizer, weights.chat_template)


@lru_cache(maxsize=64)
def _renders_tools(tokenizer: Any, source: str) -> bool:
    def shown(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> bool:
        text = tokenizer.apply_chat_template(messages, tools=tools, chat_template=source, tokenize=False)
        return "probe_tool_7" in str(text)

    try:
        return shown(_PROBE[:2], [_PROBE_TOOL]) and shown(_PROBE, None)
    except Exception:  # a template that raises on tools does not render them
        return False


@lru_cache(maxsize=64)
def _shows_thoughts(tokenizer: Any, source: str) -> bool:
    reply = {**_PROBE[2], "reasoning_content": "probe_thought_7"}
    messages = [*_PROBE[:2], reply, _PROBE[3]]
    try:
        text = tokenizer.apply_chat_template(messages, tools=[_PROBE_TOOL], chat_template=source, tokenize=False)
    except Exception:  # a template that raises on tools is not driven with them either
        return False
    return "probe_thought_7" in str(text)


@lru_cache(maxsize=64)
def _hash(source: str | None) -> str:
    text = source if source is not None else render_prompt(list(_PROBE), [_PROBE_TOOL])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
