"""A conversation -> prompt token ids that continue exactly the tokens sampled before.

Rendering a parsed reply again does not give back what was sampled (spacing, order of keys, text between calls), and the
same text may have other tokens. So a reply that carries its `TokenTrace` enters the next prompt as it was said.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from envtune_agents.chat_model.messages import to_template
from envtune_agents.chat_model.template import ChatTemplate
from envtune_agents.qwen import flatten_content, parse_reply
from envtune_agents.types import TOKEN_TRACE_KEY, TokenTrace
from envtune_agents.weights import Weights

PREFIX_CHARS = 64
"""End of the prompt that a parser needs to see, in characters: a template may have opened `<think>` there."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt."""

    token_ids: tuple[int, ...]
    """Length T_prompt."""
    prefix: str
    """The last characters of the prompt's text."""
    continuous: bool
    """False when an earlier sampled reply had to be rendered anew, so that its tokens differ from those sampled."""


def trace_of(message: BaseMessage) -> TokenTrace | None:
    """The token trace a message carries, or None."""
    found = message.response_metadata.get(TOKEN_TRACE_KEY) if isinstance(message, AIMessage) else None
    if not isinstance(found, Mapping) or "prompt_token_ids" not in found:
        return None
    return TokenTrace.from_plain(found)


def build_prompt(
    template: ChatTemplate, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]] | None, mode: str
) -> Prompt:
    """The prompt for the next reply.

    Continues the last sampled reply token by token where that gives exactly this conversation: its prompt must decode
    to what the template makes of the messages before it, and its text must parse (under `mode`) to the message as it
    stands now. Otherwise the whole conversation is rendered and tokenised afresh.
    """
    shown = to_template(messages)
    traces = {
        i: trace
        for i, message in enumerate(messages)
        if (trace := trace_of(message)) and _still_says(message, trace, template.weights, tools, mode)
    }
    sampled = any(trace_of(message) for message in messages)
    if traces and (prompt := _continued(template, shown, tools, _as_said(traces))) is not None:
        return prompt
    text = template.render(shown, tools)
    return Prompt(tuple(template.weights.encode(text)), text[-PREFIX_CHARS:], continuous=not sampled)


def _as_said(traces: dict[int, TokenTrace]) -> dict[int, TokenTrace]:
    """The replies to enter as they were said: the last, and those that its prompt holds token by token. The others
    had been rendered anew by then, as all are when tools appear."""
    last = traces[max(traces)]

    def held(trace: TokenTrace) -> bool:
        said = trace.prompt_token_ids + trace.completion_token_ids
        return last.prompt_token_ids[: len(said)] == said

    return {i: trace for i, trace in traces.items() if trace is last or held(trace)}


def _still_says(
    message: BaseMessage, trace: TokenTrace, weights: Weights, tools: Sequence[Mapping[str, Any]] | None, mode: str
) -> bool:
    """True when the sampled text still parses to this message: nobody edited it, and nothing was cut off."""
    assert isinstance(message, AIMessage)
    prefix = weights.decode(trace.prompt_token_ids[-PREFIX_CHARS:])[-PREFIX_CHARS:]
    said = parse_reply(trace.text, tools=_plain(tools), prefix=prefix, mode=mode)
    calls = [(call.name, call.args) for call in said.tool_calls]
    if "</think>" in trace.text and not said.reasoning:
        return False  # an empty thought, which no message holds and templates treat as they like
    return (
        said.content == flatten_content(message.content)
        and calls == [(call["name"], call["args"]) for call in message.tool_calls]
        and len(said.invalid) == len(message.invalid_tool_calls)
        and (said.reasoning or "") == message.additional_kwargs.get("reasoning_content", "")
    )


def _plain(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    return [dict(tool) for tool in tools] if tools else None


def _continued(
    template: ChatTemplate,
    shown: Sequence[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    as_said: dict[int, TokenTrace],
) -> Prompt | None:
    """The prompt that continues the last reply of `as_said`, or None when it would not be this conversation."""
    weights, last = template.weights, max(as_said)
    marks = {i: f"[[reply {i} {uuid.uuid4().hex}]]" for i in as_said}
    whole = _rendered(template, shown, tools, as_said, marks)
    before = _rendered(template, shown[:last], tools, as_said, marks)
    if whole is None or before is None:
        return None
    head, _, tail = whole.partition(marks[last])
    trace = as_said[last]
    if head != before or trace.template_hash != template.hash:
        return None
    for i, mark in marks.items():
        head = head.replace(mark, as_said[i].text)
    if _normal(weights, head) != weights.decode(trace.prompt_token_ids):
        return None
    rest = _after_end_token(weights, trace, tail)
    if rest is None:
        return None
    ids = (*trace.prompt_token_ids, *trace.completion_token_ids, *weights.encode(rest))
    return Prompt(ids, tail[-PREFIX_CHARS:], continuous=True)


def _rendered(
    template: ChatTemplate,
    shown: Sequence[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    as_said: dict[int, TokenTrace],
    marks: dict[int, str],
) -> str | None:
    """The conversation as text with a mark for each reply of `as_said`; None when the template drops a part of one.

    A reply's think block is marked too: a template that hides old thoughts (hybrid Qwen3) must not be overruled. One
    that knows no thoughts at all (Qwen3-2507) hides none: there a reply stays whole.
    """
    marked = [dict(message) for message in shown]
    for i, message in enumerate(marked):
        if i in marks:
            message.pop("tool_calls", None)
            message["content"] = marks[i]
            if "reasoning_content" in message:
                message["reasoning_content"] = f"think {marks[i]}"
    text = template.render(marked, tools)
    for i, message in enumerate(marked):
        if "reasoning_content" in message and i in marks and template.shows_thoughts:
            text = _without_thought(template.weights, text, marks[i], as_said[i])
        if i in marks and text.count(marks[i]) != 1:
            return None
    return text


def _without_thought(weights: Weights, text: str, mark: str, trace: TokenTrace) -> str:
    """`text` with the think block and the mark after it folded into the mark, up to where the sampled text begins."""
    found = re.search(rf"(<think>\s*){re.escape('think ' + mark)}\s*</think>\s*{re.escape(mark)}", text)
    if found is None:
        return ""
    opened_by_prompt = weights.decode(trace.prompt_token_ids[-8:]).rstrip().endswith("<think>")
    return text[: found.start()] + (found[1] if opened_by_prompt else "") + mark + text[found.end() :]


def _after_end_token(weights: Weights, trace: TokenTrace, tail: str) -> str | None:
    """The text still to be tokenised after the reply, or None when the template ends replies with another token."""
    said = trace.completion_token_ids
    ended = bool(said) and said[-1] in weights.end_token_ids
    if weights.decode(said[:-1] if ended else said) != trace.text:
        return None
    if not ended:
        return tail
    end = weights.decode(said[-1:])
    return tail.removeprefix(end) if tail.startswith(end) else None


def _normal(weights: Weights, text: str) -> str:
    """`text` as the tokenizer's normalizer leaves it (Qwen's is NFC), which is what decoding gives back."""
    normalizer = weights.tokenizer.backend_tokenizer.normalizer
    return str(normalizer.normalize_str(text)) if normalizer is not None else text
