"""What a description in prose says about a value: its enumeration, format, range, and whether a path is allowed.

In: one description or error text. Out: a small record or None. Only wordings that leave no doubt are read; an example
("e.g., 'Technology'") is not an enumeration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_READ_CHARS = 4_000
_MANY = 200

_LIST_MARK = re.compile(
    r"\[enum\]\s*:?|(?:allowed|valid|possible|accepted|supported|available) (?:values|options|choices)[^:.]{0,40}:"
    r"|options are:?|choices are:?|the options:|must be either|either|(?:must|should|can) be one of:?|one of:?",
    re.IGNORECASE,
)
_LIST_WORDS = ("[enum]", "values", "options", "choices", "either", "one of")
"""What every list mark holds; looking for them first is twenty times as fast."""
_BRACKETED = re.compile(r"\s*(?:the following\s*:?\s*)?[\[({]([^\])}]{1,1000})[\])}]")
_KEYED = re.compile(r"['\"`](\w{1,30})['\"`]\s*(?:for|=|:|->|means)\s+\w")
_SLASHED = re.compile(r"\(([A-Za-z]\w{0,20}(?:/[A-Za-z]\w{0,20}){1,7})\)")
_WORD = re.compile(r"[\w.+-]{1,40}$")
_FORMAT_PARTS = {
    "YYYY": r"\d{4}",
    "YY": r"\d{2}",
    "MM": r"(?:0[1-9]|1[0-2])",
    "DD": r"(?:0[1-9]|[12]\d|3[01])",
    "HH": r"(?:[01]\d|2[0-3])",
    "SS": r"[0-5]\d",
}
_FORMAT = re.compile(r"(?<![A-Za-z])(?:YYYY|YY|MM|DD|HH)(?:[-/.:T ]{1,2}(?:YYYY|YY|MM|DD|HH|SS))+(?![A-Za-z])")
_FREE_FORMAT = re.compile(r"in the format(?: of)?:?\s+([^.;\n]{2,80})", re.IGNORECASE)
_LETTER_CODE = re.compile(r"\b(\d|three|two)[- ](?:letter|character)s?\b", re.IGNORECASE)
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_SPAN = re.compile(rf"\b(?:between|from)\s+{_NUMBER}(?:\s*\([^)]{{0,40}}\))?\s*(?:and|to|-)\s*{_NUMBER}")
_POSITIVE = re.compile(r"(?:must|should|has to|needs to) be (?:a )?(?:positive|greater than (?:0|zero))")
_NOT_NEGATIVE = re.compile(r"(?:cannot|can't|must not|should not) be (?:a )?negative|must be non-?negative")
_PLAIN_NAME = re.compile(
    r"no (?:file )?paths?\b|not (?:allow|a) (?:a )?path|cannot be a path|does not allow path|path not allowed"
    r"|one (?:folder |directory )?level"
    r"|(?:local|at|in|of|from|to) (?:to |at )?(?:the )?(?:current|local) (?:working )?directory"
    r"|only (?:a|the) (?:file|directory|folder)"
)


@dataclass(frozen=True, slots=True)
class ValueFormat:
    """How a value must be written."""

    words: str
    """Such as "YYYY-MM-DD"."""
    pattern: str = ""
    """A regular expression that a value of this format matches whole; "" when the words are free prose."""

    def fits(self, value: str) -> bool:
        """False when the value is certainly not of this format."""
        return not self.pattern or re.fullmatch(self.pattern, value) is not None


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Which numbers are allowed."""

    words: str
    """Completes "must be …"."""
    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    """True when `low` itself is not allowed."""

    def fits(self, value: float) -> bool:
        """Whether a number is inside."""
        return self.low <= value <= self.high and not (self.open_low and value == self.low)


