"""Servers that misbehave, over real HTTP: a sentence that helps, a failure in the record, and nothing lost."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exchanges import Sender, local_server

from envtune_agents import Playground, collect, playground_tasks, read_rollouts
from envtune_agents.errors import ConstraintError, ContextOverflowError, ServerError
from envtune_agents.testing import tiny_qwen
from envtune_agents.types import StopReason
from envtune_vllm import ChatServed
from envtune_vllm import http as served_http

MODELS = {"data": [{"id": "tiny", "owned_by": "vllm", "root": "/nowhere", "max_model_len": 2048}]}
GOOD = {
    "choices": [
        {
            "text": "ab",
            "finish_reason": "length",
            "token_ids": [64, 65],
            "logprobs": {"token_logprobs": [-0.5, -0.25]},
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}

Complete = Callable[[Sender], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_http, "FIRST_PAUSE_S", 0.001)


def serving(complete: Complete) -> Any:
    """A server of the tiny model that answers completions by `complete`."""

    def answer(method: str, path: str, body: bytes, sender: Sender) -> None:
        if path == "/v1/models":
            sender.send(200, json.dumps(MODELS))
        else:
            complete(sender)

    return local_server(answer)


def chat(address: str, folder: Path, **settings: Any) -> ChatServed:
    return ChatServed(
        model="tiny",
        base_url=address,
        tokenizer=folder,
        **{"temperature": 0, "max_tokens": 2, "timeout_s": 60, **settings},
    )


def problem(status: int, message: str) -> Complete:
    return lambda sender: sender.send(status, json.dumps({"error": {"message": message, "type": "x"}}))


def cut_off(sender: Sender) -> None:
    """Half a stream, then a closed connection."""
    chunk = {"choices": [{"text": "a", "token_ids": [64], "logprobs": {"token_logprobs": [-0.5]}}]}
    sender.send_response(200)
    sender.send_header("content-type", "text/event-stream")
    sender.send_header("transfer-encoding", "chunked")
    sender.end_headers()
    line = f"data: {json.dumps(chunk)}\n\n".encode()
    sender.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
    sender.wfile.flush()
    sender.close_connection = True


def test_a_busy_server_is_asked_again(folder: Path) -> None:
    answers = [problem(503, "busy"), problem(429, "slow down"), lambda sender: sender.send(200, json.dumps(GOOD))]
    with serving(lambda sender: answers.pop(0)(sender)) as address:
        assert chat(address, folder).invoke("Hello").content == "ab"
    assert answers == []


@pytest.mark.parametrize(
    ("complete", "error", "words"),
    [
        (problem(500, "CUDA error"), ServerError, "answered 500: CUDA error"),
        (
            problem(404, "The model `tiny` does not exist."),
            ServerError,
            "answered 404: The model `tiny` does not exist",
        ),
        (problem(400, "This model's maximum context length is 8"), ContextOverflowError, "maximum context length"),
        (problem(400, "Grammar error: unexpected"), ConstraintError, "grammar backend must be llguidance"),
        (lambda sender: sender.send(200, "<html>Login</html>", "text/html"), ServerError, "Is base_url right.*"),
        (lambda sender: sender.send(502, "<html>Bad Gateway</html>", "text/html"), ServerError, "502: <html>Bad"),
        (lambda sender: sender.send(200, "[1]"), ServerError, "not a reply of a model server"),
        (lambda sender: sender.send(200, "{}"), ServerError, "ended its answer before the reply was finished"),
        (lambda sender: sender.connection.shutdown(socket.SHUT_RDWR), ServerError, "dropped the connection"),
    ],
)
def test_what_goes_wrong_is_said(complete: Complete, error: type[Exception], words: str, folder: Path) -> None:
    with serving(complete) as address:
        model = chat(address, folder, max_retries=1)
        with pytest.raises(error, match=words):
            model.invoke("Hello")
        with pytest.raises(error, match=words):
            asyncio.run(model.ainvoke("Hello"))
        with pytest.raises(error, match=words):
            list(model.stream("Hello"))


def test_a_stream_that_breaks_off_is_no_reply(folder: Path) -> None:
    with serving(cut_off) as address:
        model = chat(address, folder)
        heard: list[str] = []
        with pytest.raises(ServerError, match="in the middle of a reply"):
            heard.extend(str(chunk.content) for chunk in model.stream("Hello"))
        assert "".join(heard) == "a"


def test_an_error_within_a_stream_is_raised(folder: Path) -> None:
    def broken(sender: Sender) -> None:
        sender.send(200, 'data: {"error": {"message": "engine died"}}\n\ndata: [DONE]\n\n', "text/event-stream")

    with serving(broken) as address, pytest.raises(ServerError, match="broke off: engine died"):
        list(chat(address, folder).stream("Hello"))


def test_a_server_that_hangs_is_left_after_the_timeout(folder: Path) -> None:
    over = threading.Event()
    with serving(lambda sender: over.wait(60)) as address:
        model = chat(address, folder, timeout_s=0.5)
        with pytest.raises(ServerError, match=r"sent nothing for 0\.5 seconds"):
            model.invoke("Hello")
        over.set()


async def test_a_cancelled_call_closes_its_connection(folder: Path) -> None:
    asked, closed = threading.Event(), threading.Event()

    def hang(sender: Sender) -> None:
        asked.set()
        if sender.connection.recv(1) == b"":  # the client closed
            closed.set()
        sender.close_connection = True

    with serving(hang) as address:
        call = asyncio.ensure_future(chat(address, folder).ainvoke("Hello"))
        assert await asyncio.to_thread(asked.wait, 60)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(closed.wait, 60)


def test_nobody_there(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        ServerError, match=rf"No model server answers at http://127\.0\.0\.1:{port}.*envtune serve MODEL"
    ):
        chat(f"http://127.0.0.1:{port}", folder, max_retries=1).invoke("Hello")


def test_what_is_no_model_server_is_said() -> None:
    with (
        local_server(lambda method, path, body, sender: sender.send(200, "<html>Hi</html>", "text/html")) as address,
        pytest.raises(ServerError, match="not a reply of a model server"),
    ):
        ChatServed(model="tiny", base_url=address).invoke("Hello")


@pytest.mark.parametrize("missing", ["token_ids", "logprobs"])
async def test_replies_without_tokens_make_records_for_sft_only(
    missing: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choice = {name: value for name, value in GOOD["choices"][0].items() if name != missing}
    with serving(lambda sender: sender.send(200, json.dumps({**GOOD, "choices": [choice]}))) as address:
        model = chat(address, folder)
        with caplog.at_level(logging.WARNING):
            done = await collect(playground_tasks(seed=0, n=1), model, Playground, out=tmp_path)
        (rollout,) = read_rollouts(done.path)
    assert caplog.text.count("good for SFT on text only") == 1
    assert rollout.error is None
    assert rollout.turns[0].steps[0].reply == "ab"
    assert rollout.usage.output_tokens == 2 * len(rollout.turns)
    assert rollout.tape is not None
    assert rollout.tape.sampled_tokens == 0
    assert "usable for SFT on text only" in rollout.tape.note


async def test_a_dead_server_is_a_failure_in_the_record(folder: Path, tmp_path: Path) -> None:
    with serving(problem(500, "CUDA error")) as address:
        model = chat(address, folder, max_retries=0)
        done = await collect(playground_tasks(seed=0, n=2), model, Playground, out=tmp_path)
        rollouts = list(read_rollouts(done.path))
    assert [rollout.stop_reason for rollout in rollouts] == [StopReason.ERROR] * 2
    assert all("answered 500: CUDA error" in str(rollout.error) for rollout in rollouts)
