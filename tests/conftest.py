"""What the tests share: no network, the command line in this process, a tiny checkpoint, the small real model."""

from __future__ import annotations

import io
import ipaddress
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from envtune_agents.engine import Engine
from envtune_agents.testing.tiny import tiny_qwen
from envtune_agents.weights import Weights, load_weights

_connect = socket.socket.connect


def _connect_here(self: socket.socket, address: Any) -> None:
    """`socket.connect` to this machine only: everything is tested as it must work, offline."""
    if isinstance(address, tuple) and not _is_here(str(address[0])):
        raise OSError(f"A test asked the network for {address[0]}; tests run offline.")
    _connect(self, address)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


socket.socket.connect = _connect_here  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def small_weights() -> Weights:
    """SmolLM2-135M-Instruct in fp32. Nobody changes it: adapters go on a model of their own."""
    pytest.importorskip("torch")
    return load_weights("smollm2", "fp32")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights. Nobody changes it."""
    return tiny_qwen(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    """An engine over the tiny checkpoint, whose replies never end early."""
    from engine_asking import endless_engine

    engine = endless_engine(folder)
    yield engine
    engine.close()


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Envtune = Callable[..., Ended]


@pytest.fixture
def envtune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Envtune:
    """The command `envtune`, run to its end in this process: imports cost once, not once for each test."""

    def run(*arguments: object, typed: str = "") -> Ended:
        from envtune_agents.cli import main

        monkeypatch.setattr(sys, "argv", ["envtune", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return run
