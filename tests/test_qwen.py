"""What a reply means: the rules of the parser, each with the cases that would break a simpler one."""

from __future__ import annotations

import doctest
import json
import random
import time
from typing import Any

import pytest

import envtune_agents.qwen
from envtune_agents.errors import EnvironmentStateError, TaskError
from envtune_agents.qwen import ParsedReply, ReplyParser, format_call, parse_reply

MODES = ["strict", "repair"]
THINK_PREFIX = "<|im_start|>assistant\n<think>\n"

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": "open_door", "parameters": {"properties": {"which": {"type": "string"}}}},
    },
    {"name": "save", "parameters": {"properties": {"path": {"type": "string"}, "body": {"type": "string"}}}},
    {"name": "math.add", "parameters": {}},
    {
        "name": "typed",
        "parameters": {
            "properties": {
                "text": {"type": "string"},
                "whole": {"type": "integer"},
                "real": {"type": "number"},
                "flag": {"type": "boolean"},
                "table": {"type": "object"},
                "rows": {"type": "array"},
                "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "either": {"type": ["integer", "string"]},
                "wording": {"type": ["string", "integer"]},
                "point": {"$ref": "#/$defs/Point"},
                "loop": {"$ref": "#/$defs/Loop"},
                "level": {"enum": [1, 2, 3]},
                "bfcl": {"type": "float"},
                "nullable": {"type": "boolean", "nullable": True},
                "all": {"allOf": [{"$ref": "#/$defs/Point"}]},
                "any": {},
            },
            "$defs": {"Point": {"properties": {"x": {}}}, "Loop": {"$ref": "#/$defs/Loop"}},
        },
    },
]


def block(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def xml(name: str, **values: str) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<function={name}>\n{inner}</function>"


def calls(reply: ParsedReply) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, call.args) for call in reply.tool_calls]


def invalid(reply: ParsedReply) -> list[str | None]:
    return [call.name for call in reply.invalid]


def stream(chunks: list[str], **options: Any) -> tuple[list[Any], ParsedReply]:
    parser = ReplyParser(**options)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    last, reply = parser.close()
    return events + last, reply


def cut_randomly(text: str, rng: random.Random) -> list[str]:
    chunks, place, widest = [], 0, rng.choice([1, 2, 4, 9, 30])
    while place < len(text):
        step = rng.randint(1, widest)
        chunks.append(text[place : place + step])
        place += step
    return chunks


def check_events(events: list[Any], reply: ParsedReply) -> None:
    assert "".join(event[1] for event in events if event[0] == "content") == reply.content
    assert "".join(event[1] for event in events if event[0] == "reasoning") == reply.reasoning
    spoken = [event for event in events if event[0] in ("name", "args")]
    assert [event[2] for event in spoken[0::2]] == [call.name for call in reply.tool_calls]
    assert [json.loads(event[2]) for event in spoken[1::2]] == [call.args for call in reply.tool_calls]
    assert [event[1] for event in spoken] == [index for index in range(len(reply.tool_calls)) for _ in range(2)]


OPEN_DOOR = format_call("open_door", {"which": "left"})
LEFT = ("open_door", {"which": "left"})


# --- plain text ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\nhello \n",
        "a < b <c> </d> <tool",
        "<thi",
        "x <|im_en",
        "{",
        "```python\nx = {}\n```",
        "汉 🚀 \u00a0",
    ],
)
def test_text_without_calls_is_byte_exact(text: str, mode: str) -> None:
    assert parse_reply(text, tools=TOOLS, mode=mode) == ParsedReply(content=text)


def test_everything_behind_the_end_of_the_turn_is_dropped() -> None:
    assert parse_reply("Done.<|im_end|>\n<|im_start|>user\nmore").content == "Done."
    assert parse_reply(f"Done.<|endoftext|>{OPEN_DOOR}") == ParsedReply(content="Done.")
    assert calls(parse_reply(f"{OPEN_DOOR}<|im_end|>{OPEN_DOOR}")) == [LEFT]


