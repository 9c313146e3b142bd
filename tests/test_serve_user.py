"""A request's `user` names its conversation: it reaches the engine, which takes turns by it, or is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from envtune_agents import ChatTransformers
from envtune_agents.engine import Engine
from envtune_agents.serve import serving_app
from envtune_agents.serve.ports import listening_socket

uvicorn = pytest.importorskip("uvicorn")

BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    "completions": {"prompt": [1, 2], "max_tokens": 2},
}


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A server on a port of its own."""
    app = serving_app(ChatTransformers(model=folder, precision="fp32", temperature=0), name="tiny")
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with listening_socket("127.0.0.1", 0) as taken:
        taken.listen()  # who comes before the server waits for it
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def conversations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The conversation of each request that comes to an engine."""
    seen: list[str] = []
    submit = Engine._submit

    def noted(engine: Engine, request: Any, *rest: Any, **options: Any) -> Any:
        seen.append(request.conversation)
        return submit(engine, request, *rest, **options)

    monkeypatch.setattr(Engine, "_submit", noted)
    return seen


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_the_user_is_the_engines_conversation(path: str, stream: bool, address: str, conversations: list[str]) -> None:
    for named in ({"user": "Ada's"}, {"user": "x" * 256}, {"user": None}, {}):
        answer = httpx.post(f"{address}/v1/{path}", json={**BODIES[path], **named, "stream": stream}, timeout=60)
        assert answer.status_code == 200
    assert conversations == ["Ada's", "x" * 256, "", ""]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("user", "got"), [(5, "of the type int"), ({"id": "a"}, "of the type dict"), ("x" * 257, "257 characters long")]
)
@pytest.mark.parametrize("path", BODIES)
def test_another_kind_of_user_is_refused(
    path: str, user: Any, got: str, stream: bool, address: str, conversations: list[str]
) -> None:
    answer = httpx.post(f"{address}/v1/{path}", json={**BODIES[path], "user": user, "stream": stream}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == f"user is {got}. Wanted: a text of at most 256 characters."
    assert conversations == []
