"""The built-in prompt is the Qwen3-Instruct-2507 chat template, byte for byte."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import pytest

from envtune_agents.qwen import flatten_content, format_call, parse_reply, render_prompt

jinja2 = pytest.importorskip("jinja2")

# The chat template published with Qwen3-4B-Instruct-2507.
TEMPLATE = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""  # noqa: E501

CD = {
    "type": "function",
    "function": {
        "name": "cd",
        "description": "Go <there> & 'back' – 去",
        "parameters": {"type": "object", "properties": {"folder": {"type": "string"}}, "required": ["folder"]},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "cd", "arguments": {"folder": 'a "b" 汉\n'}}}
RAW_CALL = {"function": {"name": "cd", "arguments": '{"folder":   "kept as it is"}'}}
FLAT_CALL = {"name": "cd", "arguments": {}}


@cache
def template() -> Any:
    # transformers' own environment: no HTML escaping, trimmed blocks, JSON in insertion order.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE)


def by_jinja(messages: list[dict[str, Any]], tools: list[Any] | None, *, add_generation_prompt: bool) -> str:
    return str(template().render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt))


CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "S"}, {"role": "user", "content": "hi\n"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": ""}],
    [{"role": "user", "content": "a"}, {"role": "system", "content": "late"}, {"role": "user", "content": "b"}],
    [{"role": "system", "content": "S"}, {"role": "system", "content": "T"}],
    [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, RAW_CALL]},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": ""},
        {"role": "assistant", "content": "Then:", "tool_calls": [FLAT_CALL]},
        {"role": "tool", "content": "three"},
        {"role": "user", "content": "<tool_response>\nx\n</tool_response>"},
        {"role": "assistant", "content": "<think>\nx\n</think>\n\nDone.", "tool_calls": []},
    ],
    [{"role": "tool", "content": "first of all"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    [{"role": "developer", "content": "skipped"}, {"role": "user", "content": "x"}],
]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, [], [CD], [CD, {"name": "bare", "parameters": {}}]])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_renders_what_the_template_renders(
    messages: list[dict[str, Any]], tools: list[Any] | None, add_generation_prompt: bool
) -> None:
    expected = by_jinja(messages, tools, add_generation_prompt=add_generation_prompt)
    assert render_prompt(messages, tools, add_generation_prompt=add_generation_prompt) == expected


def test_renders_random_conversations_like_the_template() -> None:
    rng = random.Random(5)
    for _ in range(200):
        messages = []
        for _ in range(rng.randint(1, 8)):
            message: dict[str, Any] = {"role": rng.choice(["system", "user", "assistant", "tool"])}
            message["content"] = rng.choice(["", "x", "a\nb ", "<tool_call>", "汉"])
            if message["role"] == "assistant":
                message["tool_calls"] = rng.choices([CALL, RAW_CALL, FLAT_CALL], k=rng.randint(0, 3))
            messages.append(message)
        assert render_prompt(messages, [CD]) == by_jinja(messages, [CD], add_generation_prompt=True)


def test_each_reply_starts_where_the_prompt_ends() -> None:
    """A longer conversation only adds text: the prompt of one step is a prefix of the next one."""
    messages = CONVERSATIONS[5]
    shorter = render_prompt(messages[:2], [CD], add_generation_prompt=False)
    assert render_prompt(messages, [CD]).startswith(shorter)


def test_list_content_is_flattened_where_the_template_would_drop_it() -> None:
    blocks = [{"type": "text", "text": "a"}, "b", {"type": "image", "url": "x"}, {"type": "text", "text": "c"}]
    assert flatten_content(blocks) == "abc"
    assert flatten_content(None) == ""
    assert flatten_content("as it is ") == "as it is "
    assert render_prompt([{"role": "user", "content": blocks}]) == render_prompt([{"role": "user", "content": "abc"}])


def test_thinking_can_be_closed_in_advance() -> None:
    messages = [{"role": "user", "content": "x"}]
    assert render_prompt(messages, enable_thinking=False).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert render_prompt(messages, enable_thinking=True) == render_prompt(messages)


def test_no_messages_render_only_what_was_asked_for() -> None:
    assert render_prompt([]) == "<|im_start|>assistant\n"
    assert render_prompt([], add_generation_prompt=False) == ""


def test_a_rendered_call_parses_back() -> None:
    assert format_call("cd", {"folder": "汉"}) == (
        '<tool_call>\n{"name": "cd", "arguments": {"folder": "汉"}}\n</tool_call>'
    )
    prompt = render_prompt([{"role": "assistant", "content": "On it.", "tool_calls": [CALL]}])
    reply = parse_reply(prompt.removeprefix("<|im_start|>assistant\n"))
    assert (reply.content, reply.tool_calls[0].args) == ("On it.", CALL["function"]["arguments"])
