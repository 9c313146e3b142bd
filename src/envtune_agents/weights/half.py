"""Weights in half precision, arithmetic in fp32: half the memory of fp32 and up to twice its speed on a CPU.

A CPU that decodes waits for weights, and FBGEMM reads them as fp16 while it multiplies and adds in fp32. A checkpoint
in bf16 loses nothing by that, since its numbers have fewer digits than fp16 and no weight comes near 65,504; one in
fp32 or unpacked from GGUF is rounded by at most one part in 2,048.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn


def available() -> bool:
    """Whether this build of torch has FBGEMM, which it has on x86."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class HalfLinear(nn.Linear):
    """A linear layer for inference: fp32 in, fp32 out, its weights packed in fp16; `weight` is empty."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        bias = None if layer.bias is None else layer.bias.detach().float()
        self.packed: Any = torch.ops.quantized.linear_prepack_fp16(layer.weight.detach().float(), bias)
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)  # peft asks it for its device
        self.register_parameter("bias", None)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The product; raises when a gradient is asked for, which would be lost without a word."""
        if input.requires_grad:
            raise RuntimeError("Packed weights cannot be trained through. Load them in 'fp32' or 'bf16' for that.")
        product: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(input, self.packed)
        return product


class HalfEmbedding(nn.Embedding):
    """Embeddings kept in fp16 and given as fp32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The embeddings of these tokens."""
        return super().forward(input).float()


def pack(model: nn.Module) -> None:
    """Turn a model that was loaded in fp16 into one that computes in fp32 from packed weights, layer by layer."""

    def packed(place: tuple[nn.Module, str, nn.Module]) -> None:
        owner, name, layer = place
        if type(layer) is nn.Linear:
            setattr(owner, name, HalfLinear(layer))
        elif type(layer) is nn.Embedding:
            table = layer.weight.detach()
            half = HalfEmbedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx, _weight=table)
            setattr(owner, name, half)

    places = [(owner, name, layer) for owner in model.modules() for name, layer in owner.named_children()]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(packed, places))
    for module in model.modules():
        for parameter in () if isinstance(module, HalfEmbedding) else module.parameters(recurse=False):
            parameter.data = parameter.data.float()