def test_an_invented_tool_response_ends_the_reply() -> None:
    reply = parse_reply(f"On it.\n{OPEN_DOOR}\n<tool_response>\nopen\n</tool_response>\nIt is open. {OPEN_DOOR}")
    assert (reply.content, calls(reply)) == ("On it.", [LEFT])


@pytest.mark.parametrize(
    "text",
    [
        "Write `<tool_call>` first and `</tool_call>` last.",
        "Use <tool_call> and </tool_call>.",
        '"<tool_call>" opens it',
        "<tool_call> opens a call.",
        f"Like this: `{OPEN_DOOR}`.",
        "Use <function=name> there.",
        "</tool_call> alone",
        "later <think>not reasoning</think>",
    ],
)
def test_a_tag_mentioned_in_prose_is_prose(text: str) -> None:
    assert parse_reply(text) == ParsedReply(content=text)


def test_white_space_next_to_a_call_is_layout() -> None:
    reply = parse_reply(f"  A\n\n{OPEN_DOOR}\n{OPEN_DOOR}\nB\n{OPEN_DOOR}\n")
    assert reply.content == "  A\n\nB"
    assert parse_reply(f"A{OPEN_DOOR}B").content == "AB"
    assert parse_reply(f"\n{OPEN_DOOR}\n").content == ""


# --- JSON calls ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("body", "args"),
    [
        ('{"name": "open_door"}', {}),
        ('{"name": "open_door", "arguments": null}', {}),
        ('{"name": "open_door", "arguments": ""}', {}),
        ('{"name": " open_door\\n", "parameters": {"a": 1}}', {"a": 1}),
        ('{"arguments": {"name": "x"}, "name": "open_door"}', {"name": "x"}),
        ('{"name": "open_door", "arguments": "{\\"a\\": [1]}"}', {"a": [1]}),
        ('{"name": "open_door", "arguments": {"a": 1, "a": 2}}', {"a": 2}),
        ('{"name": "open_door", "arguments": {"a": "</tool_call><tool_call>{\\"name\\": 1}"}}', None),
        ('{"name": "open_door", "arguments": {"a": "<|im_end|>", "b": "\\ud83d\\ude80", "c": "\\u0000"}}', None),
        (
            '{"name": "open_door", "arguments": {"i": 1, "r": 1.0, "e": 6e23, "n": -0.5, "big": 12345678901234567890}}',
            None,
        ),
    ],
)
def test_a_call_is_what_its_json_says(body: str, args: dict[str, Any] | None, mode: str) -> None:
    expected = json.loads(body)["arguments"] if args is None else args
    reply = parse_reply(block(body), mode=mode)
    assert repr(calls(reply)) == repr([("open_door", expected)])
    assert not reply.invalid


