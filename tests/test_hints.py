from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from envtune_agents.errors import HintRuleError
from envtune_agents.hint_rules import DEFAULT_RULES, closest
from envtune_agents.hints import HintDial, HintEngine, classify_failure, error_message
from envtune_agents.types import Advice, CallOutcome, FailureKind, Hint, Scene, ToolCall, ToolFailure

TOOLS: dict[str, dict[str, Any]] = {
    "cd": {
        "name": "cd",
        "description": "Change the folder.",
        "parameters": {
            "type": "object",
            "properties": {"folder": {"type": "string", "description": "One level only."}},
            "required": ["folder"],
        },
    },
    "tail": {
        "name": "tail",
        "description": "Show the last lines.",
        "parameters": {
            "type": "object",
            "properties": {
                "file_name": {"type": "string", "description": "A file here."},
                "lines": {"type": "integer", "description": "How many."},
            },
            "required": ["file_name"],
        },
    },
}

FAILING = [
    (ToolCall("cdd", {"folder": "a"}), FailureKind.UNKNOWN_TOOL, "schema.unknown_tool"),
    (ToolCall("cd", {"path": "a"}), FailureKind.UNKNOWN_ARGUMENT, "schema.unknown_argument"),
    (ToolCall("cd", {}), FailureKind.MISSING_ARGUMENT, "schema.missing_argument"),
    (ToolCall("tail", {"file_name": "a", "lines": "20"}), FailureKind.WRONG_TYPE, "schema.wrong_type"),
]


def outcome(call: ToolCall, raw: str = "Error: bad call", *, level: int = 3, **more: Any) -> CallOutcome:
    return HintEngine(dial=HintDial(level)).outcome(call, raw, tools=TOOLS, **more)


@pytest.mark.parametrize(
    ("raw", "fails"),
    [
        ('{"error": "no such file"}', True),
        ('[{"error": "no such file"}]', True),
        ('["Error: no such file"]', True),
        ("['Error: no such file']", True),
        ("{'error': 'no such file'}", True),
        ("Error during execution: cd() missing 1 required positional argument: 'folder'", True),
        ("Error: boom", True),
        ('{"status": "error", "message": "boom"}', True),
        ('{"success": false}', True),
        ('{"isError": true, "content": []}', True),
        ('{"error": null, "result": 1}', False),
        ('{"error": ""}', False),
        ('{"status": "ok"}', False),
        ('[{"error": "a"}, {"result": 1}]', False),
        ("Errors are described in chapter 3.", False),
        ("Error handling in Python", False),
        ('"error"', False),
        ("[" * 50_000, False),
        ("{" + "[" * 15_000, False),
        ("", False),
        ("null", False),
    ],
)
def test_errors_are_recognised_by_their_spelling(raw: str, fails: bool) -> None:
    assert (error_message(raw) is not None) is fails


@pytest.mark.parametrize(("call", "kind", "rule"), FAILING)
def test_a_failed_call_is_classified_by_schema_and_hinted(call: ToolCall, kind: FailureKind, rule: str) -> None:
    got = outcome(call)
    assert got.failure is not None
    assert got.failure.kind is kind
    assert got.hint is not None
    assert got.hint.rule == rule
    assert json.loads(got.content) == {"error": "Error: bad call", "hint": got.hint.text}
    assert got.raw_content == "Error: bad call"


@pytest.mark.parametrize(("call", "kind", "rule"), FAILING)
def test_level_0_leaves_every_byte_unchanged(call: ToolCall, kind: FailureKind, rule: str) -> None:
    for raw in ("Error: bad call", '{"error":  "x" }', "['Error: é']"):
        got = outcome(call, raw, level=0)
        assert got.content == got.raw_content == raw
        assert got.failure is not None
        assert got.failure.kind is kind
        assert got.hint is None


@pytest.mark.parametrize(("call", "kind", "rule"), FAILING)
def test_each_level_adds_to_the_one_below(call: ToolCall, kind: FailureKind, rule: str) -> None:
    texts = [got.hint.text for level in (1, 2, 3) if (got := outcome(call, level=level)).hint]
    assert len(texts) == 3
    assert texts[1].startswith(texts[0])
    assert texts[2].startswith(texts[1])
    assert len(texts[0]) < len(texts[1]) < len(texts[2])


def test_success_is_never_touched() -> None:
    got = outcome(ToolCall("cd", {"path": "wrong by schema, yet the tool took it"}), '{"ok": true}')
    assert got.failure is None
    assert got.hint is None
    assert got.content == '{"ok": true}'


def test_a_malformed_call_gets_a_hint() -> None:
    failure = ToolFailure(FailureKind.MALFORMED_CALL, "Expecting ',' delimiter")
    got = outcome(ToolCall(""), "Error: Expecting ',' delimiter", failure=failure)
    assert got.hint is not None
    assert "bracket" in got.hint.text


