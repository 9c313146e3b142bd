"""`memory_report`: what a checkpoint will need in memory, before anything of it is loaded.

Comes in: a checkpoint on this disk, a context and a number of conversations. Goes out: bytes at each precision. It
counts weights and the keys and values of the conversations; torch itself and the work of one step come on top, about
half a gigabyte and, on a GPU, up to another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envtune_agents.errors import WeightsError
from envtune_agents.weights.header import Shape, Tensor, shape_of, tensors_of
from envtune_agents.weights.source import ACCEPTED, WeightsSource, find_local

_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "w16a32": 2.0}
_QUANTISED = {"8bit": 1.0 + 4 / 1024, "4bit": 0.5 + 0.127 / 8}
"""Bytes for each number of a quantised matrix, scales included: a float a row for 8 bit; for nf4 with double
quantisation 8 bits for 64 numbers and 32 for 256 of those (QLoRA, arXiv 2305.14314, section 3: 0.127 bits a number)."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What one precision needs, in bytes."""

    precision: str
    weights: int
    cache_per_token: int
    """Keys and values of one token."""
    cache: int
    """Keys and values of all conversations at full context."""

    @property
    def total(self) -> int:
        """Weights and cache."""
        return self.weights + self.cache


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What a checkpoint needs at every precision it can be loaded with."""

    model: str
    parameters: int
    """Numbers in its tensors; tied ones count once."""
    native_context: int
    """Most tokens that the checkpoint admits; 0 when it does not say."""
    context: int
    """Tokens of each conversation that the report is for."""
    conversations: int
    needs: tuple[MemoryNeed, ...]


def memory_report(model: str | Path, *, context: int | None = None, conversations: int = 1) -> MemoryReport:
    """The memory that `model` needs at each precision, from headers alone; fp32 and w16a32 as a CPU holds them.

    `model`: as for `load_weights`, but on this disk. `context`: tokens of one conversation, the checkpoint's own by
    default. Raises `WeightsError` when the checkpoint is not here, cannot be read, or has a shorter context.
    """
    source = find_local(model)
    if source is None:
        raise WeightsError(f"'{model}' is not on this disk, so its headers cannot be read. Download it. {ACCEPTED}")
    try:
        shape, tensors = shape_of(source), tensors_of(source)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"The headers of '{model}' do not say its sizes ({type(error).__name__}: {error}). The checkpoint is "
            "damaged or of an architecture without num_hidden_layers, hidden_size and num_attention_heads."
        ) from error
    wanted = context if context is not None else shape.context
    if wanted < 1 or conversations < 1 or (shape.context and wanted > shape.context):
        raise WeightsError(
            f"context {wanted} and conversations {conversations} make no sense for '{model}'. Wanted: at least 1 of "
            f"each, and at most {shape.context} tokens."
        )
    needs = (_need(name, source, shape, tensors, wanted * conversations) for name in precisions_of(source))
    parameters = sum(tensor.size for tensor in tensors)
    return MemoryReport(str(model), parameters, shape.context, wanted, conversations, tuple(needs))


def precisions_of(source: WeightsSource) -> Sequence[str]:
    """The precisions that a checkpoint can be loaded with: a GGUF file is quantised already, and is unpacked."""
    return [*_BYTES] if source.gguf_file else [*_BYTES, *_QUANTISED]


def _need(precision: str, source: WeightsSource, shape: Shape, tensors: Sequence[Tensor], tokens: int) -> MemoryNeed:
    dense = _BYTES.get(precision, 2.0)
    packed = _QUANTISED.get(precision, dense)
    weights = sum(tensor.size * (packed if _is_packed(tensor) else dense) for tensor in tensors)
    if precision in ("fp32", "w16a32"):
        weights += sum(tensor.size * _extra_bytes(tensor, tensors, dense) for tensor in tensors)
    cached = 4.0 if precision == "w16a32" else dense
    for_token = int(2 * shape.layers * shape.kv_heads * shape.head_size * cached)
    return MemoryNeed(precision, round(weights), for_token, for_token * tokens)


def _extra_bytes(tensor: Tensor, tensors: Sequence[Tensor], dense: float) -> float:
    """Bytes a packed number takes beyond `dense`: vectors stay in fp32, and a head tied to the embeddings is a copy."""
    if tensor.dimensions < 2:
        return 4.0 - dense
    heads = ("lm_head", "output.weight")
    tied = not any(other.name.startswith(heads) for other in tensors)
    return dense if tied and any(name in tensor.name for name in ("embed_tokens", "token_embd")) else 0.0


def _is_packed(tensor: Tensor) -> bool:
    """Whether bitsandbytes quantises it: every matrix but the embeddings and the output head."""
    kept = ("embed_tokens", "lm_head", "token_embd", "output.weight")
    return tensor.dimensions >= 2 and not any(name in tensor.name for name in kept)
