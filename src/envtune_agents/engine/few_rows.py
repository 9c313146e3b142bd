"""Matrix products of few rows, the way round that this CPU is faster at.

A decoding pass multiplies each weight matrix by the 2 to some 60 tokens of the running requests. With the tokens first,
as every linear layer has it, the matrix library of many a CPU copies the whole matrix into another order for each
product; with the weights first it does not, and may take half the time. Which is so is tried once, on the model's own
weights.

Imports torch: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

SIZES = (2, 4, 16, 32, 48, 64)
"""Numbers of rows with a fast product: fewer are filled up with zeros to the next. More are left as they are."""
ENOUGH_WEIGHTS = 2**16
"""Smaller matrices stay in the cache, where the order matters little."""
PROBED_ROWS, PROBED_LAYERS, PROBED_TIMES = 16, 40, 3
"""What is tried: so many rows by so many matrices, more than a cache holds, the best of so many times."""
WORTH_IT = 0.85
"""Share of the usual time that the other way round must stay below."""


class FewRowsLinear(nn.Linear):
    """A linear layer that multiplies few rows the other way round."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input`: [..., in_features]; gives [..., out_features]."""
        rows = input.numel() // self.in_features
        if not 1 < rows <= SIZES[-1]:
            return super().forward(input)
        product = _weights_first(input.reshape(rows, self.in_features), self.weight)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*input.shape[:-1], self.out_features)


def hasten(model: nn.Module) -> bool:
    """Turns the fp32 linear layers of a model on a CPU into `FewRowsLinear`, where that is faster; whether it is."""
    layers = [layer for layer in model.modules() if _may_turn(layer)]
    weights = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    if not weights or not _is_faster(weights[:PROBED_LAYERS]):
        return False
    for layer in layers:
        layer.__class__ = FewRowsLinear
    return True


def _may_turn(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear:  # quantised layers are subclasses with products of their own
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= ENOUGH_WEIGHTS


def _is_faster(weights: Sequence[torch.Tensor]) -> bool:
    """Whether the products take clearly less time with the weights first."""
    tokens = [torch.ones(PROBED_ROWS, weight.shape[1]) for weight in weights]
    usual: list[float] = []
    turned: list[float] = []
    with torch.inference_mode():
        for _ in range(PROBED_TIMES):
            usual.append(_seconds(functional.linear, tokens, weights))
            turned.append(_seconds(_weights_first, tokens, weights))
    return min(turned) < WORTH_IT * min(usual)


def _seconds(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    tokens: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
) -> float:
    started = time.perf_counter()
    for rows, weight in zip(tokens, weights, strict=True):
        product(rows, weight)
    return time.perf_counter() - started


def _weights_first(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[rows, in] by [out, in] -> [rows, out]."""
    count = len(rows)
    size = next(size for size in SIZES if size >= count)
    columns = functional.pad(rows, (0, 0, 0, size - count)).t()
    return torch.mm(weight, columns)[:, :count].t().contiguous()
