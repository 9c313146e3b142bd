"""Whether `<tool_call>` opens a call or is only mentioned.

In: a cursor behind the tag, and the text in front of it. Out: how to read on. A tag in quotes, or in the middle of a
line with no call behind it, is prose; a tag at the start of a line opens a call, well formed or not.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from envtune_agents.qwen.blocks import CLOSE, END_TOKENS, OPEN
from envtune_agents.qwen.cursor import Cursor, Steps, TagSet

_NEXT: Final = TagSet((OPEN, CLOSE, "<function", "```", *END_TOKENS))
_PUNCTUATION: Final = "`:,.;)!?"


class Opening(StrEnum):
    """What follows an opening tag."""

    JSON = "json"
    """A body that starts like JSON, perhaps in a code fence."""
    XML = "xml"
    """A body that starts with a function tag."""
    OTHER = "other"
    """A body that is no call at all."""
    AGAIN = "again"
    """The same tag once more: this one says nothing."""
    PROSE = "prose"
    """Text: the tag was only mentioned."""


def opening(cursor: Cursor, before: str, *, lone: bool) -> Steps[Opening]:
    """Read on behind `<tool_call>`; the white space behind it is consumed.

    `before` ends where the tag starts; `lone` says that only white space precedes on its line.
    """
    gap = yield from cursor.space()
    if not (yield from cursor.more()):
        return Opening.PROSE if is_quoted(before, "") else Opening.OTHER
    char = cursor.text[cursor.pos]
    if is_quoted(before, "" if gap else char):
        return Opening.PROSE
    if char in "{[":
        return Opening.JSON
    tag = yield from cursor.starts_with(_NEXT)
    if tag == "<function":
        return Opening.XML
    if tag in END_TOKENS or (char == "<" and cursor.at_cut_tag(_NEXT)):
        return Opening.OTHER
    if tag == "```" and (lone or "\n" in gap):
        return Opening.JSON
    if tag and lone:
        return Opening.AGAIN if tag == OPEN else Opening.OTHER
    starts_body = "\n" in gap or (not gap and char not in _PUNCTUATION)
    return Opening.OTHER if lone and starts_body else Opening.PROSE


def is_quoted(before: str, behind: str) -> bool:
    """Whether a tag stands in inline code, or between the same quotation marks."""
    if before.endswith("`"):
        return not before.endswith("```")
    return bool(behind) and behind in "\"'" and before.endswith(behind)
