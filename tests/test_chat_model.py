"""The LangChain face: tools, streams, async, and prompts that continue the sampled tokens exactly."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from envtune_agents.chat_model import ChatTransformers, release_engines
from envtune_agents.chat_model.history import build_prompt, trace_of
from envtune_agents.chat_model.messages import to_template
from envtune_agents.chat_model.template import ChatTemplate, renders_tools, template_for
from envtune_agents.errors import ConstraintError, ContextOverflowError, WeightsError
from envtune_agents.qwen import render_prompt
from envtune_agents.testing.tiny import CHAT_TEMPLATE, tiny_qwen
from envtune_agents.types import TokenTrace
from envtune_agents.weights import Weights

pytest.importorskip("torch")
pytest.importorskip("llguidance")


@tool
def get_weather(city: str, days: int = 1) -> str:
    """Get the weather of a city."""
    return f"sunny in {city} for {days} days"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


TOOLS = [get_weather, add]
QUESTION: list[BaseMessage] = [SystemMessage("Be helpful."), HumanMessage("What is the weather like in Paris?")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_qwen(tmp_path_factory.mktemp("tiny"))
    release_engines()


@pytest.fixture(scope="module")
def no_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("bare"), chat_template=None)


def chat(folder: Path, **options: Any) -> ChatTransformers:
    return ChatTransformers(**{"model": folder, "precision": "fp32", "temperature": 1.0, "max_tokens": 300, **options})


def trace(message: AIMessage) -> dict[str, Any]:
    found: dict[str, Any] = message.response_metadata["token_trace"]
    return found


def played(model: ChatTransformers, steps: int, messages: list[BaseMessage] | None = None) -> list[BaseMessage]:
    """A conversation of demanded calls and their results."""
    bound = model.bind_tools(TOOLS, tool_choice="any")
    history = list(messages or QUESTION)
    for _ in range(steps):
        reply = bound.invoke(history)
        history.append(reply)
        history += [ToolMessage("It is sunny: 20°C ☀.", tool_call_id=call["id"]) for call in reply.tool_calls]
    return history


def test_a_reply_carries_usage_metadata_and_its_exact_tokens(folder: Path) -> None:
    model = chat(folder, max_tokens=20, seed=1)
    reply = model.invoke(QUESTION)
    weights = model.engine.weights
    found = trace(reply)
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {
        "prompt_token_ids", "completion_token_ids", "logprobs", "text", "template_hash", "constrained",
    }  # fmt: skip
    assert weights.decode(found["prompt_token_ids"]) == render_prompt(to_template(QUESTION))
    assert len(found["completion_token_ids"]) == len(found["logprobs"]) == reply.usage_metadata["output_tokens"]
    assert reply.usage_metadata["input_tokens"] == len(found["prompt_token_ids"])
    assert reply.response_metadata["finish_reason"] == "length"
    assert reply.response_metadata["model_name"] == str(folder)
    assert not found["constrained"]


@pytest.mark.parametrize("seed", range(5))
def test_a_demanded_call_arrives_as_a_tool_call(folder: Path, seed: int) -> None:
    reply = chat(folder, seed=seed).bind_tools(TOOLS, tool_choice="any").invoke(QUESTION)
    (call,) = reply.tool_calls
    assert call["id"].startswith("call_")
    assert call["name"] in ("get_weather", "add")
    assert reply.invalid_tool_calls == []
    assert reply.response_metadata["finish_reason"] == "tool_calls"
    assert trace(reply)["constrained"]


@pytest.mark.parametrize("choice", ["add", {"type": "function", "function": {"name": "add"}}])
def test_a_named_tool_is_called(folder: Path, choice: Any) -> None:
    reply = chat(folder, seed=0).bind_tools(TOOLS, tool_choice=choice).invoke(QUESTION)
    assert [call["name"] for call in reply.tool_calls] == ["add"]


def test_a_choice_of_an_unknown_tool_is_refused_when_binding(folder: Path) -> None:
    with pytest.raises(ConstraintError, match="get_weather, add"):
        chat(folder).bind_tools(TOOLS, tool_choice="fly")


def test_tools_reach_the_prompt(folder: Path, no_template: Path) -> None:
    for model in (chat(folder, max_tokens=1), chat(no_template, max_tokens=1)):
        reply = model.bind_tools(TOOLS).invoke(QUESTION)
        prompt = model.engine.weights.decode(trace(reply)["prompt_token_ids"])
        assert '"name": "get_weather"' in prompt
        assert '"name": "add"' in prompt


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", [{}, {"tool_choice": "any"}, {"tool_choice": "add", "parallel_tool_calls": True}])
def test_a_stream_adds_up_to_the_invoked_message(folder: Path, seed: int, options: dict[str, Any]) -> None:
    model = chat(folder, seed=seed, max_tokens=120, stop=["th"] if seed % 2 else None).bind_tools(TOOLS, **options)
    whole = model.invoke(QUESTION)
    chunks = list(model.stream(QUESTION))
    assert same(add_up(chunks), whole)
    assert sum(bool(chunk.usage_metadata) for chunk in chunks) == 1
    starts = [part for chunk in chunks for part in chunk.tool_call_chunks if part["id"]]
    assert [part["index"] for part in starts] == list(range(len(whole.tool_calls) + len(whole.invalid_tool_calls)))


@pytest.mark.parametrize("budget", [12, 18, 22])
def test_a_cut_call_is_invalid_invoked_and_streamed(folder: Path, budget: int) -> None:
    model = chat(folder, seed=1, max_tokens=budget).bind_tools([get_weather], tool_choice="any")
    whole = model.invoke(QUESTION)
    merged = add_up(list(model.stream(QUESTION)))
    for message in (whole, merged):
        assert message.tool_calls == []
        (cut,) = message.invalid_tool_calls
        assert "<tool_call>" in cut["args"]
        assert message.response_metadata["finish_reason"] == "length"
    assert whole.invalid_tool_calls[0]["error"]
    assert same(merged, whole)


def add_up(chunks: list[Any]) -> AIMessageChunk:
    total: AIMessageChunk = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    return total


def same(left: AIMessage, right: AIMessage) -> bool:
    """Equal in everything but the random ids of calls, the cache's share and rounding."""

    def core(message: AIMessage) -> Any:
        calls = [(call["name"], call["args"]) for call in (*message.tool_calls, *message.invalid_tool_calls)]
        found = {key: value for key, value in trace(message).items() if key != "logprobs"}
        usage = message.usage_metadata or {}
        return message.content, calls, message.additional_kwargs, found, usage.get("total_tokens")

    return bool(core(left) == core(right))