def test_one_block_may_hold_a_list() -> None:
    reply = parse_reply(block('[{"name": "a", "arguments": {}}, {"name": 5}, {"name": "b", "arguments": [1]}]'))
    assert calls(reply) == [("a", {})]
    assert invalid(reply) == [None, "b"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("", None),
        ("{}", None),
        ("[]", None),
        ("null", None),
        ("42", None),
        ("open_door(which=1)", None),
        ('{"name": ""}', None),
        ('{"name": ["open_door"]}', None),
        ('{"name": "\\ud800"}', None),
        ('{"arguments": {"name": "inner"', None),
        ('{"name": "save", "arguments": 5}', "save"),
        ('{"name": "save", "arguments": true}', "save"),
        ('{"name": "save", "arguments": [{"a": 1}]}', "save"),
        ('{"name": "save", "arguments": "x"}', "save"),
        ('{"name": "save", "arguments": "null"}', "save"),
        ('{"name": "save", "arguments": "\\"{}\\""}', "save"),
        ('{"name": "save" "arguments": {}}', "save"),
        ('{"name": "save", "arguments": {"a": NaN}}', "save"),
        ('{"name": "save", "arguments": {"a": -Infinity}}', "save"),
        ('{"name": "save", "arguments": {"a": 1e999}}', "save"),
        ('{"name": "save", "arguments": {"a": "\\udfff"}}', "save"),
        ('{"name": "save", "arguments": {"a": "x \ud800"}}', "save"),
        ('{"name": "save", "arguments": {"a": word}}', "save"),
        ('{"name": "save", "arguments": {"a": "says "hi" twice"}}', "save"),
        ('{"name": "save", "arguments": {"a": "C:\\dir"}}', "save"),
        ('{"name": "save", "arguments": {"a": "x}}', "save"),
        ('{"name": "save", "arguments": {"a": 1,', "save"),
        ('{"name": "save", "arguments": {"a": 1]}', "save"),
        ('{"name": "save", "arguments": {"a": ' + "9" * 5000 + "}}", "save"),
        ('{"name": "save", "arguments": {"a": ' + "[" * 10000 + "]" * 10000 + "}}", "save"),
    ],
)
def test_a_malformed_block_is_invalid_and_spoils_nothing(body: str, name: str | None, mode: str) -> None:
    for text in (f"A\n{OPEN_DOOR}\n{block(body)}\n{OPEN_DOOR}\nB", f"A{OPEN_DOOR}{block(body)}{OPEN_DOOR} B"):
        reply = parse_reply(text, tools=TOOLS, mode=mode)
        assert (reply.content.split(), calls(reply), invalid(reply)) == (["A", "B"], [LEFT, LEFT], [name])
        assert reply.invalid[0].error
        assert reply.invalid[0].text.encode() == body.replace("\ud800", "\ufffd").encode()


@pytest.mark.parametrize("broken", ['{"name": "save", "arguments": {"path": "a', '{"name": "save", "arguments": '])
def test_a_call_that_never_closes_ends_where_the_next_one_opens(broken: str) -> None:
    reply = parse_reply(f"<tool_call>\n{broken}\n{OPEN_DOOR}")
    assert (calls(reply), invalid(reply)) == ([LEFT], ["save"])


def test_a_complete_call_needs_no_closing_tag() -> None:
    body = OPEN_DOOR.removesuffix("\n</tool_call>")
    for end in ("", "\n", "\n<", "\n</tool_", "<|im_end|>", "\n<|im_"):
        assert parse_reply(body + end) == ParsedReply(tool_calls=parse_reply(OPEN_DOOR).tool_calls)
    reply = parse_reply(f"{body}\nThat is all.\n{body}\n{OPEN_DOOR}")
    assert (reply.content, calls(reply)) == ("That is all.", [LEFT] * 3)


@pytest.mark.parametrize("text", ["<tool_call>", "Now:\n<tool_call>\n", "<tool_call>\n{", '<tool_call>\n{"name": "sa'])
def test_a_call_cut_before_its_name_is_invalid(text: str) -> None:
    reply = parse_reply(text)
    assert (calls(reply), invalid(reply)) == ([], [None])


def test_doubled_tags_say_nothing() -> None:
    assert parse_reply(f"<tool_call>\n{OPEN_DOOR}\n</tool_call>") == parse_reply(OPEN_DOOR)


# --- XML calls ---


def test_the_schema_decides_what_the_text_of_a_parameter_is() -> None:
    values = {
        "text": "5", "whole": "-5", "real": "2.50", "flag": "True", "table": '{"k": [1, null]}', "rows": "[true]",
        "maybe": "null", "either": "7", "wording": "7", "point": '{"x": 1}', "loop": "1", "level": "2", "bfcl": "1.5",
        "nullable": "null", "all": '{"x": 2}', "any": "8", "unknown": "9",
    }  # fmt: skip
    expected = {
        "text": "5", "whole": -5, "real": 2.5, "flag": True, "table": {"k": [1, None]}, "rows": [True],
        "maybe": None, "either": 7, "wording": "7", "point": {"x": 1}, "loop": "1", "level": 2, "bfcl": 1.5,
        "nullable": None, "all": {"x": 2}, "any": "8", "unknown": "9",
    }  # fmt: skip
    reply = parse_reply(block(xml("typed", **values)), tools=TOOLS)
    assert repr(calls(reply)) == repr([("typed", expected)])


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("text", "null"), ("whole", "1.5"), ("whole", "null"), ("whole", "9" * 5000), ("real", "NaN"),
        ("real", "1e999"), ("flag", "1"),
        ("flag", "maybe"), ("table", "[1]"), ("table", "{'a': 1}"), ("rows", "[NaN]"),
        ("rows", "[" * 9999), ("maybe", "None"), ("level", "two"),
    ],
)  # fmt: skip
def test_text_that_does_not_cast_stays_text(key: str, text: str) -> None:
    assert calls(parse_reply(block(xml("typed", **{key: text})), tools=TOOLS)) == [("typed", {key: text})]


