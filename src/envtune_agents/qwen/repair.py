"""Repairs for deployment: what a call near JSON meant, where there is one answer only.

In: text that `json_calls` refused. Out: its values, or `BadJson`. Mended are trailing commas, single, curly and missing
quotes (keys only), True, False and None, raw newlines in strings, code fences, and the number of closing brackets of a
block whose closing tag was seen. Nothing that would need a guess is: no missing comma, no unfinished string, no NaN.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Final

from envtune_agents.qwen.cursor import SPACE
from envtune_agents.qwen.json_calls import MAX_DEPTH, BadJson, check_encodable, fraction, whole

_FENCE: Final = re.compile(r"\s*```[\w-]*[ \t]*\r?\n?(.*?)(?:```\s*)?", re.DOTALL)
_SPACE: Final = re.compile(rf"[{SPACE}]*")
_QUOTES: Final = {'"': '"', "'": "'", "“": "”", "‘": "’"}
_PIECE: Final = {quote: re.compile(rf"[^{quote}\\]+|\\.", re.DOTALL) for quote in _QUOTES.values()}
_WORD: Final = re.compile(r"[A-Za-z_$][\w$-]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?![0-9])(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS: Final = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_PREFIX_ENDS: Final = re.compile(r"[./:]+")


def unfenced(text: str) -> str:
    """`text` without the code fence round it, if there is one."""
    found = _FENCE.fullmatch(text) if text.lstrip(SPACE).startswith("```") else None
    return found.group(1) if found else text


def load_tolerant(text: str) -> Any:
    """The one value of near-JSON `text`, with nothing added at its end; raises `BadJson`."""
    values = load_values(text, closed=False)
    if len(values) != 1:
        raise BadJson("more than one value")
    return values[0]


def load_values(text: str, *, closed: bool) -> list[Any]:
    """The values of near-JSON `text`, one after the other; `closed` lets the brackets at its end be counted right."""
    reader = _Reader(unfenced(text), closed)
    try:
        values = reader.values()
    except RecursionError:
        raise BadJson("nested too deep") from None
    check_encodable(values)
    return values


def declared_name(name: str, declared: Collection[str]) -> str:
    """`name` without a foreign prefix such as `functions.`, where exactly one declared tool remains."""
    if name in declared:
        return name
    rests = {name[found.end() :] for found in _PREFIX_ENDS.finditer(name)}
    known = rests.intersection(declared)
    return known.pop() if len(known) == 1 else name


class _Reader:
    """A recursive reader of near-JSON over one string."""

    __slots__ = ("closed", "pos", "text")

    def __init__(self, text: str, closed: bool) -> None:
        self.text = text
        self.closed = closed
        self.pos = 0

    def values(self) -> list[Any]:
        found = []
        while self._peek():
            if self._peek() not in "{[":
                raise BadJson(self._at("an object was expected"))
            found.append(self._value(0))
            if not self._skip(",") and self.closed:
                while self._skip("}") or self._skip("]"):
                    pass
        return found

    def _at(self, problem: str) -> str:
        return f"not valid JSON: {problem} at character {self.pos}"

    def _peek(self) -> str:
        found = _SPACE.match(self.text, self.pos)
        self.pos = found.end() if found else self.pos
        return self.text[self.pos : self.pos + 1]

    def _skip(self, char: str) -> bool:
        found = self._peek() == char
        self.pos += found
        return found

    def _value(self, depth: int) -> Any:
        char = self._peek()
        if depth > MAX_DEPTH:
            raise BadJson(f"nested deeper than {MAX_DEPTH} levels")
        if char == "{":
            return self._object(depth)
        if char == "[":
            return self._list(depth)
        if char and char in _QUOTES:
            return self._string()
        return self._scalar()

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self.pos += 1
        while not self._skip("}") and self._open():
            key = self._key()
            if not self._skip(":"):
                raise BadJson(self._at("a colon was expected"))
            found[key] = self._value(depth + 1)
            self._separator("}")
        return found

    def _list(self, depth: int) -> list[Any]:
        found = []
        self.pos += 1
        while not self._skip("]") and self._open():
            found.append(self._value(depth + 1))
            self._separator("]")
        return found

    def _open(self) -> bool:
        """Whether the bracket being read is still open: not at the end of a closed block."""
        return not self.closed or bool(self._peek())

    def _separator(self, bracket: str) -> None:
        """Pass the comma between two items; the end of a closed block closes every open bracket.

        Not so behind a comma: it promises one more item, so what is missing there is more than a bracket.
        """
        if self._skip(","):
            if not self._peek():
                raise BadJson(self._at("one more item was expected"))
        elif self._peek() != bracket and not (self.closed and not self._peek()):
            raise BadJson(self._at(f"a comma or {bracket} was expected"))

    def _key(self) -> str:
        char = self._peek()
        if char and char in _QUOTES:
            return self._string()
        word = _WORD.match(self.text, self.pos)
        if not word:
            raise BadJson(self._at("a key was expected"))
        self.pos = word.end()
        return word.group()

    def _string(self) -> str:
        quote = _QUOTES[self.text[self.pos]]
        start = self.pos
        self.pos += 1
        pieces = []
        while found := _PIECE[quote].match(self.text, self.pos):
            pieces.append(found.group())
            self.pos = found.end()
        if self.text[self.pos : self.pos + 1] != quote:
            self.pos = start
            raise BadJson(self._at("an unfinished string starts"))
        self.pos += 1
        return _decoded(pieces)

    def _scalar(self) -> Any:
        number = _NUMBER.match(self.text, self.pos)
        if number:
            self.pos = number.end()
            return fraction(number[0]) if number[1] or number[2] else whole(number[0])
        word = _WORD.match(self.text, self.pos)
        if not word or word.group() not in _WORDS:
            raise BadJson(self._at("a value was expected"))
        self.pos = word.end()
        return _WORDS[word.group()]


def _decoded(pieces: list[str]) -> str:
    """The string that the pieces of a literal spell; raw control characters stay, escapes are those of JSON and \\'."""
    body = "".join(piece if piece != "\\'" else "'" for piece in pieces)
    try:
        return str(json.loads('"' + re.sub(r'\\.|"', _escaped, body, flags=re.DOTALL) + '"', strict=False))
    except ValueError:
        raise BadJson("not valid JSON: a string holds an unknown escape") from None


def _escaped(found: re.Match[str]) -> str:
    return '\\"' if found.group() == '"' else found.group()
