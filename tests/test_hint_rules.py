"""The docs rules on small tools of their own, and rule files: what they mean and how they are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import StructuredTool
from pydantic import BaseModel, Field

from envtune_agents.errors import HintRuleError
from envtune_agents.hint_rules import DEFAULT_RULES, DOCS_RULES, SCHEMA_RULES, DeclaredRule, NestedField, load_rules
from envtune_agents.hint_rules.patterns import bounded_pattern
from envtune_agents.hint_rules.sources import is_id_like, is_login, login_tools, sources_of
from envtune_agents.hints import HintDial, HintEngine, tool_schemas
from envtune_agents.types import CallOutcome, FailureKind, Scene, ToolCall, ToolFailure

ROOT = Path(__file__).parents[1]


def text(description: str, kind: str = "string") -> dict[str, str]:
    return {"type": kind, "description": description}


def tool(
    name: str, arguments: dict[str, Any], response: dict[str, Any] | None = None, api: str = "Mail"
) -> dict[str, Any]:
    return {
        "name": name,
        "description": f"Does what {name} says.",
        "parameters": {"type": "object", "properties": arguments, "required": []},
        "response": {"type": "object", "properties": response or {}},
        "api": api,
    }


TOOLS = {
    entry["name"]: entry
    for entry in (
        tool("mail_login", {"user": text("Name of the user.")}, {"token": text("The token.")}),
        tool("shop_login", {"user": text("Name of the user.")}, api="Shop"),
        tool("list_letters", {}, {"letter_list": text("All letters with their ids.", "array")}),
        tool(
            "send_letter",
            {
                "letter_id": text("ID of the letter."),
                "priority": text('How fast. [Enum]: ["slow", "fast"]'),
                "day": text("The day in the format YYYY-MM-DD."),
                "copies": text("How many, between 1 and 5.", "integer"),
                "token": text("The token of the session."),
            },
            {"letter_id": text("ID of the letter sent.")},
        ),
        tool("search_letters", {"query": text("What to look for.")}),
        tool("read_file", {"name": text("Name of a file in the current directory. No path is allowed.")}, api="Files"),
    )
}


def hint(name: str, args: dict[str, Any], message: str, **more: Any) -> tuple[str, str]:
    kind = more.pop("kind", FailureKind.TOOL_ERROR)
    engine = HintEngine(more.pop("rules", DEFAULT_RULES), HintDial(more.pop("level", 3)))
    tools = more.pop("tools", TOOLS)
    got = engine.outcome(ToolCall(name, args), message, tools=tools, failure=ToolFailure(kind, message), **more)
    return (got.hint.rule, got.hint.text) if got.hint else ("", "")


# --- reading prose ---


# --- the docs rules ---


def test_a_login_is_asked_for_by_the_error_and_found_in_the_same_api() -> None:
    rule, said = hint("send_letter", {"letter_id": "7"}, "User not authenticated.")
    assert rule == "docs.log_in_first"
    assert "mail_login" in said
    assert "shop_login" not in said
    assert hint("send_letter", {"letter_id": "7"}, "The letter box is full.")[0] != "docs.log_in_first"
    without = {name: entry for name, entry in TOOLS.items() if name != "mail_login"}
    rule, said = hint("send_letter", {}, "Please log in first.", tools=without)
    assert rule == "docs.log_in_first"
    assert "login" not in said.replace("logged-in", "")


def test_a_token_comes_from_the_tool_whose_answer_holds_it() -> None:
    rule, said = hint("send_letter", {"token": "x"}, "Invalid token")
    assert rule == "docs.log_in_first"
    assert "Call mail_login first and pass on the token" in said


@pytest.mark.parametrize(
    ("args", "message", "rule", "said"),
    [
        ({"priority": "FAST"}, "bad priority", "docs.not_in_enumeration", "exactly as listed: fast"),
        ({"priority": "now"}, "bad priority", "docs.not_in_enumeration", "slow, fast"),
        ({"day": "tomorrow"}, "bad day", "docs.wrong_format", "YYYY-MM-DD"),
        ({"day": "2024-02-30"}, "Wrong format. Use YYYY-MM-DD.", "docs.wrong_format", "YYYY-MM-DD"),
        ({"copies": 9}, "too many", "docs.out_of_range", "between 1 and 5"),
        ({"letter_id": "99"}, "Letter 99 not found", "docs.value_from_tool", "list_letters"),
        ({"letter_id": "99"}, "Letter 99 was sent already", "docs.already_done", "conflicts"),
        ({"copies": 2}, "Insufficient stamps", "docs.over_limit", "lower copies"),
    ],
)
def test_a_refusal_is_explained_from_the_docs(args: dict[str, Any], message: str, rule: str, said: str) -> None:
    got = hint("send_letter", args, message)
    assert got[0] == rule
    assert said in got[1]
    levels = [hint("send_letter", args, message, level=level)[1] for level in (1, 2, 3)]
    assert levels[2].startswith(levels[1])
    assert levels[1].startswith(levels[0])
    assert len(levels[0]) < len(levels[1])


def test_a_path_for_a_name_and_an_empty_search() -> None:
    rule, said = hint("read_file", {"name": "a/b.txt"}, "Cannot read a/b.txt")
    assert rule == "docs.path_for_name"
    assert "only the last part" in said
    rule, said = hint("search_letters", {"query": "Bill"}, "[]", kind=FailureKind.EMPTY_RESULT)
    assert rule == "docs.found_nothing"
    assert "differently written query" in said


def test_a_login_that_failed_is_not_told_to_log_in() -> None:
    assert hint("mail_login", {"user": "a"}, "Authentication required: wrong token")[0] != "docs.log_in_first"


class Address(BaseModel):
    zip_code: str = Field(pattern=r"^\d{5}$", description="Five digits.")


class Parcel(BaseModel):
    to: Address
    weight_kg: float = Field(gt=0, le=30)
    items: list[Address] = []


def send_parcel(parcel: Parcel) -> str:
    """Send a parcel."""
    return "sent"


@pytest.mark.parametrize(
    ("parcel", "message", "says"),
    [
        ({"to": {}}, "parcel.to.zip_code: Field required", "without parcel.to.zip_code. "),
        ({"to": {"zip_code": "1"}}, "parcel.to.zip_code: String should match", 'parcel.to.zip_code = "1" does not fit'),
        ({"weight_kg": 40}, "parcel.weight_kg: Input should be", "parcel.weight_kg must be of type number, at most 30"),
        (
            {"items": [{}]},
            "parcel.items.0.zip_code: Field required",
            "of type string, of the form ^\\d{5}$ (Five digits.)",
        ),
    ],
)
def test_a_fault_inside_an_argument_is_found_by_its_path(parcel: dict[str, Any], message: str, says: str) -> None:
    failure = ToolFailure(FailureKind.TOOL_ERROR, f"Error invoking tool: {message}")
    scene = Scene(
        ToolCall("send_parcel", {"parcel": parcel}),
        failure,
        "x",
        tool_schemas([StructuredTool.from_function(send_parcel)]),
    )
    advice = NestedField()(scene)
    assert advice is not None
    assert says in f"{advice.problem} {advice.constraint}"


@pytest.mark.parametrize("message", ["notes.txt is no file", "parcel.lost: no such thing", "version 1.2.3"])
def test_what_is_no_path_into_an_argument_is_left_to_other_rules(message: str) -> None:
    tools = tool_schemas([StructuredTool.from_function(send_parcel)])
    failure = ToolFailure(FailureKind.TOOL_ERROR, message)
    for parcel in ({"to": {"zip_code": "12345"}}, "a box"):
        assert NestedField()(Scene(ToolCall("send_parcel", {"parcel": parcel, "notes": 1}), failure, "", tools)) is None


def test_schema_faults_stay_with_the_schema_rules() -> None:
    for kind in (FailureKind.UNKNOWN_TOOL, FailureKind.MISSING_ARGUMENT, FailureKind.WRONG_TYPE):
        scene = Scene(ToolCall("send_letter", {"priority": "FAST"}), ToolFailure(kind, "not found"), "x", TOOLS)
        assert [rule.name for rule in DOCS_RULES if rule(scene)] == []
    assert DEFAULT_RULES[: len(SCHEMA_RULES)] == SCHEMA_RULES
    assert [rule.name for rule in DEFAULT_RULES[-2:]] == ["schema.refused_argument", "call.same_again"]


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"parameters": None},
        {"parameters": {"properties": {"a": True, "letter_id": {}}}},
        {"parameters": {"properties": {"a": {"description": None, "enum": [1, None], "minimum": "x"}}}},
        {"parameters": {"properties": {"a": {"type": ["string", "null"], "items": 3}}}, "response": "text", "api": 5},
        {"parameters": {"properties": {"letter_id": text("x " * 100_000)}}, "response": {"properties": {"a": 1}}},
    ],
)
@pytest.mark.parametrize("value", ["a/b", float("nan"), None, [1, ["x"]], {"k": 1}, "\ud800", "x" * 100_000, True])
def test_strange_tools_and_values_never_make_a_docs_rule_raise(entry: dict[str, Any], value: Any) -> None:
    tools = {**TOOLS, "odd": entry}
    for message in ("", "Not found", "login required: invalid token", "format", "must be one of [a, b]", "a" * 100_000):
        for kind in FailureKind:
            scene = Scene(ToolCall("odd", {"a": value, "letter_id": value}), ToolFailure(kind, message), message, tools)
            for rule in DOCS_RULES:
                advice = rule(scene)
                assert advice is None or len(advice.problem + advice.constraint + advice.pointer) < 1_500


def test_sources_know_true_from_false_friends() -> None:
    assert sources_of("letter_id", "send_letter", TOOLS) == ["list_letters"]
    assert not is_id_like("travel_from")
    assert not is_id_like("password")
    assert not is_id_like("card_number")
    assert is_id_like("orderId")
    assert is_login("mail_login")
    assert not is_login("mail_get_login_status")
    assert not is_login("mail_logout")
    loose = {"mail_send": {}, "mail_login": {}, "shop_login": {}}
    assert login_tools("mail_send", loose) == ["mail_login"]
    assert login_tools("pay", {"pay": {}, "sign_in": {}}) == ["sign_in"]
    assert login_tools("pay", {"pay": {}, "mail_login": {}, "shop_login": {}}) == []


def test_metadata_of_a_tool_reaches_the_rules_and_not_the_model() -> None:
    response = {"type": "object", "properties": {"letter_id": {"type": "string"}}}
    made = StructuredTool.from_function(lambda day: day, name="write", description="Write.", metadata={"x": 1})
    assert set(tool_schemas([made])["write"]) == {"name", "description", "parameters"}
    made.metadata = {"response": response, "api": "Mail", "x": 1}
    seen = tool_schemas([made])["write"]
    assert (seen["response"], seen["api"]) == (response, "Mail")
    assert "x" not in seen


# --- rule files ---

RULES = """
rules:
  - name: my.doors
    when:
      tool: [start_*, drive]
      message_contains: door
      not_called: close_doors
    problem: "{tool} did not work: a door is open."
    constraint: All doors must be closed.
    pointer:
      - Call {visible:close_doors} first.
      - Close the doors.
  - name: my.ticket
    when: {message: 'ticket \\d+ not found', argument: [ticket_id, id]}
    problem: "No ticket has {argument} = {value}."
    pointer: Call {visible:list_tickets}.
    training_only: true
