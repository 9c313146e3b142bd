"""What a caller may ask for, and the precise error of everything else."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import ValidationError

from envtune_agents.chat_model import ChatTransformers, release_engines
from envtune_agents.errors import ConstraintError, ContextOverflowError, MessageError, TaskError
from envtune_agents.testing import tiny_qwen

pytest.importorskip("torch")
pytest.importorskip("llguidance")


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def tick() -> str:
    """Count one."""
    return "1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_qwen(tmp_path_factory.mktemp("tiny"))
    release_engines()


def chat(folder: Path, **options: Any) -> ChatTransformers:
    return ChatTransformers(**{"model": folder, "precision": "fp32", "max_tokens": 8, "seed": 1, **options})


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"temperature": -1}, TaskError, "0 or more"),
        ({"temperature": "hot"}, TaskError, "0 or more"),
        ({"max_tokens": 0}, TaskError, "1 or more"),
        ({"top_p": 2.0}, TaskError, "at most 1"),
        ({"top_k": -1}, TaskError, "0 keeps every token"),
        ({"temprature": 0}, TypeError, r"Unknown option 'temprature'\. Known: conversation, logprobs"),
        ({"tool_choice": "any"}, ConstraintError, "no tools are bound"),
        ({"response_format": {"type": "yaml"}}, ConstraintError, "json_schema"),
        ({"model": "gpt-4o"}, ValueError, r"Unknown model 'gpt-4o'\. Known: .*load_adapter"),
        ({"tools": [add], "tool_choice": "fly"}, ConstraintError, "one of add"),
        ({"tools": [{"parameters": {}}]}, ConstraintError, "Tool 1 of 1"),
        ({"tools": [7]}, ConstraintError, "JSON schema under 'parameters'"),
    ],
)
def test_a_bad_option_of_a_call_is_refused(folder: Path, options: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        chat(folder).invoke("Hello", **options)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "at least one"),
        (
            [HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])],
            "Message 1 .human. .*image_url.*text only",
        ),
        ([HumanMessage([{"type": "audio", "base64": "x", "mime_type": "audio/wav"}])], "audio"),
        ([HumanMessage("a"), ToolMessage([{"type": "file", "id": "x"}], tool_call_id="1")], "Message 2 .tool."),
        ([HumanMessage("a"), RemoveMessage(id="1")], "no place in a prompt"),
    ],
)
def test_a_conversation_that_makes_no_prompt_says_why(folder: Path, messages: list[BaseMessage], says: str) -> None:
    with pytest.raises(MessageError, match=says):
        chat(folder).invoke(messages)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('No system messages!') }}", "No system messages!"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[7].content }}", "UndefinedError"),
    ],
)
def test_a_template_that_fails_says_so_and_the_engine_lives_on(folder: Path, template: str, says: str) -> None:
    with pytest.raises(MessageError, match=rf"{says}.*chat_template='qwen'"):
        chat(folder, chat_template=template).invoke("Hello")
    assert chat(folder).invoke("Hello").usage_metadata


def test_a_prompt_over_the_context_is_refused(folder: Path) -> None:
    with pytest.raises(ContextOverflowError, match=r"context of .* is 40"):
        chat(folder, max_context=40).invoke("word " * 60)
    with pytest.raises(ContextOverflowError):
        chat(folder, max_context=40).with_structured_output({"title": "A", "properties": {}}).invoke("word " * 60)


def test_roles_of_other_kinds_are_rendered(folder: Path) -> None:
    model = chat(folder, chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    reply = model.invoke([ChatMessage("Be brief.", role="developer"), HumanMessage("Hello")])
    ids = reply.response_metadata["token_trace"]["prompt_token_ids"]
    assert model.engine.weights.decode(ids) == "developer: Be brief.\nuser: Hello\n"


@pytest.mark.parametrize("blocks", ["reasoning", "thinking"])
def test_thoughts_of_other_models_are_told_from_text(folder: Path, blocks: str) -> None:
    template = "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.content }}]{% endfor %}"
    said = AIMessage([{"type": blocks, blocks: "Hm."}, {"type": "text", "text": "Yes."}])
    model = chat(folder, chat_template=template)
    reply = model.invoke([said, HumanMessage("Sure?")])
    ids = reply.response_metadata["token_trace"]["prompt_token_ids"]
    assert model.engine.weights.decode(ids) == "[Hm.|Yes.][|Sure?]"


def test_a_misspelt_setting_is_refused_and_those_of_servers_are_taken(folder: Path) -> None:
    with pytest.raises(ValidationError, match=r"Unknown option 'temprature'\. Known: adapters"):
        chat(folder, temprature=0)
    model = chat(folder, api_key="x", timeout=60, max_retries=2, streaming=True, base_url="http://localhost")
    assert model.invoke("Hello").usage_metadata
    assert ChatTransformers(model="a/b", max_completion_tokens=7, stop_sequences=["x"]).max_tokens == 7


def test_the_environment_names_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVTUNE_MODEL", str(folder))
    assert ChatTransformers().model == str(folder)
    assert ChatTransformers(model="a/b").model_name == "a/b"
    monkeypatch.delenv("ENVTUNE_MODEL")
    with pytest.raises(TaskError, match="ENVTUNE_MODEL"):
        ChatTransformers()


def test_a_relative_path_is_never_a_hub_id() -> None:
    assert ChatTransformers(model=Path("qwen")).model == "./qwen"


def test_the_configuration_pickles_and_serialises(folder: Path) -> None:
    model = chat(folder, adapters={"a": "b"}, stop=["x"], enable_thinking=False)
    for copy in (
        pickle.loads(pickle.dumps(model)),
        loads(dumps(model), allowed_objects=[ChatTransformers], valid_namespaces=["envtune_agents"]),
        loads(dumps(model), allowed_objects="all", valid_namespaces=["envtune_agents"]),
    ):
        assert copy == model
        assert copy.engine is model.engine
    with pytest.raises(ValueError, match="not allowed"):
        loads(dumps(model), valid_namespaces=["envtune_agents"])


def test_the_profile_says_what_the_model_can_do(folder: Path) -> None:
    profile = chat(folder).profile
    assert profile is not None
    assert profile["max_input_tokens"] == 2048
    assert profile["structured_output"]
    assert not profile["image_inputs"]
    assert (chat(folder, max_context=100).profile or {})["max_input_tokens"] == 100
    assert "max_input_tokens" not in (ChatTransformers(model="not/here").profile or {})


def test_different_settings_never_share_a_cached_reply(folder: Path) -> None:
    cache = InMemoryCache()
    model = chat(folder, cache=cache, temperature=1.0)
    answer = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {}}}}
    asked = [
        model,
        chat(folder, cache=cache, temperature=1.0, seed=2),
        chat(folder, cache=cache, temperature=1.0, parse_mode="repair"),
        chat(folder, cache=cache, temperature=1.0, chat_template="qwen"),
        chat(folder, cache=cache, temperature=1.0, stop=["x"]),
        model.bind(temperature=0.5),
        model.bind(stop=["x"]),
        model.bind_tools([add]),
        model.bind_tools([tick]),
        model.bind_tools([add], tool_choice="none"),
        model.bind(response_format=answer),
        model.bind(logprobs=True),
    ]
    for number, each in enumerate(asked, start=1):
        each.invoke("Hello")
        assert len(cache._cache) == number
    again = model.invoke("Hello")
    assert len(cache._cache) == len(asked)
    assert again.content == model.invoke("Hello").content


def test_new_weights_in_the_same_folder_make_a_new_cache_key(tmp_path: Path) -> None:
    before = chat(tiny_qwen(tmp_path))._identifying_params
    tiny_qwen(tmp_path, seed=1)
    assert chat(tmp_path)._identifying_params != before


def test_logprobs_come_in_openais_form(folder: Path) -> None:
    reply = chat(folder, logprobs=True).invoke("Hello")
    shown, trace = reply.response_metadata["logprobs"]["content"], reply.response_metadata["token_trace"]
    assert [each["logprob"] for each in shown] == trace["logprobs"]
    assert "".join(each["token"] for each in shown).startswith(trace["text"][:3])
    assert "logprobs" not in chat(folder).invoke("Hello").response_metadata
