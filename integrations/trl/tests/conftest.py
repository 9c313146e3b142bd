"""One tiny checkpoint for all tests; and lets them import `tiny_training`, as pytest imports files by their path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from envtune_agents.testing import tiny_qwen

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("tiny"))
