"""One taught checkpoint for all tests of the example, and the example itself in a folder that they may write to."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from pupil import taught_checkpoint  # noqa: E402
from server import Server  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def example(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns(".langgraph_api", "__pycache__", "tests")
    return Path(shutil.copytree(HERE.parent, tmp_path / "deploy", ignore=ignored))


@pytest.fixture
def start(example: Path, checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of the example; whatever happens, no process outlives the test."""
    servers: list[Server] = []

    def started(model: Any = None, **variables: str) -> Server:
        log = tmp_path / f"server-{len(servers)}.log"
        servers.append(Server(example, model or checkpoint, log, **variables))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()
