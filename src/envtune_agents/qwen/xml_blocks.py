"""Where an XML call ends, and which of the tags in it are structure.

In: a cursor at `<function`. Out: a `Block` with its functions, the cursor behind it. Values have no escapes, so a value
is read up to `</parameter>` and tags inside are data; where that is missing, only a tag on a line of its own ends it.
"""

from __future__ import annotations

import re
from typing import Final

from envtune_agents.qwen.blocks import (
    CLOSE,
    END_TOKENS,
    FUNCTION,
    FUNCTION_END,
    OPEN,
    PARAMETER,
    RESPONSE,
    Block,
    other_body,
)
from envtune_agents.qwen.cursor import NOT_SPACE, Cursor, Steps, TagSet
from envtune_agents.qwen.xml_calls import XmlFunction, is_blank

_PARAMETER_END: Final = "</parameter>"
_TAGS: Final = TagSet((FUNCTION, FUNCTION_END, PARAMETER, _PARAMETER_END, OPEN, CLOSE, RESPONSE, *END_TOKENS))
_FOLLOWERS: Final = TagSet((OPEN, CLOSE, RESPONSE, *END_TOKENS))
_FIRST: Final = TagSet((FUNCTION,))
_HEAD_END: Final = re.compile(r"[>\n<]")


def xml_body(cursor: Cursor, *, wrapped: bool) -> Steps[Block]:
    """A body that starts with `<function`; `wrapped` says whether `<tool_call>` stands before it."""
    if not (yield from cursor.starts_with(_FIRST)):
        return (yield from other_body(cursor))  # `<function name=…>` and other dialects
    return (yield from _XmlScan(cursor, wrapped).run())


def head(cursor: Cursor, tag: str) -> Steps[str | None]:
    """Consume `<tag=name>` and return the name, or None when its `>` is missing."""
    cursor.take(len(tag))
    name = yield from cursor.until(_HEAD_END)
    if (yield from cursor.more()) and cursor.text[cursor.pos] == ">":
        cursor.take(1)
        return name.strip()
    return None


class _XmlScan:
    """One pass over an XML body."""

    __slots__ = ("cursor", "functions", "key", "lone", "nested", "pieces", "resume", "wrapped")

    def __init__(self, cursor: Cursor, wrapped: bool) -> None:
        self.cursor = cursor
        self.wrapped = wrapped
        self.functions: list[XmlFunction] = []
        self.key: str | None = None  # parameter whose value is being read
        self.pieces: list[str] = []  # of that value
        self.lone = True  # whether only white space precedes on this line
        self.nested = 0  # `<tool_call>` inside the value that are still open
        self.resume: int | None = None  # behind the last </function>, where text may follow a lost tag

    def run(self) -> Steps[Block]:
        while True:
            text, tag = self.cursor.scan(_TAGS)
            self._text(text)
            if tag is None and not self.cursor.final:
                yield
                continue
            if tag is None:
                return self._lost_tag()
            done = yield from (self._in_value(tag) if self.key is not None else self._between(tag))
            if done:
                return done

    def _text(self, text: str) -> None:
        if not text:
            return
        line = text.rpartition("\n")
        self.lone = (bool(line[1]) or self.lone) and is_blank(line[2])
        if self.key is not None:
            self.pieces.append(text)
        elif not is_blank(text) and self.resume is None:
            self._fault("text stands outside its parameters")

    def _fault(self, fault: str) -> None:
        if self.functions:
            self.functions[-1].fault = self.functions[-1].fault or fault

    def _keep(self, count: int) -> None:
        """Consume `count` characters of the value being read."""
        self.pieces.append(self.cursor.take(count))
        self.lone = False

    def _store(self) -> None:
        if self.key is not None:
            self.functions[-1].values.append((self.key, "".join(self.pieces)))
        self.key, self.pieces = None, []

    def _in_value(self, tag: str) -> Steps[Block | None]:
        if self.nested:
            self.nested += (tag == OPEN) - (tag == CLOSE)
        elif tag == _PARAMETER_END:
            self._store()
            self.cursor.take(len(tag))
            self.lone = False
            return None
        elif (tag == PARAMETER and self.lone) or (tag in (FUNCTION_END, CLOSE) and (yield from self._ends_value(tag))):
            self._store()
            return (yield from self._between(tag))
        elif tag == FUNCTION and self.lone:
            self._fault("another function starts inside a value")
        elif tag == OPEN and self.lone:
            self.nested = 1
        self._keep(len(tag))
        return None

    def _ends_value(self, tag: str) -> Steps[bool]:
        """Whether `tag` ends a value that has no `</parameter>`."""
        if tag == FUNCTION_END and self.lone:
            return True
        if tag == CLOSE and not self.lone:
            return False
        cursor, place = self.cursor, self.cursor.offset
        cursor.take(len(tag))
        yield from cursor.space()
        follower = yield from cursor.starts_with(_FOLLOWERS)
        ends = bool(follower) or not (yield from cursor.more())
        cursor.rewind(place)
        return ends

    def _between(self, tag: str) -> Steps[Block | None]:
        cursor = self.cursor
        if tag not in (FUNCTION, PARAMETER, FUNCTION_END, _PARAMETER_END):
            return self._closing(tag)
        if tag == FUNCTION:
            self.functions.append(XmlFunction((yield from head(cursor, tag))))
            if self.functions[-1].name is None:
                self._fault("the function tag has no >")
            self.resume = None
        elif tag == PARAMETER:
            key = yield from head(cursor, tag)
            if not key:
                self._fault("a parameter tag has no name or no >")
            self.key = key or ""
        else:
            cursor.take(len(tag))
        self.lone = False
        if tag == FUNCTION_END and self.functions:
            self.functions[-1].ended = True
            self.resume = cursor.offset
            if not self.wrapped:
                return (yield from self._bare_end())
        return None

    def _bare_end(self) -> Steps[Block]:
        """The end of a function without `<tool_call>`; a closing tag that follows all the same belongs to it."""
        place = self.cursor.offset
        yield from self.cursor.space()
        closed = (yield from self.cursor.starts_with(_FOLLOWERS)) == CLOSE
        if closed:
            self.cursor.take(len(CLOSE))
        else:
            self.cursor.rewind(place)
        return Block(self.cursor.since_mark().removesuffix(CLOSE), closed, self.functions)

    def _closing(self, tag: str) -> Block:
        if tag != CLOSE:
            return self._lost_tag()
        body = self.cursor.since_mark()
        self.cursor.take(len(CLOSE))
        if self.resume is not None and not is_blank(body[self.resume :]):
            self._fault("text stands outside its parameters")
        if self.functions:
            self.functions[-1].ended = True
        return Block(body, closed=True, functions=self.functions)

    def _lost_tag(self) -> Block:
        """The block ends without its closing tag; text behind the last finished function is not part of it."""
        if self.resume is not None and self.key is None:
            self.cursor.rewind(self.resume)
            self._drop_cut_tag()
        return Block(self.cursor.since_mark(), closed=False, functions=self.functions)

    def _drop_cut_tag(self) -> None:
        """Consume the beginning of a tag that the reply ends with, and the white space in front of it."""
        cursor = self.cursor
        start = NOT_SPACE.search(cursor.text, cursor.pos)
        if (
            start
            and cursor.final
            and _FOLLOWERS.could_start(cursor.text[start.start() : start.start() + _FOLLOWERS.longest])
        ):
            cursor.pos = len(cursor.text)
