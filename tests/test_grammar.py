"""Constraints: whatever the weights would like to say, a demanded call comes out whole."""

from __future__ import annotations

import json
import sys
from typing import Any

import jsonschema
import pytest

from envtune_agents.engine import Engine, GenerationRequest
from envtune_agents.errors import ConstraintError, MissingDependencyError
from envtune_agents.grammar import answer_schema, bounded_schema, chosen_tools, constraint_for
from envtune_agents.qwen import ParsedReply, parse_reply
from envtune_agents.testing.tiny import tiny_qwen
from envtune_agents.weights import Weights, load_weights

pytest.importorskip("torch")
pytest.importorskip("llguidance")


def tool(name: str, properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required or list(properties), **more}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


NESTED = {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}
TOOLS = [
    tool("get_weather", {"city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"}}),
    tool("move", {"to": {"type": "array", "items": {"type": "number"}}, "how": {"enum": ["walk", "fly"]}}),
    tool("note", {"text": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "extra": {"type": "object"}, "any": {}}),
    tool("nested", {"a": {"$ref": "#/$defs/A"}}, **{"$defs": {"A": NESTED}}),
    tool("tick", {}),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tiny_qwen(tmp_path_factory.mktemp("tiny"))
    return Engine(lambda: load_weights(folder, "fp32"))


@pytest.fixture(scope="module")
def weights(engine: Engine) -> Weights:
    return engine.weights


def sample(engine: Engine, choice: Any, seed: int, tools: Any = TOOLS, budget: int = 1500, **options: Any) -> str:
    weights = engine.weights
    constraint = constraint_for(tools, choice, weights=weights, **options)
    prompt = tuple(weights.encode("<|im_start|>user\nDo it.<|im_end|>\n<|im_start|>assistant\n"))
    request = GenerationRequest(prompt, max_new_tokens=budget, temperature=1.0, seed=seed, constraint=constraint)
    result = engine.generate(request)
    assert result.finish_reason == "end", result.text
    return result.text


def only_call(text: str) -> tuple[str, dict[str, Any]]:
    parsed: ParsedReply = parse_reply(text, tools=TOOLS)
    assert (parsed.content, parsed.invalid, len(parsed.tool_calls)) == ("", (), 1), text
    return parsed.tool_calls[0].name, parsed.tool_calls[0].args


@pytest.mark.parametrize("seed", range(20))
def test_a_demanded_call_is_whole_visible_and_fits_its_schema(engine: Engine, seed: int) -> None:
    name, args = only_call(sample(engine, "any", seed, TOOLS[seed % 5 :]))
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS[seed % 5 :]}
    jsonschema.validate(args, schemas[name])


@pytest.mark.parametrize("name", [tool["function"]["name"] for tool in TOOLS])
def test_a_named_tool_is_the_one_called(engine: Engine, name: str) -> None:
    assert only_call(sample(engine, name, 0))[0] == name
    assert only_call(sample(engine, {"type": "function", "function": {"name": name}}, 1))[0] == name


@pytest.mark.parametrize("choice", ["any", "required", True])
def test_the_spelling_is_qwens_own(engine: Engine, choice: Any) -> None:
    text = sample(engine, choice, 7)
    body = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert json.loads(body).keys() == {"name", "arguments"}
    assert text.startswith('<tool_call>\n{"name": "')
    assert '", "arguments": {' in text


def test_tags_and_forced_text_are_the_canonical_tokens(engine: Engine, weights: Weights) -> None:
    constraint = constraint_for(TOOLS, "tick", weights=weights)
    prompt = tuple(weights.encode("<|im_start|>assistant\n"))
    result = engine.generate(GenerationRequest(prompt, constraint=constraint))
    assert list(result.token_ids[:-1]) == weights.encode('<tool_call>\n{"name": "tick", "arguments": {}}\n</tool_call>')


