"""`ChatServed` against our own server over real HTTP: what it says is what `ChatTransformers` says, token by token."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from exchanges import CASES, get_weather, streamed
from langchain_core.messages import HumanMessage, ToolMessage
from pydantic import SecretStr

from envtune_agents import ChatTransformers, Playground, collect, playground_tasks, read_rollouts
from envtune_agents.errors import ContextOverflowError, ServerError, WeightsError
from envtune_agents.serve import serving_app
from envtune_agents.serve.ports import listening_socket
from envtune_agents.testing import random_adapter, tiny_qwen
from envtune_vllm import ChatServed

KEY = "a secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def local(folder: Path) -> ChatTransformers:
    adapter = random_adapter(folder.parent / "adapter", folder)
    return ChatTransformers(model=folder, adapters={"tuned": adapter}, precision="fp32", temperature=0, max_tokens=16)


@pytest.fixture(scope="module")
def address(local: ChatTransformers) -> Iterator[str]:
    taken = listening_socket("127.0.0.1", 0)
    app = serving_app(local, name="tiny", api_key=KEY, concurrency=2)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{taken.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def served(address: str) -> ChatServed:
    return ChatServed(model="tiny", base_url=f"{address}/v1", api_key=KEY, temperature=0, max_tokens=16)


def trace(reply: Any) -> dict[str, Any]:
    return dict(reply.response_metadata["token_trace"])


def same(one: Any, other: Any) -> None:
    ours, theirs = trace(one), trace(other)
    assert ours.pop("logprobs") == pytest.approx(theirs.pop("logprobs"), abs=1e-4)
    assert ours == theirs
    assert one.content == other.content
    assert [(call["name"], call["args"]) for call in one.tool_calls] == [
        (call["name"], call["args"]) for call in other.tool_calls
    ]
    assert one.usage_metadata["total_tokens"] == other.usage_metadata["total_tokens"]
    assert one.response_metadata["finish_reason"] == other.response_metadata["finish_reason"]


@pytest.mark.parametrize("case", CASES)
def test_every_reply_is_the_local_one_token_by_token(case: str, served: ChatServed, local: ChatTransformers) -> None:
    same(CASES[case](served), CASES[case](local))


def test_a_demanded_call_is_decoded_by_the_grammar_on_the_server(served: ChatServed) -> None:
    reply = served.bind_tools([get_weather], tool_choice="any").invoke("Hello", max_tokens=400)
    assert reply.tool_calls[0]["name"] == "get_weather" if reply.tool_calls else reply.invalid_tool_calls
    assert trace(reply)["constrained"]
    assert trace(reply)["text"].startswith('<tool_call>\n{"name": "get_weather", "arguments": {"city": "')


def test_a_conversation_goes_on_from_the_sampled_tokens(served: ChatServed) -> None:
    first = served.invoke("Hello")
    second = served.invoke([HumanMessage("Hello"), first, HumanMessage("And now?")])
    said = [*trace(first)["prompt_token_ids"], *trace(first)["completion_token_ids"]]
    assert second.response_metadata["continuous"]
    assert trace(second)["prompt_token_ids"][: len(said)] == said


async def test_async_calls_and_streams_are_the_same(served: ChatServed, local: ChatTransformers) -> None:
    replies = await asyncio.gather(*(served.ainvoke("Hello") for _ in range(4)))  # two at once are served, two wait
    for reply in replies:
        same(reply, local.invoke("Hello"))
    chunks = [chunk async for chunk in served.astream("Hello")]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    same(whole, local.invoke("Hello"))


async def test_a_stream_that_is_left_gives_its_place_back(served: ChatServed) -> None:
    for _ in range(3):  # more often than the server has places
        async with aclosing(served.astream("Hello", max_tokens=1500)) as chunks:
            assert await anext(chunks)
    assert (await served.ainvoke("Hello")).content


@pytest.mark.parametrize(("named", "said"), [("c7", "c7"), ("ü" * 256, "ü" * 256), ("x" * 257, None), ("", "absent")])
def test_a_conversation_is_named_to_the_server(
    named: str, said: str | None, served: ChatServed, local: ChatTransformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[str] = []
    decode = local.engine.agenerate

    async def listen(request: Any) -> Any:
        arrived.append(request.conversation)
        return await decode(request)

    monkeypatch.setattr(local.engine, "agenerate", listen)
    served.invoke("Hello", conversation=named, max_tokens=1)
    assert len(arrived[0]) <= 256
    if said is not None:
        assert arrived == [said.replace("absent", "")]
    else:
        served.invoke("Hello", conversation=f"{named}y", max_tokens=1)
        assert arrived[0] != arrived[1]  # long names stay apart


def test_an_adapter_goes_by_its_name(served: ChatServed, local: ChatTransformers) -> None:
    same(served.invoke("Hello", model="tuned"), local.invoke("Hello", model="tuned"))
    with pytest.raises(WeightsError, match=r"Unknown model 'other'\. Known: tiny, tuned"):
        served.invoke("Hello", model="other")


def test_a_prompt_beyond_the_context_is_refused_before_it_is_sent(served: ChatServed) -> None:
    with pytest.raises(ContextOverflowError, match="the context of 'tiny' on http"):
        served.invoke("Hello " * 3000)


def test_wrong_names_and_keys_say_what_is_right(address: str) -> None:
    with pytest.raises(ServerError, match=r"Unknown model 'tony'\. Known: tiny, tuned\. These are served at"):
        ChatServed(model="tony", base_url=address, api_key=KEY).invoke("Hello")
    with pytest.raises(ServerError, match="refuses the API key"):
        ChatServed(model="tiny", base_url=address, api_key="wrong").invoke("Hello")
    with pytest.raises(ValueError, match="Wanted: an address such as"):
        ChatServed(model="tiny", base_url="localhost:8000")


def test_another_models_tokenizer_is_noticed(address: str, tmp_path: Path) -> None:
    other = tiny_qwen(tmp_path / "other")
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = dict(zip(reversed(list(vocabulary)), vocabulary.values(), strict=True))
    file.write_text(json.dumps(tokenizer))
    model = ChatServed(model="tiny", base_url=address, api_key=KEY, tokenizer=other, temperature=0, max_tokens=16)
    with pytest.raises(ServerError, match="they are of different models"):
        model.invoke("Hello")


async def test_rollouts_are_collected_with_a_trainable_tape(served: ChatServed, tmp_path: Path) -> None:
    tasks = playground_tasks(seed=0, n=2, category="base")
    done = await collect(tasks, served, Playground, out=tmp_path, concurrency=2, max_steps=2)
    rollouts = list(read_rollouts(done.path))
    assert len(rollouts) == 2
    for rollout in rollouts:
        assert rollout.error is None
        assert rollout.tape is not None
        assert not rollout.tape.broken
        assert rollout.tape.untraced == 0
        assert rollout.tape.sampled_tokens == rollout.usage.output_tokens > 0


def test_its_configuration_travels_without_the_key(served: ChatServed) -> None:
    again = pickle.loads(pickle.dumps(served))
    assert again == served
    assert isinstance(again.api_key, SecretStr)
    assert KEY not in repr(served)
    assert KEY not in str(served.to_json())
    assert KEY not in served._get_llm_string()
    assert served.profile["structured_output"]


def test_tool_results_go_back_in_the_prompt(served: ChatServed, local: ChatTransformers) -> None:
    asked = streamed(served.bind_tools([get_weather]), "What is the weather like?")
    history = [HumanMessage("What is the weather like?"), asked, ToolMessage("sunny", tool_call_id="1")]
    same(served.bind_tools([get_weather]).invoke(history), local.bind_tools([get_weather]).invoke(history))
