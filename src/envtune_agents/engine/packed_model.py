"""A transformers model that reads tokens of many requests in one forward pass, with their past in an arena.

Imports torch and transformers: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from envtune_agents.engine.arena import Arena
from envtune_agents.engine.attention import (
    IMPLEMENTATION,
    AttentionPlan,
    Kernel,
    Span,
    attend_by_span,
    attend_flash,
    packed_attention,
)
from envtune_agents.engine.decode_graphs import DecodeGraphs
from envtune_agents.errors import WeightsError

AttentionInterface.register(IMPLEMENTATION, packed_attention)

_SHIFTING_ROPE = ("'dynamic'", "'longrope'")
"""Rope types that turn keys anew when a text gets long."""
_PROBE_IDS = 36
_PROBE_SPLIT = 10
"""The probe's texts and what they share: runs longer and shorter than `MOST_MASKED`."""
_TOLERANCE = {torch.float32: 1e-3}
_LOOSE_TOLERANCE = 0.1
"""Largest difference of logits to the model's own attention, as a share of the largest logit, below fp32."""


class PackedModel:
    """The model, the arena its keys and values lie in, and the kernel that serves it."""

    def __init__(self, model: Any, arena: Arena, kernel: Kernel) -> None:
        self.model, self.arena = model, arena
        self._kernel = kernel
        self.graphs: DecodeGraphs | None = None
        """Decode passes recorded for a GPU, where they can be."""

    @property
    def room(self) -> int:
        """Tokens of keys and values there are for requests."""
        return self.arena.capacity - (1 if self.graphs else 0)

    @classmethod
    def of(cls, model: Any, max_bytes: int, *, cuda_graphs: bool = False) -> PackedModel | None:
        """The model packed, with `max_bytes` of keys and values; None when it cannot be.

        Sliding windows, linear attention, attention sinks and whatever else is not a softmax over all earlier tokens
        cannot. It is tried, not looked up: a packed pass over two runs of tokens must give the logits of the model's
        own attention.
        """
        if not _keeps_its_whole_past(model.config):
            return None
        for kernel in (attend_flash, attend_by_span) if model.device.type == "cuda" else (attend_by_span,):
            probe = cls(model, Arena(2 * _PROBE_IDS), kernel)
            if probe._agrees():
                capacity = max_bytes // max(1, probe.arena.bytes_per_token)
                packed = cls(model, Arena(capacity), kernel)
                packed._reserve(probe.arena)
                if cuda_graphs and kernel is attend_flash:
                    packed.graphs = DecodeGraphs(packed.arena, kernel, packed._read)
                return packed
        return None

    def forward(
        self,
        token_ids: Sequence[int],
        texts: Sequence[int],
        positions: Sequence[int],
        own: list[Span],
        shared: list[list[Span]],
        keep: Sequence[int],
    ) -> torch.Tensor:
        """Logits [len(keep), vocab] of the tokens `keep`, as indices into the pass.

        For each token: its id, its place in its text and its place in the arena. `own` and `shared` as in
        `AttentionPlan`.
        """
        if self.graphs and len(keep) == len(own) == len(token_ids):
            logits = self.graphs.forward(token_ids, texts, positions, own, shared)
            if logits is not None:
                return logits
        columns = torch.tensor([*token_ids, *texts, *positions, *keep]).to(self.model.device, non_blocking=True)
        n = len(token_ids)
        return self._read(columns, n, AttentionPlan(self.arena, columns[2 * n : 3 * n], own, shared, self._kernel))

    def _read(self, columns: torch.Tensor, n: int, plan: AttentionPlan) -> torch.Tensor:
        """The pass itself. `columns`: ids, places in the text, places in the arena, each [n], and what to keep."""
        with torch.inference_mode(), _packed(self.model):
            output = self.model(
                input_ids=columns[None, :n],
                position_ids=columns[None, n : 2 * n],
                use_cache=False,
                logits_to_keep=columns[3 * n :],
                packed_plan=plan,
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _agrees(self) -> bool:
        """Whether two texts that share a beginning, read in pieces, get the logits of the model's own attention."""
        vocabulary = int(self.model.get_input_embeddings().num_embeddings)
        one = [(7 + 13 * i) % vocabulary for i in range(_PROBE_IDS)]
        two = [*one[:_PROBE_SPLIT], *reversed(one[_PROBE_SPLIT:])]
        with torch.inference_mode():
            texts = torch.tensor([one, two], device=self.model.device)
            expected = self.model(input_ids=texts, use_cache=False).logits[:, -1].float()
        try:
            self._read_beginnings(one, two)
            logits = self._read_ends(one, two).float()
        except Exception:  # whatever the model does not take: it is served unpacked then
            return False
        limit = _TOLERANCE.get(self.model.dtype, _LOOSE_TOLERANCE) * float(expected.abs().max())
        return float((logits - expected).abs().max()) <= limit

    def _read_beginnings(self, one: list[int], two: list[int]) -> None:
        """Read both texts but for their last tokens, what they share once; their own parts lie `_PROBE_IDS` apart."""
        split, size = _PROBE_SPLIT, _PROBE_IDS - _PROBE_SPLIT - 1
        starts = (split, split + _PROBE_IDS)
        self.forward(
            [*one[:-1], *two[split:-1]],
            [*range(split), *[*range(split, _PROBE_IDS - 1)] * 2],
            [*range(split), *(place for start in starts for place in range(start, start + size))],
            [
                Span(0, split, 0, split),
                *(Span(split + i * size, split + (i + 1) * size, start, size) for i, start in enumerate(starts)),
            ],
            [[Span(split, split + 2 * size, 0, split)]],
            [0],
        )

    def _read_ends(self, one: list[int], two: list[int]) -> torch.Tensor:
        """Logits of the last token of each text."""
        size = _PROBE_IDS - _PROBE_SPLIT
        starts = (_PROBE_SPLIT, _PROBE_SPLIT + _PROBE_IDS)
        return self.forward(
            [one[-1], two[-1]],
            [_PROBE_IDS - 1] * 2,
            [start + size - 1 for start in starts],
            [Span(i, i + 1, start, size) for i, start in enumerate(starts)],
            [[Span(0, 2, 0, _PROBE_SPLIT)]],
            [0, 1],
        )

    def _reserve(self, probe: Arena) -> None:
        """Set the arena's memory aside now, so that a lack of it is known at loading and not in a request."""
        try:
            self.arena.reserve(probe)
        except RuntimeError as error:
            raise WeightsError(
                f"There is no memory for {self.arena.capacity} tokens of keys and values beside the weights "
                f"({str(error).splitlines()[0]}). Lower cache_bytes, or load the weights at a smaller precision."
            ) from error


def _keeps_its_whole_past(config: Any) -> bool:
    """False for sliding windows and linear attention, and for positions whose encoding changes with the length."""
    rope = str(getattr(config.get_text_config(), "rope_parameters", None))
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    return plain and not any(kind in rope for kind in _SHIFTING_ROPE)


@contextmanager
def _packed(model: Any) -> Iterator[None]:
    """The model with our attention for one pass; everyone else finds its own."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before