def test_exactly_one_newline_is_cut_on_each_side() -> None:
    for value in ("", "  indented\n\n", "\n", "a\r\nb"):
        assert calls(parse_reply(block(xml("save", body=value)))) == [("save", {"body": value})]
    inline = "<function=save><parameter=body> a </parameter></function>"
    assert calls(parse_reply(block(inline))) == [("save", {"body": " a "})]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n<function=save>\n<parameter=path>\na\n<parameter=body>\nb\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=save>\n<parameter=path>\na\n</parameter>\n<parameter=body>\nb\n</function>\n</tool_call>",
        "<tool_call>\n<function=save>\n<parameter=path>\na\n</parameter>\n<parameter=body>\nb\n</parameter>\n</tool_call>",
        "<tool_call>\n<function=save>\n<parameter=path>\na\n</parameter>\n<parameter=body>\nb\n</tool_call>",
        f"<tool_call>\n{xml('save', path='a', body='b')}",
        f"<tool_call>\n{xml('save', path='a', body='b')}\n</tool",
        xml("save", path="a", body="b"),
        xml("save", path="a", body="b") + "\n</tool_call>",
    ],
)
def test_missing_closers_are_tolerated_where_the_end_is_proved(text: str) -> None:
    assert parse_reply(text) == ParsedReply(tool_calls=parse_reply(block(xml("save", path="a", body="b"))).tool_calls)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("<function=save\n<parameter=path>a</parameter>\n</function>", None),
        ("<function=>\n</function>", None),
        ('<function name="save">\n<parameter=path>\na\n</parameter>\n</function>', None),
        ('<function=save>\n{"path": "a"}\n</function>', "save"),
        ("<function=save>\n<parameter=path\na\n</parameter>\n</function>", "save"),
        ("<function=save>\n<parameter=>\na\n</parameter>\n</function>", "save"),
    ],
)
def test_malformed_xml_is_invalid_and_spoils_nothing(body: str, name: str | None) -> None:
    reply = parse_reply(f"{block(body)}\n{block(xml('open_door', which='left'))}\n{OPEN_DOOR}")
    assert (calls(reply), invalid(reply)) == ([LEFT, LEFT], [name])


def test_tags_inside_a_value_are_data() -> None:
    for value in (
        block(xml("open_door", which="x")),
        OPEN_DOOR,
        "a </function> b",
        "<b>\n</tool_call>\nc",
        "<|im_end|>",
    ):
        assert calls(parse_reply(block(xml("save", body=value)))) == [("save", {"body": value})]
        assert calls(parse_reply(format_call("save", {"body": value}))) == [("save", {"body": value})]


def test_one_block_may_hold_several_functions() -> None:
    reply = parse_reply(block(xml("a") + "\n" + xml("b", x="1")) + "\nDone.")
    assert (calls(reply), reply.content) == ([("a", {}), ("b", {"x": "1"})], "Done.")


# --- think ---


@pytest.mark.parametrize("mode", MODES)
def test_nothing_inside_think_is_run(mode: str) -> None:
    for text in (
        f"<think>\n{OPEN_DOOR}\n</think>\nok",
        f"<think>a <think>b</think> {OPEN_DOOR} </think>ok",
        f"<think>a</think>\n<think>{OPEN_DOOR}</think>\nok",
        f"<think>{block(xml('open_door', which='x'))}</think></think>\n\nok",
    ):
        reply = parse_reply(text, mode=mode)
        assert (reply.content, calls(reply), invalid(reply)) == ("ok", [], [])
        assert "open_door" in reply.reasoning


