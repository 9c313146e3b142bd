"""A reply that is still arriving, read like a finished string.

The parser is written as generators: they read the cursor and `yield` when they need text that has not come yet. A
decision therefore never depends on where a chunk ended, which is what makes a streamed reply equal a whole one. Nothing
consumed is searched again, so the cost stays linear for chunks of any size.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A generator that yields when it needs more text and returns a T."""

SPACE: Final = " \t\r\n"
"""The white space of JSON. Wider kinds are text: a non-breaking space is never layout here."""

NOT_SPACE: Final = re.compile(rf"[^{SPACE}]")


class TagSet:
    """A closed set of tags to look for. `Cursor.scan` needs every tag to hold exactly one `<`, its first character."""

    __slots__ = ("longest", "pattern", "tags")

    def __init__(self, tags: Sequence[str]) -> None:
        self.tags = tuple(tags)
        self.pattern = re.compile("|".join(map(re.escape, self.tags)))
        self.longest = max(map(len, self.tags))

    def could_start(self, text: str) -> bool:
        """Whether `text` is a proper beginning of one of the tags."""
        return any(len(text) < len(tag) and tag.startswith(text) for tag in self.tags)


class Cursor:
    """The unread end of the reply, and the text consumed since the last `mark`."""

    __slots__ = ("_base", "_kept", "_kept_length", "final", "pos", "text")

    def __init__(self) -> None:
        self.text = ""
        self.pos = 0
        self.final = False
        self._base = 0  # where the text since the mark begins in `text`
        self._kept: list[str] = []  # what of it `push` has already moved out of `text`
        self._kept_length = 0

    def push(self, chunk: str) -> None:
        """Add `chunk` to the end of what is known."""
        if self.pos > self._base:
            self._kept.append(self.text[self._base : self.pos])
            self._kept_length += self.pos - self._base
        self.text = self.text[self.pos :] + chunk
        self.pos = self._base = 0

    def mark(self) -> None:
        """Forget what was consumed; `offset`, `since_mark` and `rewind` count from here."""
        self._kept.clear()
        self._kept_length = 0
        self._base = self.pos

    @property
    def offset(self) -> int:
        """Characters consumed since the mark."""
        return self._kept_length + self.pos - self._base

    def since_mark(self) -> str:
        """The text consumed since the mark."""
        return "".join(self._kept) + self.text[self._base : self.pos]

    def rewind(self, offset: int) -> None:
        """Put back everything consumed behind `offset`; the mark stays."""
        if offset < self._kept_length:
            self.text = "".join(self._kept) + self.text[self._base :]
            self._kept.clear()
            self._kept_length = self._base = 0
        self.pos = self._base + offset - self._kept_length

    def take(self, count: int) -> str:
        """Consume and return up to `count` known characters."""
        start = self.pos
        self.pos = min(start + count, len(self.text))
        return self.text[start : self.pos]

    def more(self) -> Steps[bool]:
        """Wait for one unread character; False at the end of the reply."""
        while self.pos >= len(self.text):
            if self.final:
                return False
            yield
        return True

    def space(self) -> Steps[str]:
        """Consume white space up to something else or the end."""
        return (yield from self.until(NOT_SPACE))

    def until(self, pattern: re.Pattern[str]) -> Steps[str]:
        """Consume up to the next match of a one-character `pattern`, or to the end."""
        pieces = []
        while (yield from self.more()):
            found = pattern.search(self.text, self.pos)
            pieces.append(self.take((found.start() if found else len(self.text)) - self.pos))
            if found:
                break
        return "".join(pieces)

    def starts_with(self, tags: TagSet) -> Steps[str | None]:
        """The tag that stands here, unconsumed, or None once none can."""
        while True:
            found = tags.pattern.match(self.text, self.pos)
            if found:
                return found.group()
            rest = self.text[self.pos : self.pos + tags.longest]
            if self.final or not tags.could_start(rest):
                return None
            yield

    def at_cut_tag(self, tags: TagSet) -> bool:
        """Whether the reply ends here, or ends here with the beginning of a tag."""
        rest = self.text[self.pos : self.pos + tags.longest]
        return self.final and tags.could_start(rest)

    def scan(self, tags: TagSet) -> tuple[str, str | None]:
        """Consume plain text up to the next tag, which is left unread; without one, up to what may start a tag."""
        found = tags.pattern.search(self.text, self.pos)
        if found:
            return self.take(found.start() - self.pos), found.group()
        end = len(self.text)
        last = self.text.rfind("<", max(self.pos, end - tags.longest))
        if last >= 0 and not self.final and tags.could_start(self.text[last:]):
            end = last
        return self.take(end - self.pos), None
