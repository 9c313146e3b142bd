"""Products of few rows the other way round: the same numbers, and only where it is known to help."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_asking import endless_engine, reference, together, tokens

from envtune_agents.engine import GenerationRequest
from envtune_agents.testing.tiny import tiny_qwen

torch = pytest.importorskip("torch")
from envtune_agents.engine import few_rows  # noqa: E402 - imports torch
from envtune_agents.engine.few_rows import SIZES, FewRowsLinear, hasten  # noqa: E402


@pytest.mark.parametrize("bias", [False, True])
def test_every_number_of_rows_has_the_usual_product(bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40, bias=bias)
    turned = torch.nn.Linear(24, 40, bias=bias)
    turned.load_state_dict(layer.state_dict())
    turned.__class__ = FewRowsLinear
    for rows in range(SIZES[-1] + 3):
        tokens = torch.randn(1, rows, 24)
        product = turned(tokens)
        torch.testing.assert_close(product, layer(tokens))
        assert product.is_contiguous()
    assert turned(torch.randn(2, 3, 24)).shape == (2, 3, 40)


def test_gradients_are_the_usual_ones() -> None:
    torch.manual_seed(0)
    layer, tokens = torch.nn.Linear(24, 40), torch.randn(5, 24)
    layer(tokens).square().sum().backward()
    usual = layer.weight.grad.clone()
    layer.weight.grad = None
    layer.__class__ = FewRowsLinear
    layer(tokens).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, usual)


def test_only_large_plain_fp32_layers_are_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.nn.Linear):
        """A layer with a product of its own, as quantised ones have."""

    layers = [torch.nn.Linear(300, 300), Own(300, 300), torch.nn.Linear(9, 9), torch.nn.Linear(300, 300).bfloat16()]
    model = torch.nn.Sequential(*layers)
    monkeypatch.setattr(few_rows, "WORTH_IT", 0.0)
    assert not hasten(model)
    assert [type(layer) for layer in layers] == [torch.nn.Linear, Own, torch.nn.Linear, torch.nn.Linear]
    monkeypatch.setattr(few_rows, "WORTH_IT", float("inf"))
    assert hasten(model)
    assert [type(layer) for layer in layers] == [FewRowsLinear, Own, torch.nn.Linear, torch.nn.Linear]
    assert not hasten(torch.nn.Sequential(torch.nn.ReLU()))


async def test_replies_are_generates_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Batched replies through turned layers against `generate()` through the usual ones."""
    folder = tiny_qwen(tmp_path)
    prompts = [tokens(seed, length) for seed, length in enumerate((5, 40, 90, 7, 200))]
    usual = endless_engine(folder)
    expected = [reference(usual, prompt, 12) for prompt in prompts]
    usual.close()
    monkeypatch.setattr(few_rows, "WORTH_IT", float("inf"))
    monkeypatch.setattr(few_rows, "ENOUGH_WEIGHTS", 1)
    turned = endless_engine(folder)
    replies = await together(turned, [GenerationRequest(prompt, max_new_tokens=12) for prompt in prompts])
    assert any(type(layer) is FewRowsLinear for layer in turned.weights.model.modules())
    assert [reply.token_ids for reply in replies] == expected
    turned.close()
