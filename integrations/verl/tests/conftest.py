"""One tiny checkpoint for all tests, with what verl is given of it, and what can be tested without verl."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.testing import tiny_qwen
from envtune_verl import EpisodeTerms, VerlSettings, stage_overrides, write_dataset
from envtune_verl.overrides import StageFiles, agent_loop_entry

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports test files by their path alone
from verl_batches import STAGE, composed, tasks_of

collect_ignore_glob = [] if find_spec("verl") else ["test_training.py", "test_episodes.py", "test_verl*.py"]
"""Without verl only what a run is planned with is tested; `make integration-verl` tests everything."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="session")
def files(model: Path, tmp_path_factory: pytest.TempPathFactory) -> StageFiles:
    folder = tmp_path_factory.mktemp("it's a run, 'x' = 1")
    files = StageFiles(
        model, folder / "train.parquet", folder / "validation.parquet", folder / "agent_loop.yaml", folder / "saved"
    )
    write_dataset(files.train, "playground", "train", EpisodeTerms("s", 3), tasks=tasks_of("base", "miss_param"))
    terms = EpisodeTerms("s", validation=True)
    write_dataset(files.validation, "playground", "train", terms, tasks=tasks_of("base", "miss_func", count=2))
    files.agent_loop.write_text(agent_loop_entry(VerlSettings(max_tokens=512, max_steps_per_turn=7, seed=5)))
    return files


@pytest.fixture(scope="session")
def config(files: StageFiles) -> Any:
    return composed(stage_overrides(STAGE, VerlSettings(workers=2), files))
