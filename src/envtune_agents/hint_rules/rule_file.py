"""From the YAML of a rule file to rules, with the line of whatever is wrong.

In: YAML text. Out: `DeclaredRule` values, or HintRuleError. The text is composed into nodes, never constructed into
objects, so a tag such as `!!python/object` is an error like any other, and every node knows its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from envtune_agents.errors import HintRuleError, unknown
from envtune_agents.hint_rules.declarative import PLACEHOLDER, DeclaredRule, When
from envtune_agents.hint_rules.patterns import bounded_pattern
from envtune_agents.types import FailureKind

_MAX_CHARS = 1_000_000
_RULE_KEYS = ("name", "when", "problem", "constraint", "pointer", "training_only")
_WHEN_KEYS = ("tool", "kind", "message", "message_contains", "argument", "value", "called", "not_called")
_PLACEHOLDERS = ("{tool}", "{argument}", "{value}", "{visible:tool_name}")
_TAG = "tag:yaml.org,2002:"


def read_rules(text: str, source: str) -> list[DeclaredRule]:
    """The rules of a YAML text; `source` is how errors call it."""
    return _Reader(source).rules(text)


@dataclass(frozen=True, slots=True)
class _Reader:
    source: str

    def fail(self, node: yaml.Node | None, message: str) -> NoReturn:
        line = f", line {node.start_mark.line + 1}" if node is not None else ""
        raise HintRuleError(f"{self.source}{line}: {message}")

    def rules(self, text: str) -> list[DeclaredRule]:
        root = self.composed(text)
        if root is None:
            self.fail(None, "the file is empty. Expected a key 'rules' with a list of rules.")
        top = self.mapping(root, ("rules",), "a rule file")
        if "rules" not in top:
            self.fail(root, "the key 'rules' is missing. Expected a list of rules under it.")
        if not isinstance(top["rules"], yaml.SequenceNode):
            self.fail(top["rules"], "'rules' must be a list of rules.")
        seen: dict[str, int] = {}
        found = []
        for node in top["rules"].value:
            rule = self.rule(node)
            line = node.start_mark.line + 1
            if rule.name in seen:
                self.fail(node, f"the name {rule.name!r} is used twice, first in line {seen[rule.name]}.")
            seen[rule.name] = line
            found.append(rule)
        return found

    def composed(self, text: str) -> yaml.Node | None:
        if len(text) > _MAX_CHARS:
            self.fail(None, f"the file is longer than {_MAX_CHARS} characters.")
        try:
            node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f", line {mark.line + 1}" if mark else ""
            raise HintRuleError(f"{self.source}{line}: not YAML: {error.problem or error.context}.") from error
        except (yaml.YAMLError, RecursionError) as error:
            line = f", line {text.count(chr(10), 0, getattr(error, 'position', 0)) + 1}"
            reason = getattr(error, "reason", type(error).__name__)
            raise HintRuleError(f"{self.source}{line}: not YAML: {reason}.") from error
        return node

    def rule(self, node: yaml.Node) -> DeclaredRule:
        keys = self.mapping(node, _RULE_KEYS, "a rule")
        for key in ("name", "when", "problem"):
            if key not in keys:
                self.fail(node, f"the rule has no {key!r}; 'name', 'when' and 'problem' are required.")
        when = self.when(keys["when"])
        return DeclaredRule(
            name=self.word(keys["name"], "name"),
            when=when,
            problem=self.template(keys["problem"], "problem"),
            constraint=self.each(keys.get("constraint"), "constraint", self.template),
            pointer=self.each(keys.get("pointer"), "pointer", self.template),
            training_only=self.flag(keys.get("training_only"), "training_only"),
        )

    def when(self, node: yaml.Node) -> When:
        keys = self.mapping(node, _WHEN_KEYS, "'when'")
        if not keys:
            self.fail(node, "'when' is empty; a rule without conditions would speak about every failure.")
        if "value" in keys and "argument" not in keys:
            self.fail(keys["value"], "'value' needs 'argument': the pattern is matched with that argument's value.")
        kinds = self.each(keys.get("kind"), "kind", self.kind)
        return When(
            tool=self.each(keys.get("tool"), "tool", self.word),
            **({"kind": frozenset(kinds)} if kinds else {}),
            message=self.pattern(keys.get("message"), "message"),
            message_contains=self.each(keys.get("message_contains"), "message_contains", self.text),
            argument=self.each(keys.get("argument"), "argument", self.word),
            value=self.pattern(keys.get("value"), "value"),
            called=self.each(keys.get("called"), "called", self.word),
            not_called=self.each(keys.get("not_called"), "not_called", self.word),
        )

    def mapping(self, node: yaml.Node, known: tuple[str, ...], what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode) or node.tag != f"{_TAG}map":
            self.fail(node, f"{what} must be a mapping with the keys {', '.join(known)}.")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name not in known:
                self.fail(key, unknown(f"key of {what}", name, known))
            if name in found:
                self.fail(key, f"the key {name!r} is given twice.")
            found[name] = value
        return found

    def each(self, node: yaml.Node | None, key: str, read: Callable[[yaml.Node, str], Any]) -> tuple[Any, ...]:
        if node is None:
            return ()
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            if not node.value:
                self.fail(node, f"{key!r} is an empty list.")
            return tuple(read(item, key) for item in node.value)
        return (read(node, key),)

    def text(self, node: yaml.Node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != f"{_TAG}str" or not node.value.strip():
            self.fail(node, f"{key!r} must be text that is not empty; put quotes around numbers and true or false.")
        return str(node.value)

    def word(self, node: yaml.Node, key: str) -> str:
        word = self.text(node, key).strip()
        if re.search(r"\s", word):
            self.fail(node, f"{key!r} must hold no blanks, got {word[:60]!r}.")
        return word

    def kind(self, node: yaml.Node, key: str) -> FailureKind:
        word = self.word(node, key)
        if word not in list(FailureKind):
            self.fail(node, unknown("failure kind", word, list(FailureKind)))
        return FailureKind(word)

    def pattern(self, node: yaml.Node | None, key: str) -> re.Pattern[str] | None:
        if node is None:
            return None
        try:
            return bounded_pattern(self.text(node, key))
        except HintRuleError:
            raise
        except ValueError as error:
            self.fail(node, f"the pattern of {key!r} is refused: {error}.")

    def template(self, node: yaml.Node, key: str) -> str:
        text = " ".join(self.text(node, key).split())
        for name in PLACEHOLDER.findall(text):
            if not re.fullmatch(r"tool|argument|value|visible:[\w.-]+", name):
                self.fail(node, unknown(f"placeholder in {key!r}", f"{{{name}}}", _PLACEHOLDERS))
        if re.search(r"[{}]", PLACEHOLDER.sub("", text)):
            self.fail(node, f"{key!r} holds a single brace; braces are for {', '.join(_PLACEHOLDERS)} only.")
        return text

    def flag(self, node: yaml.Node | None, key: str) -> bool:
        if node is None:
            return False
        if not isinstance(node, yaml.ScalarNode) or node.tag != f"{_TAG}bool":
            self.fail(node, f"{key!r} must be true or false.")
        return node.value.lower() in ("true", "yes", "on")
