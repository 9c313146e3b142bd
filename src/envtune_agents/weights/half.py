"""Weights in half precision, arithmetic in fp32: half the memory of fp32 and up to twice its speed on a CPU.

A CPU that decodes waits for weights, and FBGEMM reads them as fp16 while it multiplies and adds in fp32. A checkpoint
in bf16 loses nothing by that, since its numbers have fewer digits than fp16 and no weight comes near 65,504; one in
fp32 or unpacked from GGUF is rounded by at most one part in 2,048.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from envtune_agents.weights.packed import HalfLinear, Place, pack_linear, places


def available() -> bool:
    """Whether this build of torch has FBGEMM, which it has on x86."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class HalfEmbedding(nn.Embedding):
    """Embeddings kept in fp16 and given as fp32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The embeddings of these tokens."""
        return super().forward(input).float()


def pack(model: nn.Module) -> None:
    """Turn a model that was loaded in fp16 into one that computes in fp32 from packed weights, layer by layer."""

    def pack_one(place: Place) -> None:
        owner, name = place
        layer = getattr(owner, name)
        if type(layer) is nn.Embedding:
            table = layer.weight.detach()
            half = HalfEmbedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx, _weight=table)
            setattr(owner, name, half)
        pack_linear(place, HalfLinear)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(pack_one, places(model)))
    for module in model.modules():
        for parameter in () if isinstance(module, HalfEmbedding) else module.parameters(recurse=False):
            parameter.data = parameter.data.float()
