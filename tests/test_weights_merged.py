"""A LoRA adapter's folder as a model: the base with the adapter merged in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from envtune_agents.errors import WeightsError
from envtune_agents.testing import random_adapter, tiny_qwen
from envtune_agents.weights import Weights, load_weights
from envtune_agents.weights.source import find_weights


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return random_adapter(tmp_path / "adapter", base)


def logits(weights: Weights) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = weights.model(torch.tensor([[5, 6, 7, 8]])).logits
    return found


def rename_base(adapter: Path, base: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))


def test_the_merged_model_computes_what_the_adapter_on_its_base_does(base: Path, adapter: Path) -> None:
    plain = load_weights(base, "fp32")
    before = logits(plain)
    plain.model.load_adapter(str(adapter))
    merged = load_weights(adapter, "fp32")
    torch.testing.assert_close(logits(merged), logits(plain))
    assert not torch.allclose(logits(merged), before)
    assert merged.name == str(adapter)
    assert merged.context_length == plain.context_length
    assert not any("lora" in name for name, _ in merged.model.named_parameters())


def test_the_base_is_found_beside_the_adapter_first(base: Path, adapter: Path) -> None:
    shutil.copytree(base, adapter.parent / "moved")
    rename_base(adapter, os.path.join("..", "moved"))
    source = find_weights(adapter)
    assert source.folder == (adapter.parent / "moved").resolve()
    assert {file.name for file in source.files} >= {"adapter_model.safetensors", "model.safetensors", "config.json"}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (None, "does not say which model it belongs to"),
        (["a"], "does not say which model it belongs to"),
        ("./nowhere", "There is no checkpoint at"),
    ],
)
def test_an_adapter_without_its_base_is_an_error(adapter: Path, named: object, message: str) -> None:
    rename_base(adapter, named)
    with pytest.raises(WeightsError, match=message):
        find_weights(adapter)


def test_a_broken_configuration_is_an_error(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        find_weights(adapter)


@pytest.mark.parametrize("change", [lambda name, t: (name, t[:, :3]), lambda name, t: (f"other.{name}", t)])
def test_an_adapter_of_another_model_is_an_error(adapter: Path, change: Any) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({n: t.contiguous() for n, t in (change(*item) for item in load_file(file).items())}, file)
    with pytest.raises(WeightsError, match="does not fit its base model"):
        load_weights(adapter, "fp32")


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_quantised_weights_take_no_adapter_in(adapter: Path, precision: str) -> None:
    with pytest.raises(WeightsError, match=r"adapters=\{name: folder\}"):
        load_weights(adapter, precision)
