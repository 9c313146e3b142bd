"""Sampled ids -> text while they arrive: whole characters only, and nothing that may become a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
"""What an incomplete UTF-8 sequence decodes to."""


class Detokenizer:
    """Incremental decoding. Joining what `feed` and `flush` return gives the same text for every way of reading it.

    Decodes a short window from the last clean position, so a token costs the same at any length (as vLLM does).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # first id of the window
        self._read = 0  # ids before this one have been returned as text

    def feed(self, token_id: int) -> str:
        """Text that became final with this token."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if after.endswith(BROKEN) or len(after) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        """What is left, with an incomplete character shown as U+FFFD."""
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        self._start = self._read = len(self._ids)
        return after[len(before) :]


class StopText:
    """Watches text for stop strings that may span several tokens, holding back what may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False
        """True once a stop string was completed."""

    def feed(self, text: str) -> str:
        """The part of the text so far that is certainly before any stop string."""
        if not self._stops:
            return text
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._held) - self._possible_start())

    def flush(self) -> str:
        """What was held back for a stop string that did not come; "" after a stop."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(len(stop) for stop in self._stops) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0
