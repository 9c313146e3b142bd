"""The second layer: rules that read the tools' own descriptions, parameter descriptions and response schemas.

In: a `Scene`. Out: `Advice`, or None. They work for any LangChain tool; a tool whose `metadata` holds "response" (a
JSON Schema of its answers) and "api" (its service) is understood better. They speak only about calls that fit their
JSON Schema, and the only values they name are the agent's own and enumerations from the docs or the error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from envtune_agents.hint_rules.prose import enumeration, value_format, value_range, wants_plain_name
from envtune_agents.hint_rules.sources import GIVEN_BY_USER, is_id_like, is_login, login_tools, sources_of
from envtune_agents.hint_rules.words import argument_in, cut, described, parameters_of, quoted, shown, split_name
from envtune_agents.types import Advice, FailureKind, HintRule, Scene

_RAN = (FailureKind.TOOL_ERROR, FailureKind.EMPTY_RESULT)

_ASKS_LOGIN = re.compile(
    r"not (?:logged|signed) ?in|log ?in (?:first|to|before|required)|please (?:log|sign) in|login required"
    r"|(?:not|un) ?(?:be )?authenticated|please authenticate|authentication (?:is )?required|unauthori[sz]ed"
    r"|not authori[sz]ed|no (?:user|one|account) is (?:currently )?logged in|must be logged in|session (?:has )?expired"
    r"|(?:invalid|expired|missing|wrong|no) (?:access |auth(?:entication)? |session )?token"
    r"|token (?:is )?(?:not initiali[sz]ed|expired|invalid|missing)|\b401\b",
    re.IGNORECASE,
)
_ABSENT = re.compile(
    r"not found|no such|does(?: not|n't) exist|unknown|invalid|not registered|not available|no available"
    r"|not recogni[sz]ed|cannot find|could not find|no match",
    re.IGNORECASE,
)
_ALREADY = re.compile(
    r"already|\bexists\b|duplicate|conflict|cannot go back|not empty",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"insufficient|not enough|exceed|above the|over the limit|too (?:large|long|many|high|small|low)|capacity"
    r"|less than .{0,40}limit|limit reached|quota|out of (?:stock|range)|maximum|minimum",
    re.IGNORECASE,
)
_CHANGES_FOLDER = re.compile(r"change\b.{0,30}\b(?:directory|folder)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LogInFirst:
    """The error asks for a login or a token. Triggered by the error alone, never by the order of calls."""

    name: str = "docs.log_in_first"
    bounded: ClassVar[bool] = True

    def __call__(self, scene: Scene) -> Advice | None:
        message = scene.failure.message
        if not _ran(scene) or is_login(scene.call.name) or not _ASKS_LOGIN.search(message):
            return None
        tokens = [name for name in scene.call.args if "token" in split_name(name).split()]
        logins = login_tools(scene.call.name, scene.tools)
        if tokens and "token" in message.lower():
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

    def __call__(self, scene: Scene) -> Advice | None:
        paths = [name for name, value in _texts(scene) if "/" in value or "\\" in value]
        for argument in _named_first(paths, scene):
            about = described(argument, parameters_of(scene))
            if "path" in split_name(argument).split():
                continue
            if wants_plain_name(about) or (wants_plain_name(scene.failure.message) and len(paths) == 1):
                changers = [name for name, tool in scene.tools.items() if _changes_folder(tool)]
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

    def __call__(self, scene: Scene) -> Advice | None:
        if not _ran(scene):
            return None
        for argument, values, allowed in self._listed(scene):
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

    def _listed(self, scene: Scene) -> Iterator[tuple[str, list[str], tuple[str, ...]]]:
        for argument, schema in _arguments(scene):
            values = _strings(scene.call.args[argument])
            allowed = enumeration(str(schema.get("description") or ""), schema)
            if values and allowed:
                yield argument, values, allowed
        argument_named = argument_in(scene.failure.message, scene.call.args)
        allowed = enumeration(scene.failure.message)
        if argument_named and allowed:
            yield argument_named, _strings(scene.call.args[argument_named]), tuple(sorted(allowed))


@dataclass(frozen=True, slots=True)
class WrongFormat:
    """A text that is not written in the format that the description, or the error, asks for."""

    name: str = "docs.wrong_format"
    bounded: ClassVar[bool] = True

    def __call__(self, scene: Scene) -> Advice | None:
        if not _ran(scene):
            return None
        complains = "format" in scene.failure.message.lower()
        named = argument_in(scene.failure.message, scene.call.args)
        for argument, value in _texts(scene):
            wanted = value_format(described(argument, parameters_of(scene)))
            blamed = complains and argument == named
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

    def __call__(self, scene: Scene) -> Advice | None:
        if not _ran(scene):
            return None
        stated = value_range(scene.failure.message)
        for argument, schema in _arguments(scene):
            value = scene.call.args[argument]
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
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

    def __call__(self, scene: Scene) -> Advice | None:
        if not _ran(scene) or not _ABSENT.search(scene.failure.message):
            return None
        ids = {name: scene.call.args[name] for name, _ in _arguments(scene) if is_id_like(name)}
        argument = argument_in(scene.failure.message, scene.call.args)
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

    def __call__(self, scene: Scene) -> Advice | None:
        if not _ran(scene) or not _ALREADY.search(scene.failure.message) or _ABSENT.search(scene.failure.message):
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

    def __call__(self, scene: Scene) -> Advice | None:
        if not _ran(scene) or not _LIMIT.search(scene.failure.message):
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

    def __call__(self, scene: Scene) -> Advice | None:
        if scene.failure.kind is not FailureKind.EMPTY_RESULT:
            return None
        texts = [name for name, _ in _texts(scene)]
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


def _ran(scene: Scene) -> bool:
    return scene.failure.kind in _RAN and scene.call.name in scene.tools


def _arguments(scene: Scene) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The given arguments that the tool declares, those that the error names first, each with its schema."""
    properties = parameters_of(scene).get("properties") or {}
    names = [name for name in scene.call.args if isinstance(properties.get(name), Mapping)]
    for name in _named_first(names, scene):
        yield name, properties[name]


def _texts(scene: Scene) -> Iterator[tuple[str, str]]:
    if _ran(scene):
        for name, _ in _arguments(scene):
            if isinstance(scene.call.args[name], str):
                yield name, scene.call.args[name]


def _named_first(names: list[str], scene: Scene) -> list[str]:
    """The argument that the error is about, before the others."""
    named = argument_in(scene.failure.message, scene.call.args)
    return sorted(names, key=lambda name: name != named)


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if isinstance(one, str)]


def _changes_folder(tool: Mapping[str, Any]) -> bool:
    return _CHANGES_FOLDER.search(str(tool.get("description") or "")[:2_000]) is not None


def _call_first(names: list[str]) -> str:
    return f"Call {' or '.join(names)} first"


def _article(argument: str) -> str:
    return f"{'an' if argument[0] in 'aeio' else 'a'} {argument}"
