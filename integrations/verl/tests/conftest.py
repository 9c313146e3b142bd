"""One tiny checkpoint for all tests, and what can be tested without verl."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from envtune_agents.testing import tiny_qwen

collect_ignore = [] if find_spec("verl") else ["test_training.py", "test_episodes.py", "test_verl.py"]
"""Without verl only what a run is planned with is tested; `make integration-verl` tests everything."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("tiny"))
