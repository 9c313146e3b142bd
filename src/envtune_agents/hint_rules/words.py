"""How names, values and descriptions are written in a hint: short, on one line, only what the agent may see."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from envtune_agents.tool_schema import describe_type
from envtune_agents.types import Scene

_SHOWN_CHARS = 120


def argument_in(message: str, args: Mapping[str, Any]) -> str | None:
    """The argument that an error is about: the one with the longest value it repeats, else one that it names.

    "Invalid travel class" names travel_class, and "booking not found" names booking_id.
    """
    repeated = [name for name, value in args.items() if len(str(value)) > 1 and str(value) in message]
    if repeated:
        return max(repeated, key=lambda name: len(str(args[name])))
    words = set(re.findall(r"[a-z0-9]+", split_name(message)))
    whole = [name for name in args if name.lower() in re.findall(r"\w+", message.lower())]
    parts = {name: nouns for name in args if (nouns := _nouns(name)) and nouns <= words}
    return whole[0] if whole else max(parts, key=lambda name: len(parts[name]), default=None)


def split_name(name: str) -> str:
    """A name in lower-case words: "fuelAmount" and "fuel_amount" give "fuel amount"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").lower()


def _nouns(name: str) -> set[str]:
    return set(split_name(name).split()) - {"id", "ids", "name", "code", "the", "to", "from", "of"}


def closest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` of the `known` names most like `name`, best first; a prefix such as "Api." is ignored."""
    by_folded = {fold(candidate): candidate for candidate in known}
    wanted = fold(name.rsplit(".", 1)[-1])
    near = get_close_matches(wanted, by_folded, n=n, cutoff=0.6)
    parts = [key for key in by_folded if len(wanted) > 2 and (wanted in key or key in wanted) and len(key) > 2]
    return [by_folded[key] for key in dict.fromkeys([*near, *parts])][:n]


def quoted(name: str) -> str:
    """A name the model wrote, shortened and in quotes."""
    return f"'{cut(name, 60)}'"


def quoted_names(names: Iterable[str]) -> str:
    """Several such names."""
    return ", ".join(quoted(name) for name in names)


def shown(value: Any) -> str:
    """A value the model gave, as JSON, shortened."""
    try:
        return cut(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return cut(str(value))


def cut(text: str, chars: int = _SHOWN_CHARS) -> str:
    """Text on one line of at most `chars` characters."""
    text = " ".join(text.split())
    return text if len(text) <= chars else f"{text[: chars - 1]}…"


def fold(name: str) -> str:
    """A name without case and punctuation."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def parameters_of(scene: Scene) -> Mapping[str, Any]:
    """The JSON Schema of the called tool's arguments."""
    return scene.tools[scene.call.name].get("parameters") or {}


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
    text = " ".join(str(schema.get("description") or "").split())
    return cut(text, 240)
