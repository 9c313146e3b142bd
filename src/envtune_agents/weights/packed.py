"""Linear layers whose weights are kept in the order that a CPU multiplies them in: for inference only.

With a few rows to multiply, as in decoding, an ordinary fp32 product spends most of its time on copying the weights
into that order, each time anew. `FullLinear` keeps them as oneDNN wants them, in fp32; `HalfLinear` as FBGEMM does, in
fp16, which halves what is read besides.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_ROWS = 16
"""For how many rows oneDNN is asked to choose the order; it serves all numbers of them well."""


class PackedLinear(nn.Linear):
    """A linear layer for inference: fp32 in, fp32 out; `weight` is empty."""

    def __init__(self, layer: nn.Linear, packed: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.packed = packed
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)  # peft asks it for its device
        self.register_parameter("bias", None)


def _inference_only(input: torch.Tensor) -> torch.Tensor:
    """The input; raises when a gradient is asked for, which would be lost without a word."""
    if input.requires_grad:
        raise RuntimeError("Packed weights cannot be trained through. Load them with load_weights(…, 'fp32').")
    return input


class FullLinear(PackedLinear):
    """Weights in fp32."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS))
        self.added = None if layer.bias is None else layer.bias.detach()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]; raises `RuntimeError` when a gradient is asked for."""
        rows = _inference_only(input)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.added, "none", [], "")
        return product


class HalfLinear(PackedLinear):
    """Weights in fp16."""

    def __init__(self, layer: nn.Linear) -> None:
        bias = None if layer.bias is None else layer.bias.detach().float()
        super().__init__(layer, torch.ops.quantized.linear_prepack_fp16(layer.weight.detach().float(), bias))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]; raises `RuntimeError` when a gradient is asked for."""
        product: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(_inference_only(input), self.packed)
        return product


Place = tuple[nn.Module, str]
"""A module and the name of a child: not the child itself, so that its weights go when another takes its place."""


def places(model: nn.Module) -> list[Place]:
    """Where every module of the model hangs."""
    return [(owner, name) for owner in model.modules() for name, _ in owner.named_children()]


def pack_linear(place: Place, make: Callable[[nn.Linear], PackedLinear]) -> None:
    """Puts a packed layer where a plain linear one is; what is anything else, such as quantised, stays."""
    owner, name = place
    layer = getattr(owner, name)
    if type(layer) is nn.Linear:
        setattr(owner, name, make(layer))


def can_pack_full() -> bool:
    """Whether this build of torch has oneDNN with packed linear layers, which it has on x86 and on most of ARM."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_full(model: nn.Module) -> None:
    """Packs the linear layers of an fp32 model on a CPU, one after another."""
    for place in places(model):
        pack_linear(place, FullLinear)
