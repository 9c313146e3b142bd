"""Whether a block is a call.

In: a `Block`. Out: its calls and invalid calls, in order. Strict mode takes what the format says and nothing else, so
that a score or a format reward is never paid for mended text; repair mode, for deployment, mends what has one meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from envtune_agents.qwen.blocks import Block
from envtune_agents.qwen.casting import cast, schemas_by_name
from envtune_agents.qwen.cursor import SPACE
from envtune_agents.qwen.json_calls import BadJson, calls_of, load_json, read_name
from envtune_agents.qwen.repair import declared_name, load_tolerant, load_values
from envtune_agents.qwen.reply import InvalidCall, ParsedCall, encodable
from envtune_agents.qwen.xml_calls import xml_call

Verdict = ParsedCall | InvalidCall


class Judge:
    """The tools and the mode that a block is judged by."""

    __slots__ = ("_schemas", "repairs")

    def __init__(self, tools: Iterable[Mapping[str, Any]] | None, *, repairs: bool) -> None:
        self._schemas = schemas_by_name(tools)
        self.repairs = repairs

    def calls(self, block: Block) -> list[Verdict]:
        """The calls of `block`; never an empty list, since a block that holds none is one invalid call."""
        text = encodable(block.body.strip(SPACE))
        if block.functions is None:
            found = self._json(block, text)
        else:
            found = [xml_call(function, text, self._cast) for function in block.functions]
        return [self._named(item) for item in found]

    def bare_calls(self, content: str) -> list[Verdict]:
        """The calls of a whole reply that is JSON without tags; empty unless every one is of a declared tool."""
        try:
            values = load_values(content, closed=False)
        except BadJson:
            return []
        items = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        if not all(isinstance(item, dict) and ("arguments" in item or "parameters" in item) for item in items):
            return []
        found = [self._named(item) for item in calls_of(items, content, load_tolerant)]
        return found if all(isinstance(item, ParsedCall) and item.name in self._schemas for item in found) else []

    def declares(self, name: str) -> bool:
        """Whether `name` is a declared tool, with or without a foreign prefix."""
        return declared_name(name.strip(), self._schemas) in self._schemas

    def _json(self, block: Block, text: str) -> list[Verdict]:
        load = load_tolerant if self.repairs else load_json
        try:
            return calls_of(load_json(block.body), text, load)
        except BadJson as error:
            mended = self._mended(block, text) if self.repairs else []
            return mended or [_invalid(block, text, error)]

    def _mended(self, block: Block, text: str) -> list[Verdict]:
        try:
            values = load_values(block.body, closed=block.closed)
        except BadJson:
            return []
        return [verdict for value in values for verdict in calls_of(value, text, load_tolerant)]

    def _named(self, item: Verdict) -> Verdict:
        if not self.repairs or isinstance(item, InvalidCall):
            return item
        return ParsedCall(declared_name(item.name, self._schemas), item.args)

    def _cast(self, name: str, parameter: str, text: str) -> Any:
        if self.repairs:
            name = declared_name(name, self._schemas)
        return cast(text, parameter, self._schemas.get(name, {}), load_tolerant if self.repairs else load_json)


def _invalid(block: Block, text: str, error: BadJson) -> InvalidCall:
    reason = str(error) if text else "it is empty"
    cut = "" if block.closed else " (the closing tag is missing, so it may have been cut)"
    return InvalidCall(read_name(block.body), text, f"The tool call is invalid: {reason}{cut}.")
