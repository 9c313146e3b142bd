"""The second layer: rules that read the tools' own descriptions, parameter descriptions and response schemas.

In: a `Scene`. Out: `Advice`, or None. They work for any LangChain tool; a tool whose `metadata` holds "response" (a
JSON Schema of its answers) and "api" (its service) is understood better. They speak only about calls that fit their
JSON Schema, and the only values they name are the agent's own and enumerations from the docs or the error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from envtune_agents.hint_rules.phrases import ABSENT, ALREADY, ASKS_LOGIN, LIMIT
from envtune_agents.hint_rules.prose import (
    enumeration,
    enumeration_in_error,
    range_in_error,
    value_format,
    value_range,
    wants_plain_name,
)
from envtune_agents.hint_rules.reading import RAN_KINDS, Reading, reading_of
from envtune_agents.hint_rules.sources import GIVEN_BY_USER, is_id_like, is_login, login_tools, sources_of
from envtune_agents.hint_rules.words import cut, described, parameters_of, purpose, quoted, shown, split_name
from envtune_agents.types import Advice, FailureKind, HintRule, Scene

_CHANGES_FOLDER = re.compile(r"change\b.{0,30}\b(?:directory|folder)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LogInFirst:
    """The error asks for a login or a token. Triggered by the error alone, never by the order of calls."""

    name: str = "docs.log_in_first"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = RAN_KINDS
    words: ClassVar[tuple[str, ...]] = ASKS_LOGIN.words

    def __call__(self, scene: Scene) -> Advice | None:
        said = reading_of(scene).said
        if not reading_of(scene).ran or is_login(scene.call.name) or not ASKS_LOGIN.occur_in(said):
            return None
        tokens = [name for name in scene.call.args if "token" in split_name(name).split()]
        logins = login_tools(scene.call.name, scene.tools)
        if tokens and "token" in said:
            givers = sources_of(tokens[0], scene.call.name, scene.tools) or logins
            return Advice(
                problem=f"{quoted(scene.call.name)} did not accept {tokens[0]}.",
                constraint=f"{tokens[0]} must be the exact token that a login returned; do not invent one.",
                pointer=f"{_call_first(givers)} and pass on the {tokens[0]} it returns." if givers else "",
            )
        return Advice(
            problem=f"{quoted(scene.call.name)} needs a logged-in user, and nobody is logged in.",
            constraint="Log in to this service first, then make the call again.",
            pointer=f"{_call_first(logins)} with what the user gave you." if logins else "",
        )


@dataclass(frozen=True, slots=True)
class PathForName:
    """A path was given where the docs ask for a name in the current folder."""

    name: str = "docs.path_for_name"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = RAN_KINDS

    def __call__(self, scene: Scene) -> Advice | None:
        reading = reading_of(scene)
        paths = [name for name, value in reading.texts if "/" in value or "\\" in value]
        for argument in paths if reading.ran else ():
            about = described(argument, parameters_of(scene))
            if "path" in split_name(argument).split():
                continue
            if wants_plain_name(about) or (len(paths) == 1 and wants_plain_name(reading.said)):
                changers = [name for name, tool in scene.tools.items() if _changes_folder(purpose(tool))]
                itself = scene.call.name in changers
                first = f"Go to the right folder first with {changers[0]}, then give" if changers else "Give"
                return Advice(
                    problem=f"{argument} = {shown(scene.call.args[argument])} is a path, and a plain name is wanted.",
                    constraint=f"{argument} must be one name in the current directory, without '/'.",
                    pointer="Go one folder at a time: one call for each part of the path."
                    if itself
                    else f"{first} only the last part as {argument}.",
                )
        return None


@dataclass(frozen=True, slots=True)
class NotInEnumeration:
    """A value that is not among those that the description, or the error, lists."""

    name: str = "docs.not_in_enumeration"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = RAN_KINDS

    def __call__(self, scene: Scene) -> Advice | None:
        reading = reading_of(scene)
        for argument, values, allowed in self._listed(scene, reading) if reading.ran else ():
            wrong = [value for value in values if value not in allowed]
            if wrong:
                same = [one for one in allowed if one.lower() == wrong[0].lower()]
                return Advice(
                    problem=f"{argument} = {shown(wrong[0])} is not an allowed value.",
                    constraint=f"{argument} must be one of: {cut(', '.join(allowed), 300)}.",
                    pointer=f"Write it exactly as listed: {same[0]}."
                    if same
                    else f"Choose the value of {argument} from that list, spelled and capitalised as listed.",
                )
        return None

    def _listed(self, scene: Scene, reading: Reading) -> Iterator[tuple[str, list[str], tuple[str, ...]]]:
        for argument, schema in reading.arguments:
            values = _strings(scene.call.args[argument])
            allowed = enumeration(str(schema.get("description") or ""), schema)
            if values and allowed:
                yield argument, values, allowed
        allowed = enumeration_in_error(scene.failure.message) if reading.argument else ()
        if reading.argument and allowed:
            yield reading.argument, _strings(scene.call.args[reading.argument]), tuple(sorted(allowed))


@dataclass(frozen=True, slots=True)
class WrongFormat:
    """A text that is not written in the format that the description, or the error, asks for."""

    name: str = "docs.wrong_format"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = RAN_KINDS

    def __call__(self, scene: Scene) -> Advice | None:
        reading = reading_of(scene)
        complains = "format" in reading.said
        for argument, value in reading.texts if reading.ran else ():
            wanted = value_format(described(argument, parameters_of(scene)))
            blamed = complains and (argument == reading.argument or (wanted and wanted.words.lower() in reading.said))
            if wanted and (not wanted.fits(value) or (blamed and wanted.pattern)):
                return Advice(
                    problem=f"{argument} = {shown(value)} is not in the right format.",
                    constraint=f"{argument} must be written as {wanted.words}.",
                    pointer=f"Rewrite {argument} in that form and make the same call again.",
                )
        return None


@dataclass(frozen=True, slots=True)
class OutOfRange:
    """A number outside the range that the description, or the error, gives."""

    name: str = "docs.out_of_range"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = RAN_KINDS

    def __call__(self, scene: Scene) -> Advice | None:
        reading = reading_of(scene)
        numbers = [(name, schema) for name, schema in reading.arguments if type(scene.call.args[name]) in (int, float)]
        stated = range_in_error(reading.said) if numbers else None
        for argument, schema in numbers if reading.ran else ():
            value = scene.call.args[argument]
            for allowed in (value_range(str(schema.get("description") or ""), schema), stated):
                if allowed and not allowed.fits(value):
                    return Advice(
                        problem=f"{argument} = {shown(value)} is outside the allowed range.",
                        constraint=f"{argument} must be {allowed.words}.",
                        pointer=f"Change only {argument} and make the same call again.",
                    )
        return None


@dataclass(frozen=True, slots=True)
class ValueFromTool:
    """An id, symbol or token that is not known: which visible tool gives such values."""

    name: str = "docs.value_from_tool"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = RAN_KINDS
    words: ClassVar[tuple[str, ...]] = ABSENT.words

    def __call__(self, scene: Scene) -> Advice | None:
        reading = reading_of(scene)
        if not reading.ran or not ABSENT.occur_in(reading.said):
            return None
        ids = {name: scene.call.args[name] for name, _ in reading.arguments if is_id_like(name)}
        argument = reading.argument
        if argument in GIVEN_BY_USER or not ids:
            return None
        if argument not in ids:
            argument = next(iter(ids)) if len(ids) == 1 and argument is None else None
        if argument is None:
            return None
        givers = sources_of(argument, scene.call.name, scene.tools)
        return Advice(
            problem=f"{argument} = {shown(ids[argument])} is not known to {quoted(scene.call.name)}.",
            constraint=f"{argument} must be a value that a tool returned or the user gave; do not guess it.",
            pointer=f"{' or '.join(givers)} can give you {_article(argument)}." if givers else "",
        )


@dataclass(frozen=True, slots=True)
class AlreadyDone:
    """The world is already as the call wants it, or something stands in the way."""

    name: str = "docs.already_done"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = RAN_KINDS
    words: ClassVar[tuple[str, ...]] = ALREADY.words

    def __call__(self, scene: Scene) -> Advice | None:
        reading = reading_of(scene)
        if not reading.ran or not ALREADY.occur_in(reading.said) or ABSENT.occur_in(reading.said):
            return None
        return Advice(
            problem=f"{quoted(scene.call.name)} changed nothing: it conflicts with what is already there.",
            constraint="The same call will keep failing as long as the present state stays as it is.",
            pointer="If the state is what the user wants, go on with the next step; else change the arguments.",
        )


@dataclass(frozen=True, slots=True)
class OverLimit:
    """An amount that the present state does not allow."""

    name: str = "docs.over_limit"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = RAN_KINDS
    words: ClassVar[tuple[str, ...]] = LIMIT.words

    def __call__(self, scene: Scene) -> Advice | None:
        reading = reading_of(scene)
        if not reading.ran or not LIMIT.occur_in(reading.said):
            return None
        numbers = [name for name, value in scene.call.args.items() if type(value) in (int, float)]
        return Advice(
            problem=f"{quoted(scene.call.name)} asks for more than the present limit allows.",
            constraint="Stay within the limit that the error names, or raise the limit first.",
            pointer=f"Look up the present amount, then lower {' or '.join(numbers)}." if numbers else "",
        )


@dataclass(frozen=True, slots=True)
class FoundNothing:
    """A search that ran and found nothing."""

    name: str = "docs.found_nothing"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.EMPTY_RESULT})

    def __call__(self, scene: Scene) -> Advice | None:
        if scene.failure.kind not in self.kinds:
            return None
        texts = [name for name, _ in reading_of(scene).texts]
        searched = [name for name in texts if set(split_name(name).split()) & _SEARCH_WORDS] or texts[-1:]
        what = f"{searched[0]} = {shown(scene.call.args[searched[0]])}" if searched else "these arguments"
        return Advice(
            problem=f"{quoted(scene.call.name)} ran, and found nothing for {what}.",
            constraint="The text must occur exactly as written, upper and lower case included.",
            pointer=f"Try a shorter or differently written {searched[0]}." if searched else "Try other arguments.",
        )


_SEARCH_WORDS = {"pattern", "query", "keyword", "name", "search", "term", "text", "filter"}

DOCS_RULES: tuple[HintRule, ...] = (
    LogInFirst(),
    PathForName(),
    NotInEnumeration(),
    WrongFormat(),
    OutOfRange(),
    ValueFromTool(),
    AlreadyDone(),
    OverLimit(),
    FoundNothing(),
)
"""The second layer, from the most to the least specific."""


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if isinstance(one, str)]


@lru_cache(maxsize=4096)
def _changes_folder(description: str) -> bool:
    return _CHANGES_FOLDER.search(description[:2_000]) is not None


def _call_first(names: list[str]) -> str:
    return f"Call {' or '.join(names)} first"


def _article(argument: str) -> str:
    return f"{'an' if argument[0] in 'aeio' else 'a'} {argument}"
