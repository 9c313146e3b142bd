"""How a checkpoint writes its replies, read off its chat template: the form of calls, and whether it thinks first."""

from __future__ import annotations

from envtune_agents.chat_model.template import ChatTemplate
from envtune_agents.grammar import Style, Thinking
from envtune_agents.qwen.think import opens_think

PARSERS = ("auto", "qwen", "qwen_xml")


def call_style(tool_parser: str, template: ChatTemplate) -> Style:
    """The form of a demanded call: `tool_parser`'s, or for "auto" the one the template shows the model."""
    if tool_parser == "auto":
        return "xml" if template.source is not None and "<function=" in template.source else "json"
    return "xml" if tool_parser == "qwen_xml" else "json"


def thinking_first(template: ChatTemplate, prompt_end: str) -> Thinking:
    """Whether the reply may begin with a think block: a prompt can have opened one, or closed one already."""
    if opens_think(prompt_end):
        return "open"
    closed = prompt_end.rstrip().endswith("</think>")
    return "may" if template.shows_thoughts and not closed else "no"
