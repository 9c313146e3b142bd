"""The text of a grammar: Lark rules for one reply of a Qwen model, as llguidance reads them.

Tags that are tokens of their own are named by id: llguidance keeps added tokens out of text, whatever their `special`
flag says. Where a tag is plain text, the text in front of it is read up to the tag (`lazy`), never past it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from envtune_agents.grammar.choices import Wanted, tool_name
from envtune_agents.grammar.schemas import bounded_schema
from envtune_agents.grammar.shortest import resolve

OPEN, CLOSE, THINK, THINK_END = "<tool_call>", "</tool_call>", "<think>", "</think>"
PARAMETER_END = "\n</parameter>\n"
Style = Literal["json", "xml"]
"""How a call is written: Qwen3's JSON, or the XML of Qwen3-Coder and Qwen3.5."""
Thinking = Literal["no", "may", "open"]
"""Whether the reply may begin with a think block, or the prompt has opened one."""
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Qwen's own JSON spelling, which is `json.dumps`'s: one space after a comma and a colon, none elsewhere."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How this checkpoint writes what is wanted."""

    tags: Mapping[str, int]
    """Id of each tag that is a token of its own."""
    style: Style
    thinking: Thinking
    max_string: int
    """Most characters of a string without a bound of its own."""
    max_thought: int
    """Most tokens of a think block."""

    def term(self, tag: str) -> str:
        """A tag in Lark."""
        return f"<[{self.tags[tag]}]>" if tag in self.tags else json.dumps(tag)

    def until(self, rule: str, tag: str, limit: str = "") -> list[str]:
        """Rule `rule`: any text, then `tag`."""
        if tag in self.tags:
            return [f"{rule}: {rule}_text {self.term(tag)}", f"{rule}_text{_attributes(limit)}: /(?s:.*)/"]
        return [f"{rule}{_attributes('lazy', limit)}: /(?s:.*){_escaped(tag)}/"]


def _attributes(*names: str) -> str:
    given = ", ".join(name for name in names if name)
    return f"[{given}]" if given else ""


def _escaped(text: str) -> str:
    return text.replace("/", "\\/").replace("\n", "\\n")


def grammar_text(wanted: Wanted, writing: Writing) -> str:
    """Lark for one whole reply."""
    thought, start = _think(writing)
    lines = [f"start: {start}reply", *thought]
    if wanted.calls != "none":
        lines += _calls(wanted, writing)
    if wanted.answer is not None:
        bounded = bounded_schema(wanted.answer, max_string=writing.max_string)
        if wanted.answer == {"type": "object"}:
            bounded = dict(wanted.answer)  # any object, however deep
        lines.append(f"answer: %json {json.dumps({**bounded, 'x-guidance': _COMPACT})}")
    return "\n".join([*lines, *_reply(wanted, writing)])


def _think(writing: Writing) -> tuple[list[str], str]:
    """The rules of a think block, and how the start refers to it."""
    if writing.thinking == "no":
        return [], ""
    rules = writing.until("thought", THINK_END, f"max_tokens={writing.max_thought}")
    if writing.thinking == "open":
        return [*rules, 'think: thought "\\n\\n"'], "think "
    return [*rules, f'think: {writing.term(THINK)} "\\n" thought "\\n\\n"'], "think? "


def _reply(wanted: Wanted, writing: Writing) -> list[str]:
    if wanted.calls == "must":
        return ["reply: calls"]
    if wanted.answer is not None:
        return ["reply: calls | answer" if wanted.calls == "may" else "reply: answer"]
    if OPEN in writing.tags:
        return ["reply: FREE calls?" if wanted.calls == "may" else "reply: FREE", "FREE: /(?s:.*)/"]
    free = f"FREE: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/"
    if wanted.calls == "none":
        return ["reply: FREE", free]
    return ["reply: FREE | before rest more", free, f"before[lazy]: /(?s:.*){OPEN}/"]


