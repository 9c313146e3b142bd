"""Which visible tools could give a value that a call needs: a login, a token, an id, a symbol.

In: the visible tools with their optional `response` schemas and `api` names. Out: tool names, best first. A tool that
is not visible is never among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeGuard

from envtune_agents.hint_rules.words import split_name

Tools = Mapping[str, Mapping[str, Any]]

ALIASES: dict[str, tuple[str, ...]] = {
    "stock": ("symbol",),
    "stocks": ("symbol", "stock_list"),
    "ticker": ("symbol",),
    "receiver_id": ("user_id", "user_list"),
    "recipient_id": ("user_id", "user_list"),
    "token": ("access_token", "auth_token", "session_token"),
    "auth_token": ("access_token", "token"),
    "session_token": ("access_token", "token"),
}
"""Arguments that take the same values as a response field of another name."""

GIVEN_BY_USER = frozenset(
    {
        "api_key",
        "card_number",
        "card_verification_number",
        "client_id",
        "client_secret",
        "passport_number",
        "password",
        "phone_number",
        "refresh_token",
        "username",
    }
)
"""Arguments that look like ids and that no tool can give: they are the user's own facts."""

_NONE: Mapping[str, Any] = {}
_ID_LIKE = re.compile(r"(?:^|_| )(?:ids?|token|symbol|ticker|key|uuid|reference)$|^(?:stocks?|symbols?)$")
_LOGIN = re.compile(r"\b(?:log ?in|sign ?in|authenticate|auth|authorize|connect session)\b")
_NOT_LOGIN = re.compile(r"\b(?:status|get|check|is|list|log ?out|sign ?out|show|verify)\b")
_READS = re.compile(r"^(?:get|list|search|find|show|view|lookup|query|retrieve|fetch)\b")


def is_id_like(argument: str) -> bool:
    """Whether an argument takes a value that some system made up, and that no tool-free reasoning can yield."""
    return argument not in GIVEN_BY_USER and _ID_LIKE.search(split_name(argument)) is not None


def login_tools(called: str, tools: Tools) -> list[str]:
    """The visible tools that log in to the service of the tool `called`.

    By API name where the tools have one. Otherwise the login tools that share a part of the name ("mail_login" for
    "mail_send"), or the only login tool there is.
    """
    found = [name for name in tools if name != called and is_login(name)]
    api = (tools.get(called) or {}).get("api")
    if api:
        return [name for name in found if tools[name].get("api") == api]
    family = set(split_name(called).split()) - {"get", "set", "user", "my", "the"}
    related = [name for name in found if family & set(split_name(name).split())]
    return related or (found if len(found) == 1 else [])


@lru_cache(maxsize=4096)
def is_login(name: str) -> bool:
    """Whether a tool's name says that it logs in."""
    words = split_name(name)
    return _LOGIN.search(words) is not None and _NOT_LOGIN.search(words) is None


def sources_of(argument: str, called: str, tools: Tools, n: int = 2) -> list[str]:
    """Up to `n` visible tools whose answers hold values for `argument` of the tool `called`, best first."""
    api = (tools.get(called) or {}).get("api")
    ranked: list[tuple[int, int, str]] = []
    for position, (name, tool) in enumerate(tools.items()):
        if name == called or not tool.get("response") or argument in _properties(tool.get("parameters")):
            continue  # a tool that asks for the value only repeats it
        rank = _rank(argument, name, tool)
        if rank is not None and (api is None or tool.get("api") == api):
            ranked.append((rank, position, name))
    ranked.sort()
    return [name for _, _, name in ranked[:n]]


def _rank(argument: str, name: str, tool: Mapping[str, Any]) -> int | None:
    """How sure it is that this tool's answer holds the value: 0 is best, None is not at all."""
    words, noun = split_name(name), _noun(argument)
    wanted = (argument, *ALIASES.get(argument, ()))
    nouns = {noun, *(_noun(alias) for alias in ALIASES.get(argument, ()))} - {""}
    for field, schema in _fields(tool.get("response")):
        about = f"{split_name(field)} {str(schema.get('description') or '').lower()}"
        if field in wanted or argument == f"{noun}s" == f"{field}s":
            return 0 if any(part in words for part in nouns) else 1
        if field == "id" and any(_has(part, words) for part in nouns):
            return 2 if _READS.match(words) else 3
        listed = schema.get("type") in ("array", "object")
        if listed and any(_has(part, about) or argument.lower() in about for part in nouns):
            return 1 if _READS.match(words) else 4
    return None


@lru_cache(maxsize=4096)
def _noun(argument: str) -> str:
    parts = [part for part in split_name(argument).split() if part not in ("id", "ids", "key", "uuid", "access")]
    return parts[-1] if parts else ""


def _has(noun: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(noun)}s?\b", text) is not None


def _properties(schema: Any) -> Mapping[str, Any]:
    properties: Any = schema.get("properties") if _is_schema(schema) else None
    return properties if _is_schema(properties) else _NONE


def _fields(response: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The fields of an answer and of the items of its lists, two levels deep."""
    for field, schema in _properties(response).items():
        if isinstance(schema, Mapping):
            yield field, schema
            yield from ((name, inner) for name, inner in _properties(schema.get("items")).items() if _is_schema(inner))


def _is_schema(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return type(value) is dict or isinstance(value, Mapping)
