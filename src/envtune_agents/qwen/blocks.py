"""Where a tool call ends.

In: a cursor at the first character of a call's body. Out: a `Block`, the cursor behind it. The borders are the same in
both parse modes; whether the body is a call is judged later.

Borders are string-aware: a tag inside a string is data. A body that cannot be JSON even loosely (a string that never
ends) must not swallow its neighbours, so the scan then goes back to the first tag that may have closed the call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from envtune_agents.qwen.cursor import SPACE, Cursor, Steps, TagSet
from envtune_agents.qwen.xml_calls import XmlFunction

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
RESPONSE: Final = "<tool_response>"
FUNCTION: Final = "<function="
FUNCTION_END: Final = "</function>"
PARAMETER: Final = "<parameter="
END_TOKENS: Final = ("<|im_end|>", "<|endoftext|>")

BODY_TAGS: Final = TagSet((OPEN, CLOSE, RESPONSE, *END_TOKENS))

_QUOTES: Final = {'"': '"', "'": "'", "“": "”", "‘": "’"}
_STRING_RUNS: Final = {
    quote: re.compile(rf"(?:[^{quote}\\<]++|\\.|<(?!\Z|/\Z|/?t))*+", re.DOTALL) for quote in _QUOTES.values()
}
"""What stands inside a string up to its quote or to a `<` that may start a tag."""
_OUTSIDE: Final = re.compile(rf"[{SPACE}]+|[{{}}\[\],:<\"'“‘]|[^{SPACE}{{}}\[\],:<\"'“‘]+")


@dataclass(slots=True)
class Block:
    """One call block as it stands in the reply."""

    body: str
    """Text between the tags."""
    closed: bool
    """Whether its closing tag was seen, which proves that nothing was cut."""
    functions: list[XmlFunction] | None = field(default=None)
    """The functions of an XML body; None for any other body."""


def other_body(cursor: Cursor) -> Steps[Block]:
    """A body that is neither JSON nor XML: everything up to the next tag."""
    while True:
        _, tag = cursor.scan(BODY_TAGS)
        if tag or cursor.final:
            return (yield from _end(cursor))
        yield


def _end(cursor: Cursor) -> Steps[Block]:
    """The block that ends at the cursor; its closing tag is consumed, or the piece of one that the reply ends with."""
    body = cursor.since_mark()
    tag = yield from cursor.starts_with(BODY_TAGS)
    if tag == CLOSE or (tag is None and cursor.at_cut_tag(BODY_TAGS)):
        cursor.take(len(CLOSE))
    return Block(body, closed=tag == CLOSE)


def json_body(cursor: Cursor) -> Steps[Block]:
    """A body that starts like JSON."""
    return (yield from _JsonScan(cursor).run())


class _JsonScan:
    """One pass over a JSON body, tolerant of everything but a broken string."""

    __slots__ = ("after_string", "anywhere", "blank", "cursor", "depth", "expects", "on_line")

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.depth = 0
        self.expects = True  # whether a string may start here
        self.after_string = False
        self.blank = False  # whether a raw newline and nothing else precedes, inside a string
        self.anywhere: int | None = None  # first closing tag inside the last string
        self.on_line: int | None = None  # first tag on a line of its own inside the last string

    def run(self) -> Steps[Block]:
        cursor = self.cursor
        while (yield from cursor.more()):
            stop = self._skim()
            if stop == "<":
                if (yield from cursor.starts_with(BODY_TAGS)):
                    return (yield from _end(cursor))
                cursor.take(1)
                self.expects = False
            elif stop == "?":
                return (yield from self._broken())
            elif stop == ".":
                block = yield from self._tail()
                if block:
                    return block
            elif stop:
                cursor.take(1)
                if not (yield from self._string(_QUOTES[stop])):
                    return (yield from self._unfinished())
        return (yield from _end(cursor))

    def _skim(self) -> str:
        """Consume what stands outside strings, and say what stopped it.

        A quote or `<` (unread), `?` where the body stops making sense, `.` behind the bracket that closes the outermost
        one, or an empty string where the known text ends.
        """
        cursor, match = self.cursor, _OUTSIDE.match
        while found := match(cursor.text, cursor.pos):
            piece = found.group()
            char = piece[0]
            if char in SPACE:
                cursor.pos = found.end()
                continue
            if char == "<":
                return char
            if self.after_string and char not in ",:}]":
                return "?"
            if char in _QUOTES:
                return char if self.expects else "?"
            cursor.pos = found.end()
            if self.after_string:  # the string was sound, and so the tags in it were data
                self.after_string, self.anywhere, self.on_line = False, None, None
            self.expects = char in "{[,:"
            if char in "{[":
                self.depth += 1
            elif char in "}]":
                self.depth -= 1
                if self.depth <= 0:
                    return "."
        return ""

    def _string(self, quote: str) -> Steps[bool]:
        """Consume the rest of a string; False when the reply ends in it."""
        cursor, plain = self.cursor, _STRING_RUNS[quote]
        self.blank = False
        while (yield from cursor.more()):
            found = plain.match(cursor.text, cursor.pos)
            self._pass(cursor.take(len(found.group()) if found else 0))
            char = cursor.text[cursor.pos : cursor.pos + 1]
            if char == quote:
                cursor.take(1)
                self.after_string, self.expects = True, False
                return True
            if char == "<":
                yield from self._tag_inside()
                self._pass(cursor.take(1))
            elif char and cursor.final:
                cursor.take(1)  # a backslash that the reply ends with
            elif char:
                yield
        return False

    def _pass(self, piece: str) -> None:
        """Note whether `piece` of a string leaves the cursor at the start of a line."""
        line = piece.rpartition("\n")
        self.blank = (bool(line[1]) or self.blank) and not line[2].strip(SPACE)

    def _tag_inside(self) -> Steps[None]:
        tag = yield from self.cursor.starts_with(BODY_TAGS)
        if tag == CLOSE and self.anywhere is None:
            self.anywhere = self.cursor.offset
        if tag in (OPEN, CLOSE) and self.blank and self.on_line is None:
            self.on_line = self.cursor.offset

    def _broken(self) -> Steps[Block]:
        """The body stops making sense: it ends at the first tag that looked like data, or else at the next tag."""
        seen = [offset for offset in (self.anywhere, self.on_line) if offset is not None]
        if not seen:
            return (yield from other_body(self.cursor))
        self.cursor.rewind(min(seen))
        return (yield from _end(self.cursor))

    def _unfinished(self) -> Steps[Block]:
        """The reply ends inside a string: cut there, unless a line of its own already held a tag.

        A tag in the middle of a line is more likely quoted text, and running what a cut argument quotes is the one
        mistake that must not happen.
        """
        if self.on_line is not None:
            self.cursor.rewind(self.on_line)
        return (yield from _end(self.cursor))

    def _tail(self) -> Steps[Block | None]:
        """What follows a complete value; None when another value begins."""
        cursor = self.cursor
        self.depth, self.expects, self.after_string = 0, False, False
        while True:
            yield from cursor.space()
            if not (yield from cursor.more()):
                return (yield from _end(cursor))
            char = cursor.text[cursor.pos]
            if char in "{[":
                return None
            if char == "<" or char not in ",}]`":
                break
            cursor.take(1)
        tag = yield from cursor.starts_with(BODY_TAGS)
        if tag or cursor.at_cut_tag(BODY_TAGS):
            return (yield from _end(cursor))
        return (yield from _prose_or_junk(cursor))


def _prose_or_junk(cursor: Cursor) -> Steps[Block]:
    """Text behind a complete call: junk in the block when a closing tag follows, else text behind a lost tag."""
    start = cursor.offset
    block = yield from other_body(cursor)
    if block.closed:
        return block
    cursor.rewind(start)
    return Block(cursor.since_mark(), closed=False)
