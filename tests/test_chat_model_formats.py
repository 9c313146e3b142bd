"""The forms in which checkpoints write calls and thoughts, read off templates like theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from envtune_agents.chat_model import ChatTransformers, release_engines
from envtune_agents.testing import tiny_qwen

pytest.importorskip("torch")
pytest.importorskip("llguidance")

TURNS = r"""
{%- for m in messages %}
{%- if m.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.reasoning_content and loop.index0 > last.user %}{{- '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}
{%- endif %}{{- m.content }}
{%- for c in m.tool_calls or [] %}{{- CALL }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}OPENING{%- endif %}"""
LAST_USER = r"""{%- set last = namespace(user=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}
{%- set last.user = loop.index0 %}{%- endif %}{%- endfor %}
{%- if tools %}{{- '<|im_start|>system\nTools:' }}{%- for t in tools %}{{- '\n' + (t | tojson) }}{%- endfor %}
{{- 'FORM<|im_end|>\n' }}{%- endif %}"""
JSON_FORM = r"\nAnswer with <tool_call>\n{\"name\": …, \"arguments\": …}\n</tool_call>"
JSON_CALL = (
    r"""'<tool_call>\n' + ({'name': c.function.name, 'arguments': c.function.arguments} | tojson) + '\n</tool_call>'"""
)
XML_FORM = (
    r"\nAnswer with <tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call>"
)
XML_CALL = r"""'<tool_call>\n<function=' + c.function.name + '>\n</function>\n</tool_call>'"""
CLOSED = (
    r"{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
)
OPENED = r"{{- '<think>\n' }}"


def template(form: str, call: str, opening: str = "") -> str:
    turns = TURNS.replace("CALL", call).replace("OPENING", opening)
    return (LAST_USER.replace("FORM", form) + turns).strip()


HYBRID = template(JSON_FORM, JSON_CALL, CLOSED)
ALWAYS_THINKS = template(JSON_FORM, JSON_CALL, OPENED)
CODER = template(XML_FORM, XML_CALL)
XML_THINKS = template(XML_FORM, XML_CALL, OPENED)


@tool
def get_weather(city: str, days: int = 1) -> str:
    """Get the weather of a city."""
    return f"sunny in {city} for {days} days"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_qwen(tmp_path_factory.mktemp("tiny"))
    release_engines()


def chat(folder: Path, chat_template: str, **options: Any) -> ChatTransformers:
    settings = {"precision": "fp32", "temperature": 1.0, "max_tokens": 160, "seed": 1}
    return ChatTransformers(model=folder, chat_template=chat_template, **{**settings, **options})


def said(reply: AIMessage) -> str:
    return str(reply.response_metadata["token_trace"]["text"])


@pytest.mark.parametrize(
    ("source", "parser", "xml"),
    [(HYBRID, "auto", False), (CODER, "auto", True), (XML_THINKS, "auto", True), (CODER, "qwen", False),
     (HYBRID, "qwen_xml", True)],
)  # fmt: skip
def test_a_demanded_call_has_the_form_the_template_shows(folder: Path, source: str, parser: str, xml: bool) -> None:
    bound = chat(folder, source, tool_parser=parser).bind_tools([get_weather], tool_choice="any")
    for seed in range(4):
        reply = bound.invoke("Weather?", seed=seed)
        (call,) = reply.tool_calls
        assert call["name"] == "get_weather"
        assert isinstance(call["args"]["city"], str)
        assert isinstance(call["args"].get("days", 1), int)
        assert ("<function=get_weather>" in said(reply)) == xml


@pytest.mark.parametrize("source", [ALWAYS_THINKS, XML_THINKS])
def test_an_opened_think_block_is_closed_before_the_call(folder: Path, source: str) -> None:
    reply = chat(folder, source).bind_tools([get_weather], tool_choice="any").invoke("Weather?")
    thought, _, rest = said(reply).partition("</think>")
    assert thought
    assert rest.startswith("\n\n<tool_call>\n")
    assert reply.additional_kwargs["reasoning_content"] == thought.strip()
    reasoning = reply.usage_metadata["output_token_details"]["reasoning"]
    assert 0 < reasoning <= 81
    assert [block["type"] for block in reply.content_blocks] == ["reasoning", "tool_call"]


def test_an_answer_in_json_may_be_thought_about(folder: Path) -> None:
    schema = {"title": "A", "type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    for source in (HYBRID, ALWAYS_THINKS, CODER):
        found = chat(folder, source).with_structured_output(schema, method="json_schema").invoke("Well?")
        assert found["yes"] in (True, False)


def test_thinking_can_be_switched_off(folder: Path) -> None:
    model = chat(folder, HYBRID, enable_thinking=False)
    reply = model.bind_tools([get_weather], tool_choice="any").invoke("Weather?")
    assert said(reply).startswith("<tool_call>")
    prompt = model.engine.weights.decode(reply.response_metadata["token_trace"]["prompt_token_ids"])
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert reply.usage_metadata["output_token_details"]["reasoning"] == 0


@pytest.mark.parametrize("version", [None, "v1"])
@pytest.mark.parametrize("source", [ALWAYS_THINKS, XML_THINKS])
def test_thoughts_and_calls_stream_to_the_invoked_message(folder: Path, source: str, version: Any) -> None:
    bound = chat(folder, source, output_version=version).bind_tools([get_weather], tool_choice="any")
    whole = bound.invoke("Weather?")
    chunks = list(bound.stream("Weather?"))
    total: AIMessageChunk = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert [(call["name"], call["args"]) for call in total.tool_calls] == [
        (call["name"], call["args"]) for call in whole.tool_calls
    ]
    thoughts = [[b["reasoning"] for b in m.content_blocks if b["type"] == "reasoning"] for m in (whole, total)]
    assert thoughts[0] == thoughts[1]
    assert sum(bool(chunk.usage_metadata and chunk.usage_metadata["input_tokens"]) for chunk in chunks) == 1
    assert total.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("source", [HYBRID, ALWAYS_THINKS, CODER, XML_THINKS])
def test_a_turn_continues_its_sampled_tokens(folder: Path, source: str) -> None:
    """Within a turn thoughts stay, so every step goes on from the very tokens of the last."""
    bound = chat(folder, source).bind_tools([get_weather], tool_choice="any")
    history: list[BaseMessage] = [HumanMessage("Weather?")]
    for _ in range(2):
        reply = bound.invoke(history)
        history += [reply, ToolMessage("Sunny.", tool_call_id=reply.tool_calls[0]["id"])]
    assert history[-2].response_metadata["continuous"]
