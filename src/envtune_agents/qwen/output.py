"""The reply as it takes shape: events for whoever streams, and the record at the end.

White space that touches a block (think or a call) is layout and belongs to the block: it is dropped, except that the
run which keeps two texts apart stays. Elsewhere every character passes through.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from envtune_agents.qwen.cursor import SPACE
from envtune_agents.qwen.reply import InvalidCall, ParsedCall, ParsedReply, encodable

ContentEvent = tuple[Literal["content"], str]
ReasoningEvent = tuple[Literal["reasoning"], str]
NameEvent = tuple[Literal["name"], int, str]
ArgsEvent = tuple[Literal["args"], int, str]
Event = ContentEvent | ReasoningEvent | NameEvent | ArgsEvent


class Output:
    """Collects content, reasoning and calls, and the events they cause."""

    def __init__(self) -> None:
        self.lone = True
        """Whether only white space precedes on the current line; true behind a block."""
        self.after_block = False
        """Whether a call block precedes, with only white space between."""
        self.blocks = 0
        """Call blocks so far, valid or not."""
        self.last = ""
        """The last three characters of the text in front of the cursor."""
        self.held: list[str] | None = None
        """Content kept back because the whole reply may yet prove to be a call; None when it streams."""
        self._events: list[Event] = []
        self._fresh: list[str] = []
        self._content: list[str] = []
        self._space: list[str] = []
        self._separator = ""
        self._touched = False
        self._reasoning: list[str] = []
        self._reasoning_space: list[str] = []
        self._calls: list[ParsedCall] = []
        self._invalid: list[InvalidCall] = []

    def content(self, text: str) -> None:
        """Add text outside the blocks."""
        line = text.rpartition("\n")
        self.lone = (bool(line[1]) or self.lone) and not line[2].strip(SPACE)
        self.last = (self.last + text)[-3:]
        body = text.lstrip(SPACE)
        if not body:
            self._space.append(text)
            return
        self._space.append(text[: len(text) - len(body)])
        self._put(self._gap())
        kept = body.rstrip(SPACE)
        self._put(kept)
        self._space = [body[len(kept) :]]
        self.after_block = False

    def _gap(self) -> str:
        space = "".join(self._space)
        if not self._touched:
            return space
        self._touched = False
        separator, self._separator = self._separator or space, ""
        return separator if self._content else ""

    def _put(self, text: str) -> None:
        if text:
            text = encodable(text)
            self._content.append(text)
            (self._fresh if self.held is None else self.held).append(text)

    def release(self) -> None:
        """Stream the content that was held."""
        self._fresh.extend(self.held or ())
        self.held = None

    def drop_held(self) -> None:
        """Forget the held content: it became calls."""
        self.held = None
        self._content.clear()
        self._space.clear()

    def border(self) -> None:
        """A block stands here."""
        if not self._touched:
            self._separator = "".join(self._space)
        self._space.clear()
        self._touched, self.lone, self.last = True, True, ""

    def reasoning(self, text: str) -> None:
        """Add text inside think; white space at its ends is layout."""
        body = text.strip(SPACE)
        if not body:
            self._reasoning_space.append(text)
            return
        start = text.index(body[0])
        before = "".join((*self._reasoning_space, text[:start])) if self._reasoning else ""
        piece = encodable(before + body)
        self._reasoning.append(piece)
        self._reasoning_space = [text[start + len(body) :]]
        self._flush()
        self._events.append(("reasoning", piece))

    def verdicts(self, found: Iterable[ParsedCall | InvalidCall]) -> None:
        """Add the calls of one block."""
        self.release()
        self.border()
        self.blocks += 1
        self.after_block = True
        self._flush()
        for item in found:
            if isinstance(item, InvalidCall):
                self._invalid.append(item)
                continue
            index = len(self._calls)
            self._calls.append(item)
            self._events.append(("name", index, item.name))
            self._events.append(("args", index, json.dumps(item.args, ensure_ascii=False)))

    def text(self) -> str:
        """The content so far."""
        return "".join(self._content)

    def drain(self) -> list[Event]:
        """The events since the last call."""
        self._flush()
        events, self._events = self._events, []
        return events

    def _flush(self) -> None:
        if self._fresh:
            self._events.append(("content", "".join(self._fresh)))
            self._fresh.clear()

    def finish(self) -> ParsedReply:
        """The whole reply; white space at its end counts where it touches no block."""
        if not self._touched:
            self._put("".join(self._space))
        self._space.clear()
        return ParsedReply(self.text(), "".join(self._reasoning), tuple(self._calls), tuple(self._invalid))
