"""Whether the start of a reply may still become a call without tags (repair mode).

In: the first characters of the content. Out: yes, no, or not yet known. The earlier the answer, the less of an ordinary
reply is kept back from the stream; the final verdict looks at the whole reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_FIRST: Final = re.compile(
    r"""\s*(?:```[\w-]*\s*)?(?:\[\s*)?\{\s*["'“‘]?(\w+)["'”’]?\s*:\s*(?:["'“‘]([^"'”’]*)["'”’]|[^\s"'“‘])"""
)
_MARKS: Final = "{[`"
_ENOUGH: Final = 256
_KEYS: Final = frozenset({"name", "arguments", "parameters", "id", "type"})


def may_be_call(start: str, declares: Callable[[str], bool]) -> bool | None:
    """Whether `start` begins a call of a declared tool; None while too little is known."""
    known = start.lstrip()
    if known and known[0] not in _MARKS:
        return False
    found = _FIRST.match(start[:_ENOUGH])
    if not found:
        return False if len(start) > _ENOUGH else None
    key, value = found.groups()
    return key in _KEYS and (key != "name" or (value is not None and declares(value)))
