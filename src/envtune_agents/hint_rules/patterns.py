"""Regular expressions from a file that someone else wrote, bounded so that no failure text can make them run long.

A pattern is refused when a repeated group holds a choice or another repetition ("(a+)+", "(a|a)*"), or when the
remaining choices could multiply to more than a bounded number of steps on a text of `READ_CHARS` characters.
"""

from __future__ import annotations

import re

READ_CHARS = 250
"""A pattern sees only this many characters from the beginning of a text; a literal comparison sees all of it."""

_MAX_PATTERN_CHARS = 500
_MAX_STEPS = 2e7  # two unbounded repetitions: a tenth of a second at worst
_TOKEN = re.compile(
    r"(?P<escape>\\.)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<open>\((?:\?(?:P?<\w+>|[:=!]|<[=!]))?)|(?P<close>\))"
    r"|(?P<repeat>(?:[*+?]|\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\})[?+]?)|(?P<choice>\|)|(?P<other>.)",
    re.DOTALL,
)


def bounded_pattern(text: str) -> re.Pattern[str]:
    """The compiled pattern, without regard to case. Raises ValueError for one that is wrong or could run long."""
    if len(text) > _MAX_PATTERN_CHARS:
        raise ValueError(f"it is longer than {_MAX_PATTERN_CHARS} characters")
    try:
        compiled = re.compile(text, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"it is no regular expression: {error}") from error
    _refuse_unread(text)
    _refuse_explosions(text)
    return compiled


def matches(pattern: re.Pattern[str], text: str) -> bool:
    """Whether the pattern occurs in the first `READ_CHARS` characters."""
    return pattern.search(text[:READ_CHARS]) is not None


def _refuse_unread(text: str) -> None:
    """Refuses what would make the pattern mean something else than `_TOKEN` reads: flags, comments, conditions.

    In "(a+)(?#x)+" the repetition is the group's, and "(?x)( a + ) +" is "(a+)+".
    """
    for token in _TOKEN.finditer(text):
        if token["open"] == "(" and text[token.end() : token.end() + 1] == "?":
            raise ValueError(f"it holds {text[token.start() : token.end() + 3]!r}; only (?:, (?=, (?!, (?<=, (?<! work")
        if token["escape"] and (token["escape"][1].isdigit() and token["escape"][1] != "0"):
            raise ValueError("it refers back to a group, which can run for ever")


def _refuse_explosions(text: str) -> None:
    varied: list[bool] = [False]  # for each open group: does it hold a repetition or a choice?
    closed = False  # what the group that has just been closed held
    steps = float(READ_CHARS)
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup if token.lastgroup not in ("low", "comma", "high") else "repeat"
        if kind == "repeat":
            if closed and token["repeat"][0] != "?":
                raise ValueError("it repeats a group that holds a choice or a repetition, which can run for ever")
            steps *= _ways(token)
            varied[-1] = True
        elif kind == "choice":
            steps *= 2 if len(varied) > 1 else 1
            varied[-1] = True
        elif kind == "open":
            varied.append(False)
        closed = varied.pop() if kind == "close" and len(varied) > 1 else False
        varied[-1] = varied[-1] or closed
    if steps > _MAX_STEPS:
        raise ValueError("it holds too many repetitions and choices; use at most two of '*' and '+'")


def _ways(token: re.Match[str]) -> int:
    """In how many ways a repetition can match."""
    if token["repeat"][0] in "*+":
        return READ_CHARS
    if token["repeat"][0] == "?":
        return 2
    low = int(token["low"] or 0)
    high = int(token["high"] or READ_CHARS) if token["comma"] else low
    return min(max(high - low, 0) + 1, READ_CHARS)