async def test_async_says_the_same(folder: Path) -> None:
    model = chat(folder, seed=2).bind_tools(TOOLS, tool_choice="any")
    whole = model.invoke(QUESTION)
    assert same(await model.ainvoke(QUESTION), whole)
    assert same(add_up([chunk async for chunk in model.astream(QUESTION)]), whole)


async def test_cancelling_a_task_or_a_stream_frees_the_model(folder: Path) -> None:
    endless = chat(folder, max_tokens=1900, seed=3).bind(stop=["\0"])
    engine = chat(folder).engine
    await engine.aweights()
    task = asyncio.create_task(endless.ainvoke(QUESTION))
    async with aclosing(endless.astream(QUESTION)) as stream:
        await anext(stream)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    steps = 0
    while await engine.arun(lambda _: engine._server.busy):  # type: ignore[union-attr]
        steps += 1
    assert steps < 200  # of 1,900 that the replies would take


def test_stop_strings_are_cut(folder: Path) -> None:
    free = chat(folder, temperature=0, max_tokens=40).invoke(QUESTION)
    stop = str(free.content)[8:13]
    cut = chat(folder, temperature=0, max_tokens=40).invoke(QUESTION, stop=[stop])
    assert cut.content == str(free.content)[: str(free.content).index(stop)]
    assert cut.response_metadata["finish_reason"] == "stop"


def test_each_step_continues_the_sampled_tokens(folder: Path) -> None:
    model = chat(folder, seed=5)
    history = played(model, 4)
    replies = [message for message in history if isinstance(message, AIMessage)]
    weights = model.engine.weights
    for before, after in itertools.pairwise(replies):
        said = trace(before)["prompt_token_ids"] + trace(before)["completion_token_ids"]
        assert trace(after)["prompt_token_ids"][: len(said)] == said
        assert after.response_metadata["continuous"]
        assert after.usage_metadata["input_token_details"]["cache_read"] == len(said) - 1
    whole = render_prompt(to_template(history[:-2]), [as_dict(each) for each in TOOLS])
    assert weights.decode(trace(replies[-1])["prompt_token_ids"]) == whole


def as_dict(each: Any) -> dict[str, Any]:
    from langchain_core.utils.function_calling import convert_to_openai_tool

    return convert_to_openai_tool(each)


def test_a_reply_enters_the_next_prompt_as_it_was_said(folder: Path) -> None:
    """Unconstrained babble re-tokenises differently; the sampled ids must be used all the same."""
    model = chat(folder, max_tokens=60, temperature=1.5)
    weights = model.engine.weights
    differs = 0
    for seed in range(5):
        first = model.invoke(QUESTION, seed=seed)
        history = [*QUESTION, first, HumanMessage("And in Berlin?")]
        second = model.invoke(history, max_tokens=1)
        said = trace(first)["prompt_token_ids"] + trace(first)["completion_token_ids"]
        if second.response_metadata["continuous"]:
            assert trace(second)["prompt_token_ids"][: len(said)] == said
            differs += weights.encode(weights.decode(said)) != said
    assert differs > 0


