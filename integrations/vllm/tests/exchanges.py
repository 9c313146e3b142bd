"""Exchanges with a real server: recorded by a proxy in front of it, replayed by a server that answers as it did.

Both are real HTTP servers on this machine. `make integration-vllm` records anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import httpx
import torch
import transformers
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool
from pydantic import BaseModel
from safetensors.torch import save_file

from envtune_agents.testing import tiny_qwen

DATA = Path(__file__).parent / "data"
Answer = Callable[[str, str, bytes, "Sender"], None]


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"sunny in {city}"


class Trip(BaseModel):
    """A trip."""

    days: Literal[2, 7]
    class_of_travel: bool


def wider_tiny_qwen(folder: Path) -> Path:
    """The tiny checkpoint with heads of 32 instead of 16, the smallest that vLLM's CPU attention takes; the same seed
    gives the same weights."""
    tiny_qwen(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.head_dim = 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Qwen3ForCausalLM(config)
    config.save_pretrained(folder)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def streamed(chat: Any, text: str, **options: Any) -> AIMessageChunk:
    """The chunks of one reply, added up."""
    chunks = list(chat.stream(text, **options))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


CASES: dict[str, Callable[[Any], AIMessage]] = {
    "plain": lambda model: model.invoke("Say hello."),
    "stream": lambda model: streamed(model, "What is the capital of France?"),
    "stop": lambda model: streamed(model, "Count to ten.", stop=["e"]),
    "with tools": lambda model: model.bind_tools([get_weather]).invoke("What is the weather like in Paris?"),
    "sampled": lambda model: model.invoke("Tell me more.", temperature=0.8, seed=7),
    "a demanded answer": lambda model: (
        model.model_copy(update={"max_tokens": 64})
        .with_structured_output(Trip, method="json_schema", include_raw=True)
        .invoke("Plan a trip.")["raw"]
    ),
}
"""What is asked of a real server and of its recording."""


class Sender(BaseHTTPRequestHandler):
    """One request; `server.answer` decides what comes of it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.answer("GET", self.path, b"", self)  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.answer("POST", self.path, body, self)  # type: ignore[attr-defined]

    def send(self, status: int, content: str | bytes, kind: str = "application/json", **headers: str) -> None:
        """A whole answer."""
        data = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def local_server(answer: Answer) -> Iterator[str]:
    """The address of a real HTTP server that answers by `answer(method, path, body, sender)`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sender)
    server.daemon_threads = True
    server.answer = answer  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _key(method: str, path: str, body: bytes) -> str:
    return f"{method} {path} {json.dumps(json.loads(body), sort_keys=True) if body else ''}"


@contextmanager
def recorded(upstream: str, file: Path) -> Iterator[str]:
    """A proxy in front of `upstream` that writes every exchange to `file` in the end."""
    exchanges: list[dict[str, Any]] = []

    def forward(method: str, path: str, body: bytes, sender: Sender) -> None:
        headers = {"content-type": "application/json"}
        answer = httpx.request(method, upstream + path, content=body, headers=headers, timeout=600)
        kind = answer.headers["content-type"]
        asked = json.loads(body) if body else None
        exchanges.append(
            {
                "method": method,
                "path": path,
                "body": asked,
                "status": answer.status_code,
                "kind": kind,
                "text": answer.text,
            }
        )
        sender.send(answer.status_code, answer.content, kind)

    with local_server(forward) as address:
        yield address
    file.write_text(json.dumps(exchanges, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def replayed(file: Path) -> Iterator[str]:
    """A server that answers as the recorded one did; 500 for what was not recorded."""
    known = {}
    for exchange in json.loads(file.read_text()):
        body = json.dumps(exchange["body"]).encode() if exchange["body"] is not None else b""
        known[_key(exchange["method"], exchange["path"], body)] = exchange

    def answer(method: str, path: str, body: bytes, sender: Sender) -> None:
        found = known.get(_key(method, path, body))
        if found is None:
            sender.send(400, json.dumps({"error": {"message": f"not recorded: {_key(method, path, body)}"}}))
        else:
            sender.send(found["status"], found["text"], found["kind"])

    with local_server(answer) as address:
        yield address
