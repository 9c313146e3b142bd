"""Serving: our own server in this process and as a real subprocess, and the commands of the foreign ones."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from envtune_agents import ChatTransformers
from envtune_agents.errors import ServerError
from envtune_agents.serve import serving_app
from envtune_agents.serve.ports import check_port
from envtune_agents.testing import TaughtModel

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
        },
    }
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
HELLO = [{"role": "user", "content": "a secret question"}]


@pytest.fixture(scope="module")
def model(folder: Path) -> ChatTransformers:
    return ChatTransformers(model=folder, precision="fp32", temperature=0, max_tokens=8)


def client(app: Any, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", headers=headers)


def taught(folder: Path, answer: str) -> Any:
    """A server whose model says `answer`."""
    return serving_app(TaughtModel(model=folder, precision="fp32", answer=lambda prompt: answer), name="tiny")


async def streamed(app: Any, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with client(app) as http:
        answer = await http.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    assert answer.status_code == 200
    *lines, end = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert end == "[DONE]"
    return [json.loads(line) for line in lines]


async def test_a_chat_reply_is_the_models_own(model: ChatTransformers) -> None:
    own = model.invoke("a secret question")
    body = {"messages": HELLO, "logprobs": True, "return_token_ids": True}
    async with client(serving_app(model, name="tiny")) as http:
        answer = (await http.post("/v1/chat/completions", json=body)).json()
    choice, trace = answer["choices"][0], own.response_metadata["token_trace"]
    assert choice["message"] == {"role": "assistant", "content": own.content}
    assert choice["finish_reason"] == "length"
    assert choice["token_ids"] == trace["completion_token_ids"]
    assert [token["logprob"] for token in choice["logprobs"]["content"]] == pytest.approx(trace["logprobs"], abs=1e-5)
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["prompt_tokens"] == len(trace["prompt_token_ids"])
    chunks = await streamed(serving_app(model, name="tiny"), "/v1/chat/completions", body)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == own.content
    assert chunks[-2]["choices"][0]["token_ids"] == trace["completion_token_ids"]
    assert chunks[-1]["usage"]["total_tokens"] == answer["usage"]["total_tokens"]


async def test_tool_calls_whole_and_streamed(folder: Path) -> None:
    app = taught(folder, f"Let me see.\n{CALL}\n{CALL}")
    body = {"messages": HELLO, "tools": TOOLS}
    async with client(app) as http:
        answer = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    assert "Let me see." in answer["message"]["content"]
    assert [call["function"] for call in answer["message"]["tool_calls"]] == [
        {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    ] * 2
    chunks = await streamed(app, "/v1/chat/completions", body)
    calls: dict[int, dict[str, str]] = {}
    for chunk in chunks:
        for part in chunk["choices"][0]["delta"].get("tool_calls", []) if chunk["choices"] else []:
            call = calls.setdefault(part["index"], {"id": part["id"], "name": part["function"]["name"], "args": ""})
            call["args"] += part["function"]["arguments"]
    assert [(call["name"], json.loads(call["args"])) for call in calls.values()] == [
        ("get_weather", {"city": "Rome"})
    ] * 2
    assert len({call["id"] for call in calls.values()}) == 2
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_malformed_call_is_content_and_never_a_call(folder: Path) -> None:
    app = taught(folder, 'Hm. <tool_call>\n{"name": "get_weather", "arguments": {"city"\n</tool_call>')
    body = {"messages": HELLO, "tools": TOOLS}
    async with client(app) as http:
        answer = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert "tool_calls" not in answer["message"]
    assert '<tool_call>\n{"name": "get_weather"' in answer["message"]["content"]
    chunks = await streamed(app, "/v1/chat/completions", body)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert not any("tool_calls" in delta for delta in deltas)
    assert '<tool_call>\n{"name": "get_weather"' in "".join(delta.get("content", "") for delta in deltas)


async def test_a_demanded_call_and_a_demanded_form(model: ChatTransformers) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    async with client(serving_app(model, name="tiny")) as http:
        body = {"messages": HELLO, "tools": TOOLS, "tool_choice": "required", "max_tokens": 64}
        called = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]
        body = {"messages": HELLO, "response_format": form, "max_completion_tokens": 64}
        formed = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]
    assert json.loads(called["tool_calls"][0]["function"]["arguments"])["city"] in ("Paris", "Rome")
    assert called["content"] is None
    assert isinstance(json.loads(formed["content"])["ok"], bool)


async def test_a_whole_conversation_comes_in_openais_form(folder: Path) -> None:
    seen: list[str] = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return "It is sunny."

    arguments = '{"city": "Rome"}'
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    app = serving_app(TaughtModel(model=folder, precision="fp32", answer=answer), name="tiny")
    async with client(app) as http:
        reply = await http.post("/v1/chat/completions", json={"messages": messages, "tools": TOOLS})
    assert reply.json()["choices"][0]["message"]["content"] == "It is sunny."
    assert "Be short." in seen[0]
    assert '{"name": "get_weather", "arguments": {"city": "Rome"}}' in seen[0]
    assert "<tool_response>\nsunny\n</tool_response>" in seen[0]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("chat/completions", {"messages": []}, 400, "at least one message"),
        ("chat/completions", {"messages": [{"role": "wizard", "content": "x"}]}, 400, "cannot be read"),
        ("chat/completions", {"messages": HELLO, "n": 2}, 400, "n=2 is not supported"),
        ("chat/completions", {"messages": HELLO, "temperature": -1}, 400, "0 or more"),
        ("chat/completions", {"messages": HELLO, "stop": 5}, 400, "a list of texts"),
        ("chat/completions", {"messages": HELLO, "tool_choice": "required"}, 400, "no tools are bound"),
        ("chat/completions", {"messages": HELLO, "tools": [{"type": "function"}]}, 400, "has no name"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x " * 3000}]}, 400, "the context of"),
        ("chat/completions", {"messages": HELLO, "model": "gpt"}, 404, "Unknown model 'gpt'. Known: tiny, tuned."),
        ("chat/completions", [1], 400, "not a JSON object"),
        ("completions", {"prompt": []}, 400, "at least one token"),
        ("completions", {"prompt": ["a", "b"]}, 400, "one list of token ids"),
        ("completions", {"prompt": [999_999]}, 400, "a token id outside"),
        ("completions", {"prompt": [1], "max_tokens": "many"}, 400, "wrong type"),
        ("completions", {"prompt": [1], "logprobs": 5}, 400, "logprobs should be 0"),
        ("completions", {"prompt": [1], "stop_token_ids": [3]}, 400, "do not end a reply"),
        ("completions", {"prompt": [1], "structured_outputs": {"regex": "a"}}, 400, "nothing else is known"),
        ("completions", {"prompt": [1], "structured_outputs": {"grammar": "start: ("}}, 400, "refuses the grammar"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_requests_get_a_sentence(
    path: str, body: Any, status: int, words: str, stream: bool, folder: Path
) -> None:
    model = ChatTransformers(
        model=folder, precision="fp32", temperature=0, max_tokens=8, adapters={"tuned": str(folder / "no adapter")}
    )
    asked = {**body, "stream": True} if stream and isinstance(body, dict) else body
    async with client(serving_app(model, name="tiny")) as http:
        answer = await http.post(f"/v1/{path}", json=asked)
        assert (await http.get("/health")).json()["running"] == 0
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


async def test_not_json_a_wrong_key_and_a_full_house(model: ChatTransformers) -> None:
    app = serving_app(model, name="tiny", api_key="right", concurrency=1)
    async with client(app) as stranger:
        assert (await stranger.get("/health")).status_code == 200
        assert (await stranger.get("/v1/models")).status_code == 401
    async with client(app, authorization="Bearer right") as http:
        assert (
            (await http.post("/v1/completions", content=b"{"))
            .json()["error"]["message"]
            .startswith("The request is not")
        )
        body = {"prompt": [1, 2], "max_tokens": 200}
        answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(3)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200, 503, 503]
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)
        assert (await http.post("/v1/completions", json=body)).status_code == 200


async def test_requests_are_logged_without_their_text(
    model: ChatTransformers, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="envtune_agents.serve"):
        await streamed(serving_app(model, name="tiny"), "/v1/chat/completions", {"messages": HELLO})
        async with client(serving_app(model, name="tiny")) as http:
            await http.post("/v1/chat/completions", json={"messages": HELLO, "n": 3})
    good, bad = [record.facts for record in caplog.records if record.name == "envtune_agents.serve"]  # type: ignore[attr-defined]
    assert (good["status"], good["stream"], good["completion_tokens"], good["model"]) == (200, True, 8, "tiny")
    assert (bad["status"], bad["error"]) == (400, "Refusal")
    assert "secret" not in json.dumps([good, bad])


async def test_adapters_are_models(folder: Path) -> None:
    model = ChatTransformers(model=folder, precision="fp32", adapters={"tuned": "/an/adapter"})
    async with client(serving_app(model, name="tiny")) as http:
        cards = (await http.get("/v1/models")).json()["data"]
    shown = [(card["id"], card["parent"], card["root"], card["max_model_len"]) for card in cards]
    assert shown == [("tiny", None, str(folder), 2048), ("tuned", "tiny", "/an/adapter", 2048)]


@pytest.fixture
def running() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`envtune serve` as a process of its own, and its address."""
    command = [sys.executable, "-m", "envtune_agents", "serve", "smollm2", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--precision", "fp32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert process.stdout
    first = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", first)
    assert found, process.communicate()
    yield process, found[0]
    process.kill()
    process.wait()


@pytest.mark.model
def test_the_command_serves_and_ends_gracefully(running: tuple[subprocess.Popen[str], str]) -> None:
    process, address = running
    assert httpx.get(f"{address}/health").json()["status"] == "ok"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"messages": question, "max_tokens": 8, "model": "smollm2", "temperature": 0}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120).json()
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    port = int(address.rpartition(":")[2])
    with pytest.raises(ServerError, match=rf"Port {port} of 127\.0\.0\.1 is in use.*--port {port + 1}"):
        check_port("127.0.0.1", port)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert process.stdout
    assert process.stderr
    shown, logged = process.stdout.read(), process.stderr.read()  # `communicate` loses what `readline` read ahead
    assert f'model = ChatServed(model="smollm2", base_url="{address}")' in shown
    (line,) = logged.strip().splitlines()
    told = json.loads(line)
    assert (told["event"], told["status"], told["completion_tokens"]) == (
        "request",
        200,
        answer["usage"]["completion_tokens"],
    )
