from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from envtune_agents.errors import HintRuleError
from envtune_agents.hint_rules import DEFAULT_RULES, closest, load_rules
from envtune_agents.hints import HintDial, HintEngine, attach_hint, classify_failure, error_message
from envtune_agents.types import Advice, CallOutcome, FailureKind, Hint, Scene, Task, ToolCall, ToolFailure

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
        ('{"Error": "no such file"}', True),
        ('{"error_code": 404, "error_message": "no such file"}', True),
        ('{"ok": false, "reason": "locked"}', True),
        ('{"status": "failure"}', True),
        ('{"error": true, "message": "locked"}', True),
        ('{"ok": true}', False),
        ('{"error_message": "", "token": "a"}', False),
        ('{"success": 0, "failed": 3}', False),
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


@pytest.mark.parametrize(
    "raw", ['{"ok": false, "reason": "locked"}', '{"error": true, "message": "locked"}', '{"Error": "locked"}']
)
def test_the_reason_of_an_error_is_read_where_it_stands(raw: str) -> None:
    assert error_message(raw) == "locked"


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
    only = outcome(ToolCall("cd", {"folder": "a"}), "Error: invalid syntax")
    assert only.hint is not None
    assert 'refused folder = "a"' in only.hint.text


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


class Rule:
    """A rule that does what it is told."""

    def __init__(self, does: Callable[[Scene], Any], name: str = "told", training_only: bool = False) -> None:
        self.does, self.name, self.training_only = does, name, training_only

    def __call__(self, scene: Scene) -> Advice | None:
        answer: Advice | None = self.does(scene)
        return answer


def raises(error: BaseException) -> Callable[..., Any]:
    def does(*_: Any) -> Any:
        raise error

    return does


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (raises(ZeroDivisionError("by 0")), "ZeroDivisionError: by 0"),
        (raises(RecursionError()), "RecursionError"),
        (lambda scene: "go there", "gave str, expected Advice"),
        (lambda scene: Advice(3), "part of type int"),  # type: ignore[arg-type]
        (lambda scene: time.sleep(30), "TimeoutError: no answer within 0.5 seconds"),
    ],
)
def test_a_rule_that_fails_is_recorded_and_skipped(does: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = HintEngine((Rule(does), *DEFAULT_RULES), rule_timeout_s=0.5)
    with caplog.at_level(logging.WARNING):
        got = engine.outcome(ToolCall("cdd"), "Error: x", tools=TOOLS)
    assert got.hint is not None
    assert got.hint.rule == "schema.unknown_tool"
    assert got.hint_error is not None
    assert got.hint_error.startswith("rule 'told': ")
    assert said in got.hint_error
    assert "told" in caplog.text
    alone = HintEngine((Rule(does),), rule_timeout_s=0.05).outcome(ToolCall("cdd"), "Error: x", tools=TOOLS)
    assert (alone.content, alone.hint) == ("Error: x", None)
    assert HintEngine((Rule(does),), HintDial(0)).outcome(ToolCall("cdd"), "Error: x", tools=TOOLS).hint_error is None


def test_a_rule_that_says_too_much_is_cut() -> None:
    engine = HintEngine((Rule(lambda scene: Advice("x" * 10_000_000)),))
    assert len(engine.outcome(ToolCall("cd"), "Error: x", tools=TOOLS).content) < 2_100


@pytest.mark.parametrize("detect", [raises(ValueError("boom")), lambda call, raw: "no", lambda call, raw: True])
def test_a_detector_that_fails_is_recorded_and_changes_nothing(detect: Any) -> None:
    got = HintEngine().outcome(ToolCall("cd", {"folder": "a"}), "fine", tools=TOOLS, detect=detect)
    assert (got.content, got.failure) == ("fine", None)
    assert got.hint_error is not None
    assert "failure detector" in got.hint_error


def test_a_tool_whose_schema_is_broken_still_gets_a_hint_and_it_is_said() -> None:
    broken = {**TOOLS, "cd": {**TOOLS["cd"], "unreadable": "parameters.properties is list, expected an object"}}
    got = HintEngine().outcome(ToolCall("cd", {}), "Error: x", tools=broken)
    assert got.hint is not None
    assert got.hint_error is not None
    assert "'cd' was read in part: parameters.properties is list" in got.hint_error
    assert HintEngine().outcome(ToolCall("tail", {}), "Error: x", tools=broken).hint_error is None


def test_an_engine_for_serving_holds_no_training_rule() -> None:
    crib = Rule(lambda scene: Advice("Only in training."), "crib", training_only=True)
    served = HintEngine.for_serving((crib, *DEFAULT_RULES), HintDial(2))
    assert "crib" not in [rule.name for rule in served.rules]
    assert served.dial == HintDial(2)
    assert "training" not in served.outcome(ToolCall("cdd"), "Error: x", tools=TOOLS).content
    assert "training" in HintEngine((crib,)).outcome(ToolCall("cdd"), "Error: x", tools=TOOLS).content
    text = "rules:\n- name: c\n  when: {tool: cd}\n  problem: Only in training.\n  training_only: true\n"
    assert HintEngine.for_serving(load_rules(text)).rules == ()


def test_an_engine_takes_the_caps_of_its_task_and_stage() -> None:
    engine = HintEngine(dial=HintDial(3, tasks={"hard_*": 1}, stages={"alignment": 0}))
    task = Task("hard_1", "any", ("Go.",))
    assert engine.for_episode(task).dial.level == 1
    assert engine.for_episode(task, "alignment").outcome(ToolCall("cdd"), "Error: x", tools=TOOLS).hint is None
    assert engine.for_episode() is engine
    assert engine.dial.level == 3


def test_a_timeout_and_a_service_that_is_down_get_advice_too() -> None:
    late = ToolFailure(FailureKind.TIMEOUT, "no answer within 30 seconds")
    got = outcome(ToolCall("tail", {"file_name": "a", "max_lines": 9}), "Error: no answer", failure=late)
    assert got.hint is not None
    assert got.hint.rule == "call.timed_out"
    assert "lower max_lines" in got.hint.text
    for message in ("ConnectionError: connection refused", "HTTP 503 Service Unavailable", "Status code: 502"):
        assert "once more" in rule_text("call.service_trouble", message)
    assert "no more calls" in rule_text("call.service_trouble", "429 Too Many Requests")
    assert outcome(ToolCall("tail", {"file_name": "a"}), "Error: line 502 is odd").hint is None


def rule_text(rule: str, message: str) -> str:
    got = outcome(ToolCall("tail", {"file_name": "a"}), f"Error: {message}")
    assert got.hint is not None
    assert got.hint.rule == rule
    return got.hint.text


def test_the_same_failure_again_is_named() -> None:
    call, raw = ToolCall("tail", {"file_name": "a"}), "Error: out of order"
    first = outcome(call, raw)
    assert first.hint is None
    again = outcome(call, raw, history=[first])
    assert again.hint is not None
    assert again.hint.rule == "call.same_again"
    assert outcome(ToolCall("tail", {"file_name": "b"}), raw, history=[first]).hint is None


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        ('{"error": "x"}', '{"error": "x", "hint": "H"}'),
        (' {"error":  1e3,\n "b": [ ] } ', '{"error":  1e3,\n "b": [ ], "hint": "H"}'),
        ("{}", '{"hint": "H"}'),
        ("[1]", '{"error": "[1]", "hint": "H"}'),
        ("{'error': 1}", '{"error": "{\'error\': 1}", "hint": "H"}'),
        ("", '{"error": "", "hint": "H"}'),
    ],
)
def test_a_hint_changes_no_byte_inside_the_answer(raw: str, content: str) -> None:
    assert attach_hint(raw, "H", ToolFailure(FailureKind.TOOL_ERROR, "x")) == content


