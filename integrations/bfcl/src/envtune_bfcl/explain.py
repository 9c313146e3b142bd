"""Why a turn failed and what it changed, in words for people; never for the model, since it holds ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from envtune_agents.types import TurnEvidence
from envtune_bfcl.copies import copied
from envtune_bfcl.play import Play

MAX_CHARS = 600
"""Longer explanations are cut."""
_MAX_VALUE_CHARS = 120
_MAX_LINES = 8
_ABSENT = object()


def explained(play: Play, evidence: TurnEvidence) -> TurnEvidence:
    """`evidence` with what was wanted and what was found for each failed check of the turn that was just closed.

    A turn in which calls were needed and none was made explains itself.
    """
    if not evidence.judged or not evidence.answered:
        return evidence
    failed = [api for api, holds in evidence.state_checks.items() if not holds]
    missing = [key for key, holds in evidence.response_checks.items() if not holds]
    if not failed and not missing:
        return evidence
    sides, needed = play.sides(evidence.turn), play.needed(evidence.turn)
    texts = {api: _differences(*sides[api]) for api in failed}
    for key in missing:
        call, result = needed[key]
        texts[key] = f"never obtained: {_short(call)} -> {_short(result)}"[:MAX_CHARS]
    return replace(evidence, differences=texts)


def _differences(instance: Any, wanted: Any) -> str:
    found = vars(instance)
    names = wanted.pick({name: name for name in found})
    pairs = list(zip(names, wanted.values, wanted.pick(found), strict=True))
    pairs += [(name, tree, found[name]) for name, tree in wanted.trees]
    return _lines(pairs, lambda path, left, right: f"{path}: wanted {left}, found {right}")


def changes(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """API -> how its attributes differ between two moments, for the APIs in which something does."""
    found = {}
    for api, now in after.items():
        pairs = [(name, before[api].get(name, _ABSENT), value) for name, value in now.items()]
        text = _lines(pairs, lambda path, left, right: f"{path}: {left} -> {right}")
        if text:
            found[api] = text
    return found


def looked_at(play: Play, *, copy: bool = False) -> dict[str, dict[str, Any]]:
    """API -> the attributes that BFCL compares of the model's instance now, as a `copy` or as they are."""
    return {
        api: {
            name: value
            for name, value in (copied(instance) if copy else vars(instance)).items()
            if not name.startswith("_")
        }
        for api, instance in play.instances().items()
    }


def _lines(pairs: list[tuple[str, Any, Any]], shown: Callable[[str, str, str], str]) -> str:
    lines: list[str] = []
    for name, left, right in pairs:
        for path, old, new in _parts(name, left, right):
            if len(lines) == _MAX_LINES:
                lines.append("…")
                return "\n".join(lines)[:MAX_CHARS]
            lines.append(shown(path, _short(old), _short(new)))
    return "\n".join(lines)[:MAX_CHARS]


def _parts(path: str, left: Any, right: Any, depth: int = 0) -> Iterator[tuple[str, Any, Any]]:
    """The places at which two values differ, as deep as dictionaries and directories go."""
    left, right = _contents(left), _contents(right)
    if isinstance(left, Mapping) and isinstance(right, Mapping) and depth < 12:
        for key in [*left, *(key for key in right if key not in left)]:
            yield from _parts(f"{path}/{key}", left.get(key, _ABSENT), right.get(key, _ABSENT), depth + 1)
    elif not _equal(left, right):
        yield path, left, right


def _contents(value: Any) -> Any:
    """What a directory holds or a file says; anything else as it is."""
    kind = type(value).__name__
    return value.contents if kind == "Directory" else value.content if kind == "File" else value


def _equal(left: Any, right: Any) -> bool:
    try:
        return bool(left == right)
    except Exception:  # a value that cannot be compared counts as different, as in BFCL
        return False


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = value if isinstance(value, str) else "a directory" if isinstance(value, Mapping) else repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}…"