def enumeration(text: str, schema: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The values that a description (or the schema's own `enum`) lists; () when it lists none."""
    return _declared(schema or {}) or _known_enumeration(text[:_READ_CHARS])


def enumeration_in_error(message: str) -> tuple[str, ...]:
    """The values that an error lists; errors seldom come twice, so nothing is remembered."""
    return _enumeration(message[:_READ_CHARS])


def _enumeration(text: str) -> tuple[str, ...]:
    low = text.lower()
    for mark in _LIST_MARK.finditer(text) if any(word in low for word in _LIST_WORDS) else ():
        values = _listed(text[mark.end() :], loose=mark[0][-1] in ":]")
        if len(values) >= 2:
            return values
    keyed = _KEYED.findall(text) if "'" in text or '"' in text or "`" in text else ()
    if len(keyed) >= 2:
        return tuple(dict.fromkeys(keyed))
    slashed = _SLASHED.search(text) if "/" in text and "(" in text else None
    if slashed and not _FORMAT.search(slashed[1]):
        return tuple(slashed[1].split("/"))
    return ()


_known_enumeration = lru_cache(maxsize=4096)(_enumeration)


def _declared(schema: Mapping[str, Any]) -> tuple[str, ...]:
    items = schema.get("items")
    for part in (schema, items if isinstance(items, Mapping) else {}):
        if isinstance(part.get("enum"), list):
            return tuple(str(value) for value in part["enum"])
    return ()


def _listed(rest: str, *, loose: bool) -> tuple[str, ...]:
    """The values after a mark; unless it announces a list for certain (`loose`), each must be a single word."""
    bracketed = _BRACKETED.match(rest)
    body = bracketed[1] if bracketed else re.split(r"\.(?:\s|$)|[;\n)]", rest, maxsplit=1)[0]
    parts = re.split(r",\s*(?:or |and )?|\s+or\s+|\s*\|\s*", body.strip())
    values = [part.strip().strip("'\"`") for part in parts if part.strip()]
    if not bracketed and not loose and not all(_WORD.match(value) for value in values):
        values = []
    return tuple(values[:_MANY])


def value_format(text: str) -> ValueFormat | None:
    """The format that a description asks for, or None."""
    return _value_format(text[:_READ_CHARS])


@lru_cache(maxsize=4096)
def _value_format(text: str) -> ValueFormat | None:
    dated = _FORMAT.search(text)
    if dated:
        parts = re.escape(re.sub(r"(HH\W{1,2})MM", r"\1SS", dated[0]))  # minutes, which go as far as seconds
        return ValueFormat(dated[0], re.sub(r"YYYY|YY|MM|DD|HH|SS", lambda part: _FORMAT_PARTS[part[0]], parts))
    letters = _LETTER_CODE.search(text)
    if letters:
        count = {"two": 2, "three": 3}.get(letters[1].lower()) or int(letters[1])
        return ValueFormat(f"a code of {count} letters", rf"[A-Za-z]{{{count}}}")
    free = _FREE_FORMAT.search(text)
    return ValueFormat(free[1].strip().strip("'\"")) if free else None


def value_range(text: str, schema: Mapping[str, Any] | None = None) -> ValueRange | None:
    """The range of numbers that a description or the schema asks for, or None."""
    schema = schema or {}
    low, high = schema.get("minimum"), schema.get("maximum")
    if isinstance(low, int | float) or isinstance(high, int | float):
        if not isinstance(high, int | float):
            return ValueRange(f"at least {low}", low=float(low or 0))
        if not isinstance(low, int | float):
            return ValueRange(f"at most {high}", high=float(high))
        return ValueRange(f"between {low} and {high}", float(low), float(high))
    return _known_range(text[:_READ_CHARS])


def range_in_error(said: str) -> ValueRange | None:
    """The range that an error in lower case names, or None."""
    return _range(said[:_READ_CHARS])


def _range(text: str) -> ValueRange | None:
    text = text.lower()
    span = _SPAN.search(text) if "between" in text or "from" in text else None
    if span and float(span[1]) < float(span[2]):
        return ValueRange(f"between {span[1]} and {span[2]}", float(span[1]), float(span[2]))
    if ("positive" in text or "greater" in text) and _POSITIVE.search(text):
        return ValueRange("greater than 0", low=0.0, open_low=True)
    return ValueRange("0 or more", low=0.0) if "negative" in text and _NOT_NEGATIVE.search(text) else None


_known_range = lru_cache(maxsize=4096)(_range)


def wants_plain_name(text: str) -> bool:
    """Whether a description, or an error, asks for a name inside the current folder, not for a path."""
    return _PLAIN_NAME.search(text[:_READ_CHARS].lower()) is not None
