"""What a parsed reply consists of.

The records of this package, in the order they appear in `ParsedReply`. They hold plain Python values that JSON can
carry and UTF-8 can encode, whatever the model wrote.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One call that is complete and well formed; only such calls may be run."""

    name: str
    """Tool name without blanks round it; it need not be a declared tool."""
    args: dict[str, Any]
    """Arguments: finite JSON values, nested at most `json_calls.MAX_DEPTH` deep."""


@dataclass(frozen=True, slots=True)
class InvalidCall:
    """A call that must not be run: malformed, or possibly cut."""

    name: str | None
    """Tool name where it could still be read, else None."""
    text: str
    """What stood between the tags, for the record and for the message to the model."""
    error: str
    """One sentence on what is wrong, fit to be shown to the model."""


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """One reply, taken apart."""

    content: str = ""
    """Text outside think and calls; byte for byte the reply where there are neither."""
    reasoning: str = ""
    """Text inside think, without the white space at its ends."""
    tool_calls: tuple[ParsedCall, ...] = field(default=())
    """Calls to run, in the order of the text."""
    invalid: tuple[InvalidCall, ...] = field(default=())
    """Calls not to run, in the order of the text."""


def encodable(text: str) -> str:
    """`text` with each lone surrogate replaced by U+FFFD, so that UTF-8 can carry it."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