"""


def declared(name: str, args: dict[str, Any], message: str, visible: tuple[str, ...] = (), **more: Any) -> str:
    rules = load_rules(RULES)
    return hint(name, args, message, rules=rules, tools={one: tool(one, {}) for one in (name, *visible)}, **more)[1]


def test_a_rule_file_is_rules() -> None:
    assert [rule.name for rule in load_rules(RULES)] == ["my.doors", "my.ticket"]
    assert [rule.name for rule in load_rules(RULES, training=False)] == ["my.doors"]
    assert all(isinstance(rule, DeclaredRule) for rule in load_rules(RULES))
    assert "a door is open" in declared("start_engine", {}, "DOOR is open")
    assert declared("stop_engine", {}, "door is open") == ""
    assert declared("drive", {}, "no fuel") == ""
    assert declared("drive", {}, "door", kind=FailureKind.WRONG_TYPE) == ""
    assert declared("get", {"id": 12}, "Ticket 12 not found") == "No ticket has id = 12."
    assert declared("get", {"name": "x"}, "Ticket 12 not found") == ""


def test_a_tool_is_named_only_while_it_is_visible() -> None:
    assert declared("drive", {}, "door", ("close_doors",)).endswith("Call close_doors first.")
    assert declared("drive", {}, "door").endswith("Close the doors.")
    assert declared("get", {"id": 1}, "ticket 1 not found", ("list_tickets",)).endswith("Call list_tickets.")
    assert "list_tickets" not in declared("get", {"id": 1}, "ticket 1 not found")


def test_a_rule_can_look_at_what_succeeded_before() -> None:
    closed = CallOutcome("close_doors", {}, "ok", "ok")
    failed = CallOutcome("close_doors", {}, "no", "no", ToolFailure(FailureKind.TOOL_ERROR, "no"))
    assert declared("drive", {}, "door", history=(closed,)) == ""
    assert declared("drive", {}, "door", history=(failed,)) != ""


def test_a_value_cannot_smuggle_a_placeholder() -> None:
    assert declared("get", {"id": "{tool}{x.__class__}"}, "ticket 1 not found") == (
        'No ticket has id = "{tool}{x.__class__}".'
    )


GOOD = "rules:\n  - name: a\n    when: {tool: x}\n    problem: p\n"


@pytest.mark.parametrize(
    ("bad", "line", "says"),
    [
        ("rules:\n  - name: a\n    when: {tool: [x\n", 4, "not YAML"),
        ("rules:\n  - name: \x01\n", 2, "not YAML"),
        ("rule:\n  - 1\n", 1, "Unknown key of a rule file 'rule'"),
        ("rules: 3\n", 1, "must be a list"),
        ("- name: a\n", 1, "must be a mapping"),
        ("{}\n", 1, "'rules' is missing"),
        (f"{GOOD}  - problem: p\n    when: {{tool: x}}\n", 5, "no 'name'"),
        ("rules:\n  - name: a\n    problem: p\n", 2, "no 'when'"),
        (f"{GOOD}    hint: x\n", 5, "Unknown key of a rule 'hint'"),
        (f"{GOOD}  - name: a\n    when: {{tool: x}}\n    problem: p\n", 5, "used twice, first in line 2"),
        (f"{GOOD}    problem: q\n", 5, "given twice"),
        ("rules:\n  - name: a\n    when: {}\n    problem: p\n", 3, "'when' is empty"),
        ("rules:\n  - name: a\n    when:\n      tol: x\n    problem: p\n", 4, "Unknown key of 'when' 'tol'"),
        ("rules:\n  - name: a\n    when:\n      kind: oops\n    problem: p\n", 4, "Unknown failure kind 'oops'"),
        ("rules:\n  - name: a\n    when:\n      message: '('\n    problem: p\n", 4, "no regular expression"),
        ("rules:\n  - name: a\n    when:\n      message: '(a+)+$'\n    problem: p\n", 4, "repeats a group"),
        ("rules:\n  - name: a\n    when:\n      message: '(a|a)*$'\n    problem: p\n", 4, "repeats a group"),
        ("rules:\n  - name: a\n    when:\n      message: '.*.*.*x'\n    problem: p\n", 4, "too many repetitions"),
        ("rules:\n  - name: a\n    when:\n      value: x\n    problem: p\n", 4, "'value' needs 'argument'"),
        ("rules:\n  - name: a\n    when:\n      tool: []\n    problem: p\n", 4, "empty list"),
        ("rules:\n  - name: 7\n    when: {tool: x}\n    problem: p\n", 2, "must be text"),
        ("rules:\n  - name: a b\n    when: {tool: x}\n    problem: p\n", 2, "no blanks"),
        ("rules:\n  - name: a\n    when: {tool: x}\n    problem: '{x.y}'\n", 4, "Unknown placeholder"),
        ("rules:\n  - name: a\n    when: {tool: x}\n    problem: 'a { b'\n", 4, "single brace"),
        (f"{GOOD}    training_only: maybe\n", 5, "true or false"),
        ("rules:\n  - !!python/object/apply:os.system ['true']\n", 2, "must be a mapping"),
    ],
)
def test_what_is_wrong_in_a_rule_file_is_said_with_its_line(bad: str, line: int, says: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(bad, encoding="utf-8")
    with pytest.raises(HintRuleError) as error:
        load_rules(path)
    assert f"{path}, line {line}: " in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("bad", ["", "\n", "no/such/file.yaml", "x\n" + "[" * 5_000])
def test_a_rule_file_that_is_no_file_is_refused(bad: str) -> None:
    with pytest.raises(HintRuleError):
        load_rules(bad)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a*)*b", "(a|aa)+$", "((a)|b)*c", "(?:a{1,9}){1,99}x", "a?" * 30 + "a" * 30, ".*.*.*x", ".{0,10}" * 12],
)
def test_a_pattern_that_could_run_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"repeats a group|too many"):
        bounded_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)(?#c)+$", "(?x)( a + ) +$", "(?i:a+)+", r"(a+)\1$", r"(a)(b)?(?(2)a+|b+)$", "(?>a+)+", r"(?P<n>a+)(?P=n)+"],
)
def test_a_pattern_that_hides_what_it_repeats_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"only \(\?:|refers back"):
        bounded_pattern(pattern)


CATASTROPHE = "(a|a?)+$"
"""With forty letters and a bang this runs for hours in Python's `re`."""


