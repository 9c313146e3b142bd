"""Rules for what a tool cannot reach: a file that is not there, and a thing that it may not touch.

In: a `Scene`. Out: `Advice`, or None. They read the error and the visible tools' names and descriptions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from envtune_agents.hint_rules.phrases import FORBIDDEN, NO_FILE
from envtune_agents.hint_rules.reading import reading_of
from envtune_agents.hint_rules.words import purpose, quoted, shown, split_name
from envtune_agents.types import Advice, FailureKind, Scene

_LOOKS = frozenset({"list", "ls", "dir", "search", "find", "glob", "tree", "browse"})
_FILES = re.compile(r"\b(?:files?|folders?|director(?:y|ies))\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MissingFile:
    """A file or folder that is not where the call looks for it: which visible tool shows what is there."""

    name: str = "access.missing_file"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.TOOL_ERROR})
    words: ClassVar[tuple[str, ...]] = NO_FILE.words

    def __call__(self, scene: Scene) -> Advice | None:
        reading = reading_of(scene)
        if scene.failure.kind not in self.kinds or not NO_FILE.occur_in(reading.said):
            return None
        argument = reading.argument
        what = "the file or folder" if argument is None else f"{argument} = {shown(scene.call.args[argument])}"
        finders = [
            name for name, tool in scene.tools.items() if name != scene.call.name and _shows_files(name, purpose(tool))
        ]
        look = f"Call {' or '.join(finders[:2])} to see what is there." if finders else ""
        return Advice(
            problem=f"{quoted(scene.call.name)} did not find {what}.",
            constraint="The name must be exact, with its ending, in upper and lower case, and with the right folder.",
            pointer=look or "Look up the exact name before you make the call again.",
        )


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """Something that the tool, or the user it acts for, may not touch."""

    name: str = "access.not_allowed"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.TOOL_ERROR})
    words: ClassVar[tuple[str, ...]] = FORBIDDEN.words

    def __call__(self, scene: Scene) -> Advice | None:
        reading = reading_of(scene)
        if scene.failure.kind not in self.kinds or not FORBIDDEN.occur_in(reading.said):
            return None
        argument = reading.argument
        what = "this" if argument is None else f"{argument} = {shown(scene.call.args[argument])}"
        return Advice(
            problem=f"{quoted(scene.call.name)} may not touch {what}.",
            constraint="That is a limit on permissions: the same call will be refused every time.",
            pointer=f"Choose another {argument or 'target'} inside what the error allows, or tell the user.",
        )


@lru_cache(maxsize=4096)
def _shows_files(name: str, description: str) -> bool:
    words = set(split_name(name).replace("-", " ").split())
    return bool(words & _LOOKS) and _FILES.search(f"{name} {description[:500]}") is not None
