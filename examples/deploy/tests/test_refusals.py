"""What cannot work is said in one sentence before anything is served."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from server import PATIENCE_S, Server

Start = Callable[..., Server]


def refusal(server: Server) -> str:
    assert server.process.wait(PATIENCE_S) == 2
    text = server.log.read_text()
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"model": "./nothing/here"}, ("error: There is no checkpoint at '", "nothing/here'", "Accepted:")),
        ({"model": "no such model"}, ("'no such model' is neither a path nor a hub id",)),
        ({"ENVTUNE_HINT_LEVEL": "5"}, ("ENVTUNE_HINT_LEVEL is '5'. Wanted: a whole number from 0 to 3.",)),
        ({"ENVTUNE_CONCURRENCY": "many"}, ("ENVTUNE_CONCURRENCY is 'many'",)),
        ({"HOST": "203.0.113.7"}, ("Cannot listen on 203.0.113.7:",)),
    ],
)
def test_a_setting_that_cannot_be_meant(start: Start, variables: dict[str, str], words: tuple[str, ...]) -> None:
    text = refusal(start(**variables))
    assert all(word in text for word in words), text


def test_a_port_in_use(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"Cannot listen on 127.0.0.1:{port}" in refusal(start(PORT=str(port)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(start: Start, example: Path) -> None:
    example.chmod(0o555)
    assert "Cannot write to" in refusal(start())


def test_a_file_where_the_state_should_be(start: Start, example: Path) -> None:
    (example / ".langgraph_api").write_text("")
    assert "The server keeps its threads there" in refusal(start())


def test_a_model_that_cannot_be_loaded_ends_the_start(start: Start, checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / "broken").mkdir(exist_ok=True)
        data = file.read_bytes()
        (tmp_path / "broken" / file.name).write_bytes(data[:200] if file.suffix == ".safetensors" else data)
    server = start(tmp_path / "broken")
    assert server.process.wait(PATIENCE_S) != 0
    assert "the model cannot be loaded" in server.log.read_text()