def test_a_catastrophic_pattern_is_refused_with_its_line_and_never_run() -> None:
    with pytest.raises(HintRuleError, match="line 4: the pattern of 'message' is refused: it repeats a group"):
        load_rules(f"rules:\n- name: slow\n  when:\n    message: '{CATASTROPHE}'\n  problem: x\n")


ALLOWED = [".*a.*b", r"ticket \d+ not found", "a.{0,40}b", "(?:no|not) found", "[^]a]+x", "(.*)(.*)!", r"\w+.+?(?<= )"]


def test_what_is_allowed_ends_on_hostile_text() -> None:
    """In a process of its own, since nothing can stop a regular expression; it takes a second or two in all."""
    program = (
        "from envtune_agents.hint_rules.patterns import bounded_pattern, matches\n"
        f"for pattern in {ALLOWED!r}:\n"
        "    for text in ('a' * 100_000, 'ticket ' + '1' * 100_000, 'ab' * 50_000, 'a ' * 50_000):\n"
        "        matches(bounded_pattern(pattern), text)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_documented_file_loads_and_speaks() -> None:
    page = (ROOT / "docs" / "hint-rules.md").read_text(encoding="utf-8")
    rules = load_rules(page.split("```yaml\n")[1].split("```")[0])
    assert len(rules) == 3
    visible = {name: tool(name, {}) for name in ("bake_bread", "heat_oven", "open_recipe")}
    assert hint("bake_bread", {}, "the oven is cold", rules=rules, tools=visible)[1].endswith("Call heat_oven first.")
    assert hint("open_recipe", {"recipe": "a/b"}, "no", rules=rules, tools=visible)[0] == "kitchen.path_as_name"
    assert "list_recipes" not in hint("open_recipe", {"recipe": "ab"}, "Recipe ab not found", rules=rules)[1]