def test_hints_point_at_names_but_only_at_visible_ones() -> None:
    assert "tail" in hint_text(ToolCall("tails"))
    assert "Similar" not in hint_text(ToolCall("sorts"))  # "sort" is not visible
    assert "'path' probably means folder" in hint_text(ToolCall("cd", {"path": "a"}))
    assert "Give lines as 20, without quotes" in hint_text(ToolCall("tail", {"file_name": "a", "lines": "20"}))


def hint_text(call: ToolCall) -> str:
    got = outcome(call)
    assert got.hint is not None
    return got.hint.text


def test_an_error_about_an_argument_shows_its_description() -> None:
    got = outcome(ToolCall("cd", {"folder": "ab"}), '{"error": "cd: ab: Unsupported folder."}')
    assert got.hint is not None
    assert got.hint.rule == "schema.refused_argument"
    assert 'refused folder = "ab"' in got.hint.text
    assert "One level only." in got.hint.text
    assert "One level only." not in outcome(got.call, got.raw_content, level=1).content
    named = outcome(ToolCall("tail", {"file_name": "x", "lines": 0}), "Error: lines must be sensible")
    assert named.hint is not None
    assert "How many." in named.hint.text
    assert outcome(ToolCall("cd", {"folder": "a"}), "Error: out of order").hint is None


def test_an_api_prefix_does_not_hide_the_name() -> None:
    assert closest("FileSystem.cd", TOOLS) == ["cd"]


def test_long_or_strange_names_do_not_flood_the_hint() -> None:
    assert len(hint_text(ToolCall("x" * 10_000))) < 500
    assert len(hint_text(ToolCall("cd", {"y" * 10_000: 1}))) < 1_000


def test_the_owner_of_a_tool_can_recognise_polite_failures() -> None:
    def detect(call: ToolCall, raw: str) -> ToolFailure | None:
        return ToolFailure(FailureKind.EMPTY_RESULT, "unknown city") if "00000" in raw else None

    class Rule:
        name = "city"

        def __call__(self, scene: Scene) -> Advice | None:
            return Advice("The city is not known.")

    engine = HintEngine(rules=(Rule(),))
    got = engine.outcome(ToolCall("zip"), '{"zipcode": "00000"}', tools={}, detect=detect)
    assert got.failure == ToolFailure(FailureKind.EMPTY_RESULT, "unknown city")
    assert json.loads(got.content) == {"zipcode": "00000", "hint": "The city is not known."}
    got = engine.outcome(ToolCall("zip"), "00000", tools={}, detect=detect)
    assert json.loads(got.content) == {"result": "00000", "hint": "The city is not known."}


def test_a_rule_that_raises_is_logged_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        name = "broken"

        def __call__(self, scene: Scene) -> Advice | None:
            raise ZeroDivisionError

    with caplog.at_level(logging.WARNING):
        got = HintEngine(rules=(Broken(), *DEFAULT_RULES)).outcome(ToolCall("cdd"), "Error: x", tools=TOOLS)
    assert got.hint is not None
    assert got.hint.rule == "schema.unknown_tool"
    assert "broken" in caplog.text


def test_a_cap_lowers_the_level_and_never_raises_it() -> None:
    dial = HintDial(2, tools={"cd": 1}, rules={"schema.unknown_tool": 0, "schema.wrong_type": 3})
    assert dial.level_for("schema.missing_argument", "cd") == 1
    assert dial.level_for("schema.unknown_tool", "x") == 0
    assert dial.level_for("schema.wrong_type", "tail") == 2
    assert HintEngine(dial=dial).outcome(ToolCall("cdd"), "Error: x", tools=TOOLS).hint is None


@pytest.mark.parametrize("level", [-1, 4, True, 1.5, "3"])
def test_a_dial_has_four_levels(level: Any) -> None:
    with pytest.raises(HintRuleError, match="0 to 3"):
        HintDial(level)


def test_rules_need_names_of_their_own() -> None:
    with pytest.raises(HintRuleError, match=r"schema\.malformed_call"):
        HintEngine(rules=(*DEFAULT_RULES, DEFAULT_RULES[0]))


def test_classification_does_not_need_the_engine() -> None:
    failure = classify_failure(ToolCall("cd", {"folder": "a"}), '{"error": "cd: a: No such directory"}', tools=TOOLS)
    assert failure == ToolFailure(FailureKind.TOOL_ERROR, "cd: a: No such directory")


def test_outcomes_are_values() -> None:
    assert outcome(ToolCall("cd")) == outcome(ToolCall("cd"))
    assert Hint("r", 1, "t") == Hint("r", 1, "t")