def test_a_hint_can_always_be_sent() -> None:
    attach_hint("\ud800", "half a pair \ud800", ToolFailure(FailureKind.TOOL_ERROR, "x")).encode()


@pytest.mark.parametrize("rule", [lambda scene: None, object(), "rule", None])
def test_what_is_no_rule_is_refused(rule: Any) -> None:
    with pytest.raises(HintRuleError, match="is no hint rule"):
        HintEngine((rule,))


def test_a_rule_is_asked_about_its_kinds_of_failure_only() -> None:
    asked: list[FailureKind] = []
    rule = Rule(lambda scene: asked.append(scene.failure.kind))
    rule.kinds = {FailureKind.TOOL_ERROR}  # type: ignore[attr-defined]
    engine = HintEngine((rule,))
    engine.outcome(ToolCall("cdd"), "Error: x", tools=TOOLS)
    engine.outcome(ToolCall("cd", {"folder": "a"}), "Error: x", tools=TOOLS)
    assert asked == [FailureKind.TOOL_ERROR]
    rule.kinds = {"tool error"}  # type: ignore[attr-defined]
    with pytest.raises(HintRuleError, match="Expected a set of FailureKind"):
        HintEngine((rule,))


def test_a_rule_with_words_is_asked_where_one_of_them_is_said() -> None:
    asked: list[str] = []
    rule = Rule(lambda scene: asked.append(scene.failure.message))
    rule.words = ("closed", "shut")  # type: ignore[attr-defined]
    engine = HintEngine((rule,))
    said = ["It is CLOSED.", "open", "shut", f"{'.' * 2_000} closed"]
    for message in said:
        engine.outcome(ToolCall("cd"), "", tools=TOOLS, failure=ToolFailure(FailureKind.TOOL_ERROR, message))
    assert asked == ["It is CLOSED.", "shut"]


@pytest.mark.parametrize("words", ["closed", ("Closed",), ("",), (1,), 1])
def test_words_are_texts_in_lower_case(words: Any) -> None:
    rule = Rule(lambda scene: None)
    rule.words = words  # type: ignore[attr-defined]
    with pytest.raises(HintRuleError, match="Expected texts in lower case"):
        HintEngine((rule,))


def test_rules_need_names_of_their_own() -> None:
    with pytest.raises(HintRuleError, match=r"schema\.malformed_call"):
        HintEngine(rules=(*DEFAULT_RULES, DEFAULT_RULES[0]))


def test_classification_does_not_need_the_engine() -> None:
    failure = classify_failure(ToolCall("cd", {"folder": "a"}), '{"error": "cd: a: No such directory"}', tools=TOOLS)
    assert failure == ToolFailure(FailureKind.TOOL_ERROR, "cd: a: No such directory")


def test_outcomes_are_values() -> None:
    assert outcome(ToolCall("cd")) == outcome(ToolCall("cd"))
    assert Hint("r", 1, "t") == Hint("r", 1, "t")
