"""Rules for what a tool cannot reach: a file that is not there, and a thing that it may not touch.

In: a `Scene`. Out: `Advice`, or None. They read the error and the visible tools' names and descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from envtune_agents.hint_rules.words import argument_in, quoted, shown, split_name
from envtune_agents.types import Advice, FailureKind, Scene

_NO_FILE = re.compile(
    r"no such (?:file|directory|folder)"
    r"|(?:file|directory|folder|path)\b.{0,200}?(?:not found|does not exist|doesn't exist)"
    r"|(?:cannot|can't|could not) (?:find|open) (?:the )?(?:file|directory|folder|path)|FileNotFound|ENOENT",
    re.IGNORECASE | re.DOTALL,
)
_FORBIDDEN = re.compile(
    r"access (?:is )?denied|permission (?:is )?denied|not permitted|not allowed|forbidden|no permission|insufficient"
    r" (?:permission|privilege|right|scope)s?|\b403\b|outside (?:of )?(?:the )?(?:allowed|permitted)",
    re.IGNORECASE,
)
_LOOKS = frozenset({"list", "ls", "dir", "search", "find", "glob", "tree", "browse"})
_FILES = re.compile(r"\b(?:files?|folders?|director(?:y|ies))\b", re.IGNORECASE)
_READ_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class MissingFile:
    """A file or folder that is not where the call looks for it: which visible tool shows what is there."""

    name: str = "access.missing_file"
    bounded: ClassVar[bool] = True

    def __call__(self, scene: Scene) -> Advice | None:
        message = scene.failure.message[:_READ_CHARS]
        if scene.failure.kind is not FailureKind.TOOL_ERROR or not _NO_FILE.search(message):
            return None
        argument = argument_in(scene.failure.message, scene.call.args)
        what = "the file or folder" if argument is None else f"{argument} = {shown(scene.call.args[argument])}"
        finders = [name for name, tool in scene.tools.items() if name != scene.call.name and _shows_files(name, tool)]
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

    def __call__(self, scene: Scene) -> Advice | None:
        message = scene.failure.message[:_READ_CHARS]
        if scene.failure.kind is not FailureKind.TOOL_ERROR or not _FORBIDDEN.search(message):
            return None
        argument = argument_in(scene.failure.message, scene.call.args)
        what = "this" if argument is None else f"{argument} = {shown(scene.call.args[argument])}"
        return Advice(
            problem=f"{quoted(scene.call.name)} may not touch {what}.",
            constraint="That is a limit on permissions: the same call will be refused every time.",
            pointer=f"Choose another {argument or 'target'} inside what the error allows, or tell the user.",
        )


def _shows_files(name: str, tool: Mapping[str, Any]) -> bool:
    words = set(split_name(name).replace("-", " ").split())
    return bool(words & _LOOKS) and _FILES.search(f"{name} {str(tool.get('description') or '')[:500]}") is not None