def test_forced_tokens_have_exact_logprobs_too(engine: Engine, weights: Weights) -> None:
    torch = pytest.importorskip("torch")
    prompt = tuple(weights.encode("<|im_start|>user\nMove.<|im_end|>\n<|im_start|>assistant\n"))
    constraint = constraint_for(TOOLS, "move", weights=weights)
    result = engine.generate(GenerationRequest(prompt, temperature=0.7, seed=2, constraint=constraint))
    with torch.inference_mode():
        logits = weights.model(torch.tensor([[*prompt, *result.token_ids]])).logits[0].float() / 0.7
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(rows, result.token_ids, strict=True)]
    assert result.logprobs == pytest.approx(expected, abs=1e-4)


def test_parallel_calls_are_bounded(engine: Engine) -> None:
    counts = [len(parse_reply(sample(engine, "tick", seed, parallel=True)).tool_calls) for seed in range(5)]
    assert all(1 <= count <= 8 for count in counts)


@pytest.mark.parametrize("seed", range(5))
def test_none_forbids_calls_and_nothing_else(engine: Engine, weights: Weights, seed: int) -> None:
    constraint = constraint_for(TOOLS, "none", weights=weights)
    prompt = tuple(weights.encode("<tool_call><tool_call><|im_start|>assistant\n"))
    request = GenerationRequest(prompt, max_new_tokens=100, temperature=2.0, seed=seed, constraint=constraint)
    assert "<tool_call>" not in engine.generate(request).text


@pytest.mark.parametrize("choice", [None, "auto"])
def test_auto_constrains_nothing(weights: Weights, choice: Any) -> None:
    assert constraint_for(TOOLS, choice, weights=weights) is None


@pytest.mark.parametrize(
    ("style", "budget"), [("json", 60), ("json", 90), ("json", 400), ("xml", 110), ("xml", 150), ("xml", 400)]
)
def test_a_demanded_call_closes_within_its_tokens(engine: Engine, style: Any, budget: int) -> None:
    """Random weights never end a string of themselves: the way out must."""
    wordy = {
        "text": {"type": "string"},
        "more": {"type": "array", "items": {"type": "string"}},
        "n": {"type": "integer"},
    }
    tools = [tool("say", {**wordy, "deep": {"type": "object", "properties": wordy}}, ["text", "n"])]
    for seed in range(4):
        text = sample(engine, "any", seed, tools, budget=budget, max_new_tokens=budget, style=style)
        parsed = parse_reply(text, tools=tools)
        assert (len(parsed.tool_calls), parsed.invalid) == (1, ()), text
        jsonschema.validate(parsed.tool_calls[0].args, tools[0]["function"]["parameters"])


def test_an_answer_closes_within_its_tokens(engine: Engine) -> None:
    node: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    node["properties"]["children"] = {"type": "array", "items": {"$ref": "#/$defs/Node"}}
    schema = {"$ref": "#/$defs/Node", "$defs": {"Node": node}}
    for seed in range(6):
        text = sample(engine, None, seed, [], budget=120, max_new_tokens=120, answer=schema)
        jsonschema.validate(json.loads(text), schema)
    for seed in range(4):
        text = sample(engine, None, seed, [], budget=60, max_new_tokens=60, answer={"type": "object"})
        assert isinstance(json.loads(text), dict)


def test_a_reply_may_be_calls_or_an_answer(weights: Weights) -> None:
    answer = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    constraint = constraint_for(TOOLS, "auto", weights=weights, answer=answer)
    assert constraint is not None
    call = '<tool_call>\n{"name": "tick", "arguments": {}}\n</tool_call>'
    for text in (call, f"{call}\n{call}", '{"sure": true}'):
        assert admitted(constraint, weights, f"{text}<|im_end|>"), text
    for text in ("Words.", '{"sure": 1}', f'{call}\n{{"sure": true}}', '<tool_call>\n{"name": "fly"'):
        assert not admitted(constraint, weights, text), text