def edited(reply: AIMessage) -> list[BaseMessage]:
    return [*QUESTION, reply.model_copy(update={"content": "Something else."}), HumanMessage("Go on.")]


def other_system(reply: AIMessage) -> list[BaseMessage]:
    return [SystemMessage("Be rude."), QUESTION[1], reply, HumanMessage("Go on.")]


def dropped_call(reply: AIMessage) -> list[BaseMessage]:
    return [*QUESTION, reply.model_copy(update={"tool_calls": []}), HumanMessage("Go on.")]


def forged_tokens(reply: AIMessage) -> list[BaseMessage]:
    forged = {**trace(reply), "prompt_token_ids": [5] * 50}
    return [*QUESTION, reply.model_copy(update={"response_metadata": {"token_trace": forged}}), HumanMessage("Go on.")]


@pytest.mark.parametrize("change", [edited, other_system, dropped_call, forged_tokens])
def test_a_changed_history_is_rendered_afresh(folder: Path, change: Any) -> None:
    model = chat(folder, seed=1)
    bound = model.bind_tools(TOOLS, tool_choice="any")
    history = change(bound.invoke(QUESTION))
    after = bound.invoke(history)
    assert not after.response_metadata["continuous"]
    expected = render_prompt(to_template(history), [as_dict(each) for each in TOOLS])
    assert model.engine.weights.decode(trace(after)["prompt_token_ids"]) == expected


def test_changed_tools_render_afresh_and_then_continue_again(folder: Path) -> None:
    model = chat(folder, seed=1)
    history = played(model, 2)
    fewer = model.bind_tools([add], tool_choice="any")
    third = fewer.invoke(history)
    assert not third.response_metadata["continuous"]
    history += [third, ToolMessage("3", tool_call_id=third.tool_calls[0]["id"])]
    fourth = fewer.invoke(history)
    said = trace(third)["prompt_token_ids"] + trace(third)["completion_token_ids"]
    assert fourth.response_metadata["continuous"]
    assert trace(fourth)["prompt_token_ids"][: len(said)] == said


THINKING = """{%- set last = namespace(user=0) -%}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set last.user = loop.index0 %}{%- endif %}{%- endfor -%}
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.reasoning_content and loop.index0 > last.user %}{{- '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}
{%- endif %}
{{- m.content }}{%- for c in m.tool_calls or [] %}{{- '<tool_call>' + (c | tojson) + '</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' + OPENED }}{%- endif %}"""


@pytest.mark.parametrize("opened", ["", "<think>\n"], ids=["the model opens think", "the template opens think"])
def test_thoughts_are_kept_within_a_turn_and_left_out_after_it(folder: Path, opened: str) -> None:
    weights = chat(folder).engine.weights
    template = ChatTemplate(weights, THINKING.replace("OPENED", json.dumps(opened)))
    prompt = build_prompt(template, QUESTION, None, "strict")
    text = "<think>\nHm  hm.\n</think>\n\nLet me see. ".removeprefix(opened)
    completion = weights.encode(text + "<|im_end|>")
    found = TokenTrace(prompt.token_ids, tuple(completion), (0.0,) * len(completion), text, template.hash)
    reply = AIMessage(
        "Let me see. ",
        additional_kwargs={"reasoning_content": "Hm  hm."},
        response_metadata={"token_trace": asdict(found)},
    )
    same_turn = build_prompt(template, [*QUESTION, reply, ToolMessage("Sunny.", tool_call_id="1")], None, "strict")
    assert same_turn.continuous
    assert same_turn.token_ids[: len(prompt.token_ids) + len(completion)] == (*prompt.token_ids, *completion)
    next_turn = build_prompt(template, [*QUESTION, reply, HumanMessage("And now?")], None, "strict")
    assert not next_turn.continuous
    assert "Hm" not in weights.decode(next_turn.token_ids)


def test_a_cut_reply_is_closed_before_the_next_turn(folder: Path) -> None:
    model = chat(folder, max_tokens=7, temperature=0)
    first = model.invoke(QUESTION)
    second = model.invoke([*QUESTION, first, HumanMessage("Go on.")])
    text = model.engine.weights.decode(trace(second)["prompt_token_ids"])
    assert trace(first)["text"] + "<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>" in text


def test_decomposed_letters_do_not_break_the_continuation(folder: Path) -> None:
    history = played(chat(folder, seed=1), 2, [HumanMessage("Cafe\u0301 in Paris?")])
    assert history[-2].response_metadata["continuous"]