def test_think_opens_by_the_prefix() -> None:
    for text in (f"plan\n</think>\n\n{OPEN_DOOR}", f"<think>\nplan</think>{OPEN_DOOR}"):
        reply = parse_reply(text, prefix=THINK_PREFIX)
        assert (reply.reasoning, reply.content, calls(reply)) == ("plan", "", [LEFT])
    assert parse_reply("budget gone ", prefix=THINK_PREFIX) == ParsedReply(reasoning="budget gone")
    assert parse_reply("x</think>", prefix=f"{THINK_PREFIX}\n</think>\n\n") == ParsedReply(content="x</think>")
    assert (
        parse_reply("x", prefix="<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n").content == "x"
    )


def test_an_inner_think_that_was_only_mentioned_hides_nothing() -> None:
    reply = parse_reply(f"<think>He asks what <think> is.</think>\nA tag.\n{OPEN_DOOR}")
    assert (reply.reasoning, reply.content, calls(reply)) == ("He asks what <think> is.", "A tag.", [LEFT])


def test_only_repair_lifts_calls_out_of_a_think_that_never_closed() -> None:
    text = f"<think>\nplan {OPEN_DOOR} more\n{OPEN_DOOR}\n{OPEN_DOOR}"
    assert calls(parse_reply(text)) == []
    reply = parse_reply(text, mode="repair")
    assert (reply.reasoning, calls(reply)) == (f"plan {OPEN_DOOR} more", [LEFT, LEFT])
    for unfinished in (f"{text}\nbut", text.removesuffix("</tool_call>")):
        assert len(calls(parse_reply(unfinished, mode="repair"))) == 0


# --- repair ---


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "open_door", "arguments": {"which": "left",},}',
        "{'name': 'open_door', 'arguments': {'which': 'left'}}",
        "{name: 'open_door', arguments: {which: \"left\"}}",
        "{“name”: “open_door”, “arguments”: {“which”: “left”}}",
        '```json\n{"name": "open_door", "arguments": {"which": "left"}}\n```',
        '{"name": "open_door", "arguments": {"which": "left"}',
        '{"name": "open_door", "arguments": {"which": "left"}}}',
        '{"name": "functions.open_door", "arguments": {"which": "left"}}',
        '{"name": "open_door", "arguments": "{\'which\': \'left\'}"}',
    ],
)
def test_repair_mends_what_has_one_meaning_and_strict_does_not(body: str) -> None:
    assert LEFT not in calls(parse_reply(block(body), tools=TOOLS))
    reply = parse_reply(block(body), tools=TOOLS, mode="repair")
    assert (calls(reply), reply.invalid) == ([LEFT], ())


def test_repair_reads_python_values_and_raw_newlines() -> None:
    body = "{'name': 'x', 'arguments': {'a': None, 'b': [True, False,], 'c': 'it\\'s \"so\"\n\\n', 'd': -1.5e3}}"
    reply = parse_reply(block(body), mode="repair")
    assert calls(reply) == [("x", {"a": None, "b": [True, False], "c": 'it\'s "so"\n\n', "d": -1500.0})]


def test_repair_adds_brackets_only_where_the_closing_tag_proves_the_end() -> None:
    body = '<tool_call>\n{"name": "open_door", "arguments": {"which": "left"}'
    assert invalid(parse_reply(body, mode="repair")) == ["open_door"]
    assert calls(parse_reply(f"{body}\n</tool_call>", mode="repair")) == [LEFT]


def test_repair_takes_several_objects_in_one_block() -> None:
    body = '{"name": "a", "arguments": {}}\n{"name": "b", "arguments": {}}'
    assert invalid(parse_reply(block(body))) == ["a"]
    assert calls(parse_reply(block(body), mode="repair")) == [("a", {}), ("b", {})]


