"""fp32 weights in the order that a CPU multiplies them in: fp32's replies, adapters included, and no training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_asking import endless_engine, reference, together, tokens

from envtune_agents import ChatTransformers
from envtune_agents.engine import Engine, GenerationRequest
from envtune_agents.testing import random_adapter
from envtune_agents.weights import load_weights

torch = pytest.importorskip("torch")
packed = pytest.importorskip("envtune_agents.weights.packed")
pytestmark = pytest.mark.skipif(not packed.can_pack_full(), reason="torch was built without oneDNN")


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(input_ids=torch.arange(40).reshape(2, 20)).logits


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_plain_layers(bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40, bias=bias)
    turned = packed.FullLinear(layer)
    with torch.inference_mode():
        for shape in ((24,), (1, 24), (5, 24), (2, 3, 24), (1, 0, 24), (300, 24)):
            rows = torch.randn(shape)
            torch.testing.assert_close(turned(rows), layer(rows))


def test_logits_are_those_of_plain_fp32(folder: Path) -> None:
    weights = load_weights(folder, "fp32", device_map="cpu", packed=True)
    plain = load_weights(folder, "fp32", device_map="cpu").model
    kinds = {type(layer) for layer in weights.model.modules()}
    assert weights.precision == "fp32"
    assert packed.FullLinear in kinds
    assert torch.nn.Linear not in kinds
    assert not any(isinstance(layer, packed.PackedLinear) for layer in plain.modules())
    torch.testing.assert_close(logits(weights.model), logits(plain))


async def test_replies_together_are_generates_own(folder: Path) -> None:
    prompts = [tokens(seed, length) for seed, length in enumerate((5, 40, 90, 7, 200))]
    plain = endless_engine(folder)
    expected = [reference(plain, prompt, 12) for prompt in prompts]
    plain.close()
    engine = Engine(lambda: replace(load_weights(folder, "fp32", packed=True), end_token_ids=()))
    replies = await together(engine, [GenerationRequest(prompt, max_new_tokens=12) for prompt in prompts])
    assert engine.batches
    assert [reply.token_ids for reply in replies] == expected
    engine.close()


def test_an_adapter_works_on_packed_weights(folder: Path, tmp_path: Path) -> None:
    """The chat model, whose weights are packed, against peft over plain ones."""
    peft = pytest.importorskip("peft")
    adapter = random_adapter(tmp_path, folder)
    model = ChatTransformers(
        model=str(folder), precision="fp32", device_map="cpu", temperature=0, max_tokens=3, adapters={"a": str(adapter)}
    )
    trace = model.invoke("Hello", model="a").response_metadata["token_trace"]
    ids = [*trace["prompt_token_ids"], *trace["completion_token_ids"]]
    plain = peft.PeftModel.from_pretrained(load_weights(folder, "fp32", device_map="cpu").model, str(adapter))
    with torch.inference_mode():
        rows = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(rows[place - 1, ids[place]]) for place in range(len(trace["prompt_token_ids"]), len(ids))]
    assert trace["logprobs"] == pytest.approx(expected, abs=1e-4)


def test_a_gradient_is_refused_and_other_builds_of_torch_go_on_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_weights(folder, "fp32", device_map="cpu", packed=True).model
    with pytest.raises(RuntimeError, match="cannot be trained through"):
        model(inputs_embeds=torch.zeros(1, 3, model.config.hidden_size, requires_grad=True))
    monkeypatch.setattr(packed, "can_pack_full", lambda: False)
    plain = load_weights(folder, "fp32", device_map="cpu", packed=True).model
    assert not any(isinstance(layer, packed.PackedLinear) for layer in plain.modules())
