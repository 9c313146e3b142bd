"""Weights packed in fp16 and computed with in fp32: nearly fp32's replies, adapters included, and no training."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envtune_agents import ChatTransformers
from envtune_agents.engine import Engine, GenerationRequest
from envtune_agents.errors import WeightsError
from envtune_agents.testing import random_adapter
from envtune_agents.weights import load_weights

torch = pytest.importorskip("torch")
half = pytest.importorskip("envtune_agents.weights.half")
pytestmark = pytest.mark.skipif(not half.available(), reason="torch was built without FBGEMM")

ROUNDING = 2**-9
"""Largest difference of logits to fp32's, as a share of the largest: four roundings of a weight to fp16."""


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(input_ids=torch.arange(40).reshape(2, 20)).logits


def test_logits_are_those_of_fp32_but_for_the_rounding_of_weights(folder: Path) -> None:
    packed = load_weights(folder, "w16a32", device_map="cpu")
    exact = logits(load_weights(folder, "fp32", device_map="cpu").model)
    assert packed.precision == "w16a32"
    assert logits(packed.model).dtype == torch.float32
    assert 0 < (logits(packed.model) - exact).abs().max() < ROUNDING * exact.abs().max()


def test_a_checkpoint_in_bf16_loses_nothing(folder: Path, tmp_path: Path) -> None:
    """Every bf16 number of ordinary size is an fp16 number."""
    weights = load_weights(folder, "bf16", device_map="cpu")
    weights.model.save_pretrained(tmp_path)
    weights.tokenizer.save_pretrained(tmp_path)
    exact = logits(load_weights(tmp_path, "fp32", device_map="cpu").model)
    packed = logits(load_weights(tmp_path, "w16a32", device_map="cpu").model)
    assert (packed - exact).abs().max() < 1e-5 * exact.abs().max()


def test_replies_together_are_those_alone(folder: Path) -> None:
    weights = replace(load_weights(folder, "w16a32", device_map="cpu"), end_token_ids=())
    engine = Engine(lambda: weights)
    requests = [GenerationRequest(tuple(range(1 + i, 40 + 3 * i)), max_new_tokens=12) for i in range(6)]

    async def together() -> list[tuple[int, ...]]:
        return [reply.token_ids for reply in await asyncio.gather(*(engine.agenerate(r) for r in requests))]

    replies = asyncio.run(together())
    assert engine.batches
    engine.clear_cache()
    assert replies == [engine.generate(request).token_ids for request in requests]
    engine.close()


def test_an_adapter_works_on_packed_weights(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    adapter = random_adapter(tmp_path, folder)
    found = {}
    for precision in ("fp32", "w16a32"):
        model = ChatTransformers(
            model=str(folder),
            precision=precision,
            device_map="cpu",
            temperature=0,
            max_tokens=1,
            adapters={"a": str(adapter)},
        )
        replies = [model.invoke("Hello"), model.invoke("Hello", model="a")]
        found[precision] = [reply.response_metadata["token_trace"]["logprobs"][0] for reply in replies]
    assert found["w16a32"] == pytest.approx(found["fp32"], abs=0.02)
    assert abs(found["fp32"][0] - found["fp32"][1]) > 0.02


def test_what_it_is_not_for_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_weights(folder, "w16a32", device_map="cpu").model
    embeddings = torch.zeros(1, 3, model.config.hidden_size, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be trained through"):
        model(inputs_embeds=embeddings)
    with pytest.raises(WeightsError, match="is for a CPU"):
        load_weights(folder, "w16a32", device_map="auto")
    monkeypatch.setattr(half, "available", lambda: False)
    with pytest.raises(WeightsError, match="needs torch with FBGEMM"):
        load_weights(folder, "w16a32", device_map="cpu")
