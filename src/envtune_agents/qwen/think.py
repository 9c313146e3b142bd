"""Reasoning: what stands inside think.

In: a cursor behind an opened think. Out: reasoning on the output, the cursor behind `</think>`. Nothing in here is ever
run. The one exception belongs to repair mode: a think that was never closed and ends with complete calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from envtune_agents.qwen.blocks import END_TOKENS, OPEN
from envtune_agents.qwen.cursor import SPACE, Cursor, Steps, TagSet
from envtune_agents.qwen.output import Output
from envtune_agents.qwen.reply import ParsedCall

THINK: Final = "<think>"
THINK_END: Final = "</think>"
_TAGS: Final = TagSet((THINK, THINK_END, OPEN, *END_TOKENS))

Lift = Callable[[str], tuple[str, Sequence[ParsedCall]]]
"""The end of an unclosed think -> the reasoning that stays, and the calls it ends with."""


def opens_think(prefix: str) -> bool:
    """Whether the end of a rendered prompt leaves think open."""
    turn = prefix[prefix.rfind("<|im_start|>") + 1 :]
    return turn.rfind(THINK) > turn.rfind(THINK_END)


def read_think(cursor: Cursor, out: Output, lift: Lift | None, *, nested: bool) -> Steps[bool]:
    """Read up to the end of think; True when the reply ends in it.

    `nested` counts inner thinks, so that a call between two closing tags is not run. When the outer one never closes,
    an inner `<think>` was only mentioned, and the first closing tag counts after all.
    """
    return (yield from _Think(cursor, out, lift, nested).run())


class _Think:
    """One pass over one think."""

    __slots__ = ("cursor", "depth", "first_end", "held", "lift", "lone", "nested", "out")

    def __init__(self, cursor: Cursor, out: Output, lift: Lift | None, nested: bool) -> None:
        cursor.mark()
        self.cursor = cursor
        self.out = out
        self.lift = lift
        self.depth = 1
        self.nested = nested
        self.lone = True
        self.held: int | None = None  # offset from which reasoning is kept back
        self.first_end: int | None = None  # offset behind the first closing tag of an inner think

    def run(self) -> Steps[bool]:
        while True:
            text, tag = self.cursor.scan(_TAGS)
            self._text(text)
            if tag is None and not self.cursor.final:
                yield
            elif tag is None or tag in END_TOKENS:
                return self._unclosed()
            elif self._tag(tag):
                return False

    def _text(self, text: str) -> None:
        line = text.rpartition("\n")
        self.lone = (bool(line[1]) or self.lone) and not line[2].strip(SPACE)
        if text and self.held is None:
            self.out.reasoning(text)

    def _tag(self, tag: str) -> bool:
        """Consume one tag; True when it closes this think."""
        cursor = self.cursor
        if tag == THINK_END and self.depth == 1:
            self._give(cursor.offset)
            cursor.take(len(tag))
            self.out.border()
            return True
        if tag == OPEN and self.lift and self.lone and self.held is None:
            self.held = cursor.offset
        if tag == THINK_END:
            self.held = cursor.offset if self.held is None else self.held
            self.first_end = self.first_end or cursor.offset + len(tag)
        self.depth += (tag == THINK and self.nested) - (tag == THINK_END)
        self._text(cursor.take(len(tag)))
        return False

    def _give(self, end: int) -> None:
        """Hand out the reasoning that was kept back, up to `end`."""
        if self.held is not None:
            self.out.reasoning(self.cursor.since_mark()[self.held : end])

    def _unclosed(self) -> bool:
        if self.first_end is not None:
            self._give(self.first_end - len(THINK_END))
            self.cursor.rewind(self.first_end)
            self.out.border()
            return False
        if self.lift and self.held is not None:
            rest, calls = self.lift(self.cursor.since_mark()[self.held :])
            self.out.reasoning(rest)
            if calls:
                self.out.verdicts(calls)
        return True
