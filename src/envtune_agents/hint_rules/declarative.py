"""The third layer: rules that a domain expert writes in YAML, without code.

In: a file or its text (`docs/hint-rules.md` describes the keys). Out: rules for the engine. Whatever is wrong in the
file is said with its line, before any episode starts. A rule's text is fixed words and placeholders; it can name the
agent's own value and tools that are visible at that moment, and nothing else of the episode.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

from envtune_agents.errors import HintRuleError
from envtune_agents.hint_rules.patterns import matches
from envtune_agents.hint_rules.reading import RAN_KINDS, reading_of
from envtune_agents.hint_rules.words import argument_in, quoted, shown
from envtune_agents.types import Advice, FailureKind, Scene

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class When:
    """The conditions of one rule; all that are given must hold."""

    tool: tuple[str, ...] = ()
    """Globs of which one fits the called tool."""
    kind: frozenset[FailureKind] = RAN_KINDS
    """Faults against a schema are left to the first layer, unless a rule asks for them."""
    message: re.Pattern[str] | None = None
    """Occurs in the failure's text."""
    message_contains: tuple[str, ...] = ()
    """One of these occurs in the failure's text, upper or lower case."""
    argument: tuple[str, ...] = ()
    """One of these arguments was given."""
    value: re.Pattern[str] | None = None
    """Occurs in the value of that argument."""
    called: tuple[str, ...] = ()
    """A tool that fits one of these globs has succeeded in this episode."""
    not_called: tuple[str, ...] = ()
    """No such tool has succeeded in this episode."""

    def argument_of(self, scene: Scene) -> str | None:
        """The argument that the conditions, or else the failure's text, are about."""
        args = scene.call.args
        fitting = [name for name in self.argument if name in args and self._value_fits(args[name])]
        if self.argument:
            named = argument_in(scene.failure.message, {name: args[name] for name in fitting}) if fitting[1:] else None
        else:
            named = reading_of(scene).argument
        return named or next(iter(fitting or (args if len(args) == 1 and not self.argument else ())), None)

    def concerns(self, tool: str, kind: FailureKind) -> bool:
        """Whether the conditions on the tool and on the kind of failure hold."""
        return kind in self.kind and (not self.tool or fits_any(tool, self.tool))

    def hold(self, scene: Scene) -> bool:
        """Whether the rule speaks about this failure."""
        message = scene.failure.message
        return (
            self.concerns(scene.call.name, scene.failure.kind)
            and (not self.message_contains or _contains(message.lower(), self.message_contains))
            and (not self.argument or self.argument_of(scene) is not None)
            and (not self.called or _succeeded(self.called, scene))
            and (not self.not_called or not _succeeded(self.not_called, scene))
            and (self.message is None or matches(self.message, message))
        )

    def _value_fits(self, value: Any) -> bool:
        return self.value is None or matches(self.value, value if isinstance(value, str) else shown(value))


@dataclass(frozen=True, slots=True)
class DeclaredRule:
    """One rule of a file."""

    name: str
    when: When
    problem: str
    constraint: tuple[str, ...] = ()
    """Alternatives: the first whose placeholders can all be filled is used."""
    pointer: tuple[str, ...] = ()
    """Alternatives, as for `constraint`."""
    training_only: bool = False
    """True for a rule that `HintEngine.for_serving` and `load_rules(…, training=False)` leave out."""
    bounded: ClassVar[bool] = True

    def __call__(self, scene: Scene) -> Advice | None:
        if not self.when.hold(scene):
            return None
        problem = self._first((self.problem,), scene)
        return Advice(problem, self._first(self.constraint, scene), self._first(self.pointer, scene))

    def _first(self, texts: Sequence[str], scene: Scene) -> str:
        return next((text for template in texts if (text := self._filled(template, scene)) is not None), "")

    def _filled(self, template: str, scene: Scene) -> str | None:
        argument = self.when.argument_of(scene)
        values: dict[str, str | None] = {
            "tool": quoted(scene.call.name),
            "argument": argument,
            "value": None if argument is None else shown(scene.call.args[argument]),
        }
        for name in PLACEHOLDER.findall(template):
            if name.startswith("visible:"):
                tool = name.removeprefix("visible:")
                values[name] = tool if tool in scene.tools else None
        if any(values[name] is None for name in PLACEHOLDER.findall(template)):
            return None
        return PLACEHOLDER.sub(lambda part: values[part[1]] or "", template)


def load_rules(path_or_text: str | Path, *, training: bool = True) -> tuple[DeclaredRule, ...]:
    """The rules of a YAML file, in its order; a `str` of more than one line is the YAML text itself.

    rules = load_rules('''
    rules:
      - name: my.doors
        when: {tool: start_engine, message_contains: door}
        problem: The engine does not start while a door is open.
        pointer: Call {visible:close_doors} first.
    ''')

    `training=False` leaves out the rules that say `training_only: true`. Raises HintRuleError with file and line for
    text that is no YAML, an unknown key, a missing or doubled name, a pattern that is wrong or could run long, and an
    unknown placeholder.
    """
    from envtune_agents.hint_rules.rule_file import read_rules

    text, source = (path_or_text, "<text>") if _is_text(path_or_text) else (_read(Path(path_or_text)), path_or_text)
    return tuple(rule for rule in read_rules(str(text), str(source)) if training or not rule.training_only)


def fits_any(name: str, globs: Sequence[str]) -> bool:
    """Whether a tool's name fits one of the globs."""
    return name in globs or any(fnmatchcase(name, glob) for glob in globs if _WILD.search(glob))


def _contains(said: str, parts: Sequence[str]) -> bool:
    return any(part.lower() in said for part in parts)


def _succeeded(globs: Sequence[str], scene: Scene) -> bool:
    return any(outcome.failure is None and fits_any(outcome.name, globs) for outcome in scene.history)


def _is_text(path_or_text: str | Path) -> bool:
    return isinstance(path_or_text, str) and ("\n" in path_or_text or not path_or_text.strip())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise HintRuleError(f"Cannot read the rule file {path}: {error}.") from error