def test_one_call_at_most_when_parallel_calls_are_forbidden(engine: Engine, weights: Weights) -> None:
    constraint = constraint_for(TOOLS, "auto", weights=weights, parallel=False)
    assert constraint is not None
    call = '<tool_call>\n{"name": "tick", "arguments": {}}\n</tool_call>'
    assert admitted(constraint, weights, f"Let me see. {call}<|im_end|>")
    assert admitted(constraint, weights, "Only words.<|im_end|>")
    assert not admitted(constraint, weights, f"{call}\n{call}<|im_end|>")
    assert not admitted(constraint, weights, f"{call}\nmore")


def test_strict_calls_follow_their_schema_without_being_demanded(weights: Weights) -> None:
    constraint = constraint_for(TOOLS, "auto", weights=weights, strict=True)
    assert constraint is not None
    good, bad = '{"name": "tick", "arguments": {}}', '{"name": "tick", "arguments": {"a": 1}}'
    assert admitted(constraint, weights, f"Well. <tool_call>\n{good}\n</tool_call><|im_end|>")
    assert not admitted(constraint, weights, f"<tool_call>\n{bad}\n</tool_call><|im_end|>")


@pytest.mark.parametrize(("thinking", "opens"), [("open", ""), ("may", "<think>\n")])
def test_thinking_comes_first_where_it_may(engine: Engine, weights: Weights, thinking: Any, opens: str) -> None:
    constraint = constraint_for(TOOLS, "tick", weights=weights, thinking=thinking)
    assert constraint is not None
    call = '<tool_call>\n{"name": "tick", "arguments": {}}\n</tool_call><|im_end|>'
    assert admitted(constraint, weights, f"{opens}Hm.\n</think>\n\n{call}")
    assert admitted(constraint, weights, call) == (thinking == "may")


def admitted(constraint: Any, weights: Weights, text: str) -> bool:
    matcher = constraint.matcher.deep_copy()
    ids = weights.encode(text)
    return bool(matcher.validate_tokens(ids) == len(ids))


def test_strings_are_bounded_by_the_tokens_of_the_reply(weights: Weights) -> None:
    tools = [tool("say", {"text": {"type": "string"}})]
    constraint = constraint_for(tools, "any", weights=weights, max_new_tokens=50)
    assert constraint is not None
    for length, fits in ((50, True), (51, False)):
        text = f'<tool_call>\n{{"name": "say", "arguments": {{"text": "{"x" * length}"}}}}\n</tool_call>'
        assert admitted(constraint, weights, text) == fits


def test_a_cut_call_is_never_complete(engine: Engine, weights: Weights) -> None:
    constraint = constraint_for(TOOLS, "note", weights=weights)
    prompt = tuple(weights.encode("<|im_start|>assistant\n"))
    result = engine.generate(GenerationRequest(prompt, max_new_tokens=20, constraint=constraint))
    assert result.finish_reason == "length"
    assert len(result.token_ids) == 20
    assert parse_reply(result.text).tool_calls == ()


def test_a_schema_that_cannot_be_compiled_names_its_tool(weights: Weights) -> None:
    strange = tool("strange", {"x": {"not": {"type": "string"}}})
    with pytest.raises(ConstraintError, match=r"tool 'strange'.*not"):
        constraint_for([*TOOLS, strange], "any", weights=weights)


ENDLESS = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}}}
ENDLESS["$defs"]["A"]["required"] = ["a"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, '"not"'),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}, "regex"),
        ({"type": "object", "properties": {"a": {"if": {}, "type": "object", "then": {}}}}, '"if"'),
        ({"type": "object", "properties": ["a"]}, "properties must be an object"),
        ({"type": "object", "properties": {"a": {"type": "banana"}}}, "banana"),
        ({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}, "nowhere"),
        (ENDLESS, "can never end"),
        ({"type": "object", "properties": {"a": {"enum": ["x" * 50] * 30_000}}}, "too large"),
    ],
)
def test_a_schema_no_grammar_can_hold_is_refused_by_name(weights: Weights, schema: Any, says: str) -> None:
    broken = {"type": "function", "function": {"name": "broken", "parameters": schema}}
    with pytest.raises(ConstraintError, match=says) as caught:
        constraint_for([TOOLS[4], broken], "any", weights=weights)
    assert "tool 'broken'" in str(caught.value)
    with pytest.raises(ConstraintError, match="response_format"):
        constraint_for([], None, weights=weights, answer=schema)


