"""How names, values and descriptions are written in a hint: short, on one line, only what the agent may see."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from heapq import nlargest
from itertools import pairwise
from typing import Any

from envtune_agents.tool_schema import describe_type
from envtune_agents.types import Scene

as_json = json.JSONEncoder(ensure_ascii=False).encode
"""What `json.dumps(value, ensure_ascii=False)` gives, without making an encoder for each call."""
_SHOWN_CHARS = 120
_READ_CHARS = 2_000
"""Names are looked for in the beginning of an error, as phrases are; values in all of it."""
_WORD = re.compile(r"\w+")
_ALPHANUMERIC = re.compile(r"[a-z0-9]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_COMPARED = 8
_NO_NOUNS = frozenset({"id", "ids", "name", "code", "the", "to", "from", "of"})


def argument_in(message: str, args: Mapping[str, Any]) -> str | None:
    """The argument that an error is about: the one with the longest value it repeats, else one that it names.

    "Invalid travel class" names travel_class, and "booking not found" names booking_id.
    """
    values = {name: str(value) for name, value in args.items()}
    repeated = [name for name, value in values.items() if len(value) > 1 and value in message]
    if repeated:
        return max(repeated, key=lambda name: len(values[name]))
    message = message[:_READ_CHARS]
    low = message.lower()
    whole = [name for name in args if name.lower() in low]
    if whole:  # only then is it worth while to take the words apart
        said = set(_WORD.findall(low))
        whole = [name for name in whole if name.lower() in said]
        if whole:
            return whole[0]
    parts = {name: nouns for name in args if (nouns := _nouns(name)) and all(noun in low for noun in nouns)}
    if not parts:
        return None
    words = set(_ALPHANUMERIC.findall(split_name(message)))
    return max((name for name in parts if parts[name] <= words), key=lambda name: len(parts[name]), default=None)


def split_name(name: str) -> str:
    """A name in lower-case words: "fuelAmount" and "fuel_amount" give "fuel amount"."""
    return _split_short(name) if len(name) < _SHOWN_CHARS else _split(name)


def _split(name: str) -> str:
    return _CAMEL.sub(" ", name).replace("_", " ").lower()


_split_short = lru_cache(maxsize=4096)(_split)


def _nouns(name: str) -> frozenset[str]:
    return _nouns_short(name) if len(name) < _SHOWN_CHARS else _find_nouns(name)


def _find_nouns(name: str) -> frozenset[str]:
    return frozenset(split_name(name).split()) - _NO_NOUNS


_nouns_short = lru_cache(maxsize=4096)(_find_nouns)


def closest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` of the `known` names most like `name`, best first; a prefix such as "Api." is ignored."""
    by_folded = {fold(candidate): candidate for candidate in known}
    wanted = fold(name[-_SHOWN_CHARS:].rsplit(".", 1)[-1])
    alike = _alike(wanted, by_folded) if len(by_folded) > _COMPARED else by_folded
    near = get_close_matches(wanted, alike, n=n, cutoff=0.6)
    parts = [key for key in by_folded if len(wanted) > 2 and (wanted in key or key in wanted) and len(key) > 2]
    return [by_folded[key] for key in dict.fromkeys([*near, *parts])][:n]


def _alike(wanted: str, keys: Iterable[str]) -> list[str]:
    """The keys worth comparing in earnest."""
    pairs = _pairs(wanted)
    return nlargest(_COMPARED, keys, key=lambda key: len(pairs & _pairs(key)) / (len(pairs) + len(_pairs(key)) + 1))


@lru_cache(maxsize=4096)
def _pairs(folded: str) -> frozenset[str]:
    """The pairs of neighbouring letters: a cheap measure of likeness, for choosing what to compare in earnest."""
    return frozenset(map("".join, pairwise(folded)))


def quoted(name: str) -> str:
    """A name the model wrote, shortened and in quotes."""
    return f"'{cut(name, 60)}'"


def quoted_names(names: Iterable[str]) -> str:
    """Several such names."""
    return ", ".join(quoted(name) for name in names)


def shown(value: Any) -> str:
    """A value the model gave, as JSON, shortened."""
    try:
        return cut(as_json(value))
    except (TypeError, ValueError, RecursionError):
        return cut(str(value))


def cut(text: str, chars: int = _SHOWN_CHARS) -> str:
    """Text on one line of at most `chars` characters."""
    text = " ".join(text.split())
    return text if len(text) <= chars else f"{text[: chars - 1]}…"


@lru_cache(maxsize=4096)
def fold(name: str) -> str:
    """A name without case and punctuation."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def parameters_of(scene: Scene) -> Mapping[str, Any]:
    """The JSON Schema of the called tool's arguments."""
    return scene.tools[scene.call.name].get("parameters") or {}


def purpose(tool: Mapping[str, Any]) -> str:
    """The description of a tool; "" without one."""
    return str(tool.get("description") or "")


def signature(parameters: Mapping[str, Any]) -> str:
    """Every argument with its type and whether it is required."""
    required = set(parameters.get("required") or ())
    parts = [
        f"{name} ({type_of(name, parameters)}, {'required' if name in required else 'optional'})"
        for name in parameters.get("properties") or {}
    ]
    return ", ".join(parts) or "none"


def type_of(name: str, parameters: Mapping[str, Any]) -> str:
    """The type of one argument, in words."""
    return describe_type((parameters.get("properties") or {}).get(name) or {}, parameters)


def described(name: str, parameters: Mapping[str, Any]) -> str:
    """The description of one argument, shortened; "" without one."""
    schema = (parameters.get("properties") or {}).get(name) or {}
    return _sentence(str(schema.get("description") or ""))


@lru_cache(maxsize=4096)
def _sentence(description: str) -> str:
    text = cut(description, 240)
    return text if not text or text[-1] in ".!?…" else f"{text}."