def test_repair_keeps_a_declared_name_and_an_unknown_one() -> None:
    for name in ("math.add", "Open_Door", "functions.fly"):
        assert calls(parse_reply(format_call(name, {}), tools=TOOLS, mode="repair")) == [(name, {})]


BARE = '{"name": "open_door", "arguments": {"which": "left"}}'


@pytest.mark.parametrize(
    "text", [BARE, f"[{BARE}]", f"\n```json\n{BARE}\n```\n", f"<think>x</think>\n{BARE}<|im_end|>"]
)
def test_repair_takes_a_whole_reply_that_is_a_bare_call(text: str) -> None:
    reply = parse_reply(text, tools=TOOLS, mode="repair")
    assert (reply.content, calls(reply)) == ("", [LEFT])
    assert calls(parse_reply(text, tools=TOOLS)) == []


@pytest.mark.parametrize(
    "text",
    [f"Result: {BARE}", f"{BARE} as asked", BARE[:-1], BARE.replace("open_door", "fly"), '{"name": "open_door"}'],
)
def test_other_bare_json_is_text(text: str) -> None:
    assert parse_reply(text, tools=TOOLS, mode="repair") == ParsedReply(content=text)


# --- streaming ---


def test_content_streams_as_it_comes() -> None:
    parser = ReplyParser(tools=TOOLS)
    assert parser.feed("Hello <to") == [("content", "Hello")]
    assert parser.feed("ol> there") == [("content", " <tool> there")]
    assert parser.close() == ([], ParsedReply(content="Hello <tool> there"))
    assert parser.close() == ([], ParsedReply(content="Hello <tool> there"))


def test_an_ordinary_json_reply_streams_in_repair_mode() -> None:
    parser = ReplyParser(tools=TOOLS, mode="repair")
    assert "".join(event[1] for event in parser.feed('{"answer": 4')) == '{"answer": 4'  # type: ignore[misc]


def test_a_call_is_announced_once_it_is_complete() -> None:
    parser = ReplyParser()
    assert parser.feed(OPEN_DOOR[:-1]) == []
    assert parser.feed(">") == [("name", 0, "open_door"), ("args", 0, '{"which": "left"}')]


def test_a_parser_is_for_one_reply_and_knows_two_modes() -> None:
    parser = ReplyParser()
    parser.close()
    with pytest.raises(EnvironmentStateError, match="after close"):
        parser.feed("x")
    with pytest.raises(TaskError, match=r"parse mode 'lenient'. Known: strict, repair"):
        parse_reply("", mode="lenient")


PIECES = [
    "<tool_call>", "<tool_call>\n", "\n</tool_call>", "</tool_call>", "<think>", "</think>", OPEN_DOOR, BARE, "{", "}",
    "[", "]", '"', "'", "“", "”", "\\", "\n", " ", "\r\n", "a", ",", ":", "<function=save>", "<parameter=path>\n",
    "</parameter>", "\n</function>", "<|im_end|>", "<tool_response>", "<|im_start|>", "```", "```json\n", "`", "<",
    "</", "\ud800", "汉", "NaN", "null", '"name": "save"', '"arguments": ', "<tool", "<function", "=", ">",
    "{'name': 'save', 'arguments': {'path': None}}", xml("save", path="p"), block(xml("typed", whole="1")),
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_streamed_equals_not_streamed_for_any_text_and_any_chunks(mode: str) -> None:
    rng = random.Random(f"pieces-{mode}")
    for _ in range(350):
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 14)))
        options = {"tools": rng.choice([None, TOOLS]), "mode": mode, "prefix": rng.choice(["", "", THINK_PREFIX])}
        whole = parse_reply(text, **options)
        repr(whole).encode()
        json.dumps([call.args for call in whole.tool_calls], ensure_ascii=False, allow_nan=False).encode()
        for chunks in (list(text), cut_randomly(text, rng), cut_randomly(text, rng)):
            events, reply = stream(chunks, **options)
            assert repr(reply) == repr(whole), text
            check_events(events, reply)