def test_what_is_not_enforced_is_left_to_validation(engine: Engine) -> None:
    loose = tool("loose", {"tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}})
    loose["function"]["parameters"]["properties"]["when"] = {"type": "str", "format": "binary"}
    assert set(only_call(sample(engine, "any", 1, [loose]))[1]["tags"]) <= {"a", "b"}


@pytest.mark.parametrize("name", ["wetter_für_köln", "天気", "sun☀️_tool"])
def test_names_may_hold_any_letters(engine: Engine, name: str) -> None:
    assert only_call(sample(engine, "any", 0, [tool(name, {"stadt☀": {"type": "integer"}})]))[0] == name


@pytest.mark.parametrize(
    ("response_format", "says"),
    [("json", "Unknown response_format"), ({"type": "xml"}, "Known"), ({"type": "json_schema"}, "no JSON schema")],
)
def test_an_unknown_response_format_is_refused(response_format: Any, says: str) -> None:
    with pytest.raises(ConstraintError, match=says):
        answer_schema(response_format)


@pytest.mark.parametrize("seed", range(6))
def test_the_xml_form_is_qwens_own(engine: Engine, seed: int) -> None:
    text = sample(engine, "any", seed, TOOLS[:2], style="xml")
    (call,) = parse_reply(text, tools=TOOLS).tool_calls
    assert text.startswith(f"<tool_call>\n<function={call.name}>\n<parameter=")
    jsonschema.validate(
        call.args, next(t for t in TOOLS if t["function"]["name"] == call.name)["function"]["parameters"]
    )


@pytest.mark.parametrize(
    ("tools", "choice", "says"),
    [([], "any", "no tools are bound"), (TOOLS, "nope", "Known: auto, none, any"), (TOOLS, {"x": 1}, "not bound")],
)
def test_a_choice_that_names_nothing_is_refused(tools: Any, choice: Any, says: str) -> None:
    with pytest.raises(ConstraintError, match=says):
        chosen_tools(tools, choice)


def test_the_extra_is_named_when_it_is_missing(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    fresh = tool("fresh", {"a": {"type": "string"}})
    with pytest.raises(MissingDependencyError, match=r"envtune-agents\[grammar\]"):
        constraint_for([fresh], "any", weights=weights)


def test_bounds_that_a_schema_gives_itself_stay() -> None:
    given = {"type": "string", "maxLength": 1000}
    assert bounded_schema(given) == given
    assert bounded_schema({"type": "string", "format": "date"}) == {"type": "string", "format": "date"}
    assert bounded_schema({"type": "integer", "minimum": 3})["minimum"] == 3
    assert bounded_schema({"type": "array", "maxItems": 99, "items": {"type": "null"}})["maxItems"] == 99


def test_a_property_may_have_the_name_of_a_keyword(engine: Engine) -> None:
    tools = [tool("odd", {"type": {"type": "string"}, "default": {"type": "integer"}, "title": {"type": "boolean"}})]
    _, args = only_call(sample(engine, "any", 0, tools))
    assert args.keys() == {"type", "default", "title"}


@pytest.mark.model
def test_the_demo_model_closes_its_call_in_a_hundred_and_fifty_tokens(small_weights: Weights) -> None:
    engine = Engine(lambda: small_weights)
    weights = engine.weights
    prompt = tuple(weights.encode("<|im_start|>user\nWeather in Paris?<|im_end|>\n<|im_start|>assistant\n"))
    constraint = constraint_for(TOOLS, "get_weather", weights=weights)
    result = engine.generate(GenerationRequest(prompt, max_new_tokens=150, constraint=constraint))
    assert result.finish_reason == "end"
    assert only_call(result.text)[1].keys() == {"city", "days", "exact"}
    engine.close()