def _calls(wanted: Wanted, writing: Writing) -> list[str]:
    """Rules `calls` (one or more), `rest` (a call behind its opening tag) and `more` (further calls)."""
    more = f'("\\n" call){{0,{wanted.max_calls - 1}}}' if wanted.max_calls > 1 else '""'
    lines = [f"calls: call {more}", f"more: {more}", f"call: {writing.term(OPEN)} rest"]
    if not wanted.enforce:
        return [*lines, *writing.until("rest", CLOSE)]
    lines.append(f'rest: "\\n" body "\\n" {writing.term(CLOSE)}')
    lines.append("body: " + " | ".join(f"body_{i}" for i in range(len(wanted.tools))))
    for i, tool in enumerate(wanted.tools):
        schema = argument_schema(tool)
        lines += (
            _json_body(i, tool, schema, writing) if writing.style == "json" else _xml_body(i, tool, schema, writing)
        )
    return lines


def argument_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments, always of an object."""
    declared = tool["function"].get("parameters") or {}
    schema = {"properties": {}, **declared, "type": "object"}
    if not schema["properties"]:
        schema["additionalProperties"] = declared.get("additionalProperties", False)
    return schema


def _json_body(i: int, tool: Mapping[str, Any], schema: dict[str, Any], writing: Writing) -> list[str]:
    head = json.dumps('{"name": ' + json.dumps(tool_name(tool), ensure_ascii=False) + ', "arguments": ')
    bounded = {**bounded_schema(schema, max_string=writing.max_string), "x-guidance": _COMPACT}
    return [f'body_{i}: {head} args_{i} "}}"', f"args_{i}: %json {json.dumps(bounded)}"]


def _xml_body(i: int, tool: Mapping[str, Any], schema: dict[str, Any], writing: Writing) -> list[str]:
    required = schema.get("required") or ()
    parts, rules = [], []
    for j, (name, declared) in enumerate(schema["properties"].items()):
        rule = f"value_{i}_{j}"
        parts.append(f"{rule}{'' if name in required else '?'}")
        head = json.dumps(f"<parameter={name}>\n")
        rules += _xml_value(rule, head, declared, schema, writing)
    head = json.dumps(f"<function={tool_name(tool)}>\n")
    return [f'body_{i}: {head} {" ".join(parts)} "</function>"', *rules]


def _xml_value(rule: str, head: str, declared: Any, root: Mapping[str, Any], writing: Writing) -> list[str]:
    """One parameter: strings as they are, everything else as JSON."""
    end = json.dumps(PARAMETER_END)
    words = _words(declared, root)
    if words:
        return [f"{rule}: {head} ({' | '.join(json.dumps(word) for word in words)}) {end}"]
    if _is_text(declared, root):
        least, most = _lengths(declared, writing.max_string)
        text = f"/(?s:.{{{least},{most}}}){_escaped(PARAMETER_END)}/"
        return [f"{rule}: {head} {rule}_text", f"{rule}_text[lazy]: {text}"]
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    schema = declared if isinstance(declared, Mapping) else {}
    bounded = bounded_schema({**definitions, **schema}, max_string=writing.max_string)
    return [
        f"{rule}: {head} {rule}_json {end}",
        f"{rule}_json: %json {json.dumps({**bounded, 'x-guidance': _COMPACT})}",
    ]


def _words(declared: Any, root: Mapping[str, Any]) -> list[str]:
    """The strings of an enumeration of strings; [] for any other schema."""
    found = _followed(declared, root)
    values = [found["const"]] if "const" in found else found.get("enum")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return []
    return [str(value) for value in values]


def _is_text(declared: Any, root: Mapping[str, Any]) -> bool:
    found = _followed(declared, root)
    kinds = found.get("type")
    alternatives = found.get("anyOf") or found.get("oneOf") or ()
    return kinds in ("string", "str") or any(_is_text(option, root) for option in alternatives) or not found


def _followed(declared: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(8):
        if not isinstance(declared, Mapping) or not isinstance(declared.get("$ref"), str):
            break
        declared = resolve(declared["$ref"], root)
    return declared if isinstance(declared, Mapping) else {}


def _lengths(declared: Any, max_string: int) -> tuple[int, int]:
    given = declared if isinstance(declared, Mapping) else {}
    least = int(given.get("minLength", 0))
    return least, int(given.get("maxLength", max(max_string, least)))