def random_value(rng: random.Random, depth: int = 0) -> Any:
    if depth < 3 and rng.random() < 0.4:
        if rng.random() < 0.5:
            return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
        return {random_text(rng): random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
    return rng.choice([None, True, False, 0, -7, 10**20, 1.5, 2e-300, random_text(rng)])


def random_text(rng: random.Random) -> str:
    return "".join(
        rng.choices(["a", '"', "'", "\\", "\n", "{", "}", "汉", "🚀", "\x00", *PIECES[:10]], k=rng.randint(0, 6))
    )


@pytest.mark.parametrize("mode", MODES)
def test_rendered_calls_parse_back(mode: str) -> None:
    rng = random.Random(f"round trip {mode}")
    for _ in range(150):
        wanted = [(f"t{index}", {"k": random_value(rng)}) for index in range(rng.randint(1, 3))]
        text = "On it.\n" + "\n".join(format_call(*call) for call in wanted)
        events, reply = stream(cut_randomly(text, rng), mode=mode)
        assert (reply.content, repr(calls(reply)), reply.invalid) == ("On it.", repr(wanted), ())
        check_events(events, reply)


QUOTING = [
    format_call("save", {"path": "a", "body": block("<function=open_door></function>")}),
    format_call("save", {"path": "<tool_call><function=open_door></function></tool_call>", "body": "x"}),
    format_call("save", {"path": "a", "body": f"x {OPEN_DOOR} y"}),
    format_call("save", {"path": "a", "body": "<tool_call>{'name': 'open_door', 'arguments': {}}</tool_call> y"}),
    block(xml("save", path="a", body=f"x\n{OPEN_DOOR}\ny")),
    block(xml("save", path="a", body=block(xml("open_door", which="x")) + "\ny")),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text", QUOTING)
def test_a_reply_cut_anywhere_never_runs_another_call(text: str, mode: str) -> None:
    wanted = calls(parse_reply(text, tools=TOOLS))
    assert [name for name, _ in wanted] == ["save"]
    for end in range(len(text) + 1):
        reply = parse_reply(text[:end], tools=TOOLS, mode=mode)
        assert calls(reply) in ([], wanted), text[:end]
        assert reply.content in ("", text[:end])


def test_what_a_sound_string_quotes_is_data_even_when_the_call_is_malformed() -> None:
    quoted = "<tool_call><function=open_door></function></tool_call>"
    reply = parse_reply(block(f'{{"name": "save", "arguments": {{"a": "{quoted}", "b" "c"}}}}'))
    assert (reply.content, calls(reply), invalid(reply)) == ("", [], ["save"])


# --- size ---

HOSTILE = {
    "opening tags": "<tool_call>" * 10_000,
    "brackets": "<tool_call>\n" + "[" * 100_000,
    "angles in a string": '<tool_call>{"a": "' + "<" * 100_000,
    "open strings": '<tool_call>{"x</tool_call>' * 3_000,
    "escapes": '<tool_call>{"a": ' + '"\\' * 50_000,
    "functions": "<function=a>\n" * 8_000,
    "open values": "<tool_call>\n<function=a>\n<parameter=b>\n" * 3_000,
    "thinks": "<think><think></think>" * 5_000,
    "fences": "```" * 40_000,
    "spaces": ("<tool_call>" + " " * 1000) * 100,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_takes_linear_time(text: str, mode: str) -> None:
    start = time.process_time()
    parse_reply(text, tools=TOOLS, mode=mode)
    stream(list(text[:10_000]), tools=TOOLS, mode=mode)
    assert time.process_time() - start < 3, "a quadratic parser takes minutes here"


def test_the_docstring_example_runs() -> None:
    assert doctest.testmod(envtune_agents.qwen).failed == 0


def test_public_names() -> None:
    assert set(envtune_agents.qwen.__all__) == {
        "InvalidCall", "ParsedCall", "ParsedReply", "ReplyParser", "flatten_content", "format_call", "parse_reply",
        "render_prompt",
    }  # fmt: skip
