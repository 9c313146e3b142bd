"""What a writer and a judge reply: one JSON object in whatever text is around it, or None."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CATEGORIES = (
    "dependency_missing",
    "parameter_constraint",
    "state_prerequisite",
    "format_mismatch",
    "resource_unavailable",
)
"""The paper's kinds of hint."""
MAX_PART_CHARS = 600
_MAX_OBJECTS = 50
_MAX_CHARS = 50_000


@dataclass(frozen=True, slots=True)
class Draft:
    """A hint as its writer gave it."""

    problem: str
    constraint: str
    pointer: str
    category: str
    """One of `CATEGORIES`, or "" when the writer named none of them."""

    def parts(self) -> dict[str, str]:
        """The three parts that the agent would see, by name."""
        return {"problem": self.problem, "constraint": self.constraint, "pointer": self.pointer}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judge said of a draft."""

    leaks: bool
    explores: bool
    actionable: bool
    reason: str
    """One sentence; it may hold the answer, so it is shown to people only."""

    @property
    def accepts(self) -> bool:
        """True when all three articles are kept."""
        return self.explores and self.actionable and not self.leaks


def read_draft(text: str) -> Draft | None:
    """The hint in a writer's reply: the last JSON object with three texts of which none is too long; None without."""
    for found in _objects(text):
        parts = [found.get(name, "") for name in ("problem", "constraint", "pointer")]
        if all(isinstance(part, str) and len(part) <= MAX_PART_CHARS for part in parts) and parts[0].strip():
            category = found.get("category")
            problem, constraint, pointer = (" ".join(part.split()) for part in parts)
            return Draft(problem, constraint, pointer, category if category in CATEGORIES else "")
    return None


def read_judgement(text: str) -> Judgement | None:
    """The verdict in a judge's reply: the last JSON object with all three answers as true or false; None without."""
    for found in _objects(text):
        answers = [found.get(name) for name in ("leaks", "explores", "actionable")]
        if all(isinstance(answer, bool) for answer in answers):
            leaks, explores, actionable = map(bool, answers)
            reason = " ".join(str(found.get("reason") or "").split())[:500]
            return Judgement(leaks, explores, actionable, reason)
    return None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, last first; a model that thinks aloud says its answer at the end."""
    decoder, starts = json.JSONDecoder(), list[int]()
    text = text[-_MAX_CHARS:]
    position = text.rfind("{")
    while position >= 0 and len(starts) < _MAX_OBJECTS:
        starts.append(position)
        position = text.rfind("{", 0, position)
    for start in starts:
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found