def test_a_history_from_elsewhere_is_rendered(folder: Path) -> None:
    history = [
        *QUESTION,
        AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "1"}]),
        ToolMessage([{"type": "text", "text": "three"}], tool_call_id="1"),
        AIMessage(
            "Hm.",
            invalid_tool_calls=[
                {"name": "add", "args": '{"name": "add", "arg', "id": "2", "error": "cut", "type": "invalid_tool_call"}
            ],
        ),
        HumanMessage([{"type": "text", "text": "Try "}, {"type": "text", "text": "again."}]),
    ]
    model = chat(folder, max_tokens=1)
    reply = model.bind_tools(TOOLS).invoke(history)
    prompt = model.engine.weights.decode(trace(reply)["prompt_token_ids"])
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>' in prompt
    assert "<tool_response>\nthree\n</tool_response>" in prompt
    assert 'Hm.\n<tool_call>\n{"name": "add", "arg\n</tool_call><|im_end|>' in prompt
    assert "user\nTry again.<|im_end|>" in prompt
    assert reply.response_metadata["continuous"]


def test_the_trace_survives_serialisation(folder: Path) -> None:
    from langchain_core.messages import messages_from_dict, messages_to_dict

    model = chat(folder, seed=1)
    history = messages_from_dict(json.loads(json.dumps(messages_to_dict(played(model, 1)))))
    assert trace_of(history[2]) is not None
    assert model.bind_tools(TOOLS, tool_choice="any").invoke(history).response_metadata["continuous"]


def test_the_own_template_is_used_when_it_renders_tools(folder: Path, no_template: Path, tmp_path: Path) -> None:
    weights = chat(folder).engine.weights
    assert renders_tools(weights)
    assert template_for(weights, "auto", [], [{}], None).source == CHAT_TEMPLATE
    assert template_for(weights, "qwen", [], None, None).source is None
    assert template_for(chat(no_template).engine.weights, "auto", [], None, None).source is None
    deaf = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    deaf_weights = chat(tiny_qwen(tmp_path, chat_template=deaf)).engine.weights
    assert not renders_tools(deaf_weights)
    assert template_for(deaf_weights, "auto", [{"role": "user", "content": ""}], None, None).source == deaf
    assert template_for(deaf_weights, "auto", [{"role": "user", "content": ""}], [{}], None).source is None
    assert template_for(deaf_weights, "auto", [{"role": "tool", "content": ""}], None, None).source is None


def test_the_tiny_template_and_the_built_in_one_agree(folder: Path) -> None:
    weights = chat(folder).engine.weights
    history = played(chat(folder, seed=1), 2)
    tools = [as_dict(each) for each in TOOLS]
    own, built_in = (template_for(weights, choice, [], tools, None) for choice in ("auto", "qwen"))
    assert own.render(to_template(history), tools) == built_in.render(to_template(history), tools)
    assert own.hash != built_in.hash
    assert build_prompt(own, history, tools, "strict").continuous


def test_too_long_a_conversation_says_so(folder: Path) -> None:
    with pytest.raises(ContextOverflowError):
        chat(folder).invoke([HumanMessage("word " * 5000)])


def test_settings_can_be_given_for_one_call(folder: Path) -> None:
    model = chat(folder, temperature=1.0)
    assert trace(model.invoke(QUESTION, max_tokens=3))["completion_token_ids"][3:] == []
    greedy = [trace(model.invoke(QUESTION, temperature=0, max_tokens=9))["completion_token_ids"] for _ in range(2)]
    assert greedy[0] == greedy[1]
    with pytest.raises(TypeError, match="Unknown option 'temprature'"):
        model.invoke(QUESTION, temprature=0)


def test_instances_share_weights_and_a_failed_load_can_be_repaired(folder: Path, tmp_path: Path) -> None:
    assert chat(folder).engine is chat(str(folder), temperature=0.1).engine
    assert chat(folder).engine is not chat(folder, max_context=100).engine
    broken = chat(tmp_path)
    with pytest.raises(WeightsError):
        broken.invoke(QUESTION)
    tiny_qwen(tmp_path)
    assert broken.invoke(QUESTION, max_tokens=1)


def test_options_are_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown tool parser 'hermes'\. Known: auto, qwen, qwen_xml"):
        chat(folder, tool_parser="hermes")
    assert ChatTransformers(model_name=folder).model == str(folder)


@pytest.mark.model
def test_the_demo_model_runs_an_agent_step(small_weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envtune_agents.chat_model.engines.load_weights", lambda *_, **options: small_weights)
    model = ChatTransformers(model="smollm2", temperature=0, max_tokens=150)
    history = played(model, 2)
    first, second = (message for message in history if isinstance(message, AIMessage))
    assert first.tool_calls[0]["args"].get("city") == "Paris"
    assert second.response_metadata["continuous"]
    assert second.usage_metadata["input_token_details"]["cache_read"] > 200
    release_engines()  # an engine of these settings loads its own weights from here on
