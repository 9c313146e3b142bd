"""Decode passes as CUDA graphs: a GPU runs one token of many requests faster than Python can ask for its kernels.

A pass is recorded once for each number of requests (rounded up), depth of the tree and length of text (rounded up), and
replayed with other numbers in the same buffers. Imports torch: import this module inside the engine thread only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from envtune_agents.engine.arena import Arena
from envtune_agents.engine.attention import AttentionPlan, FlashSpans, Kernel, Span

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Numbers of requests a pass is recorded for."""
MAX_GRAPHS = 64
"""Recorded passes; each holds a few MiB."""
CLOSE = 0.05
"""Largest difference of a replayed pass's logits to a plain one's, as a share of the largest logit."""


class DecodeGraphs:
    """Recorded passes of one model and arena. After a failure to record, `forward` always gives None."""

    def __init__(
        self, arena: Arena, kernel: Kernel, read: Callable[[torch.Tensor, int, AttentionPlan], torch.Tensor]
    ) -> None:
        """`read`: the plain pass, as `PackedModel._read`."""
        self._arena, self._kernel, self._read = arena, kernel, read
        self._scratch = arena.take(1) or 0  # where the tokens that fill a pass up go
        self._recorded: dict[tuple[int, ...], _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self.state = "nothing recorded"
        """What became of recording, for people."""
        self._usable = True

    def forget(self) -> None:
        """The model was changed: record anew."""
        self._recorded.clear()

    def forward(
        self,
        token_ids: Sequence[int],
        texts: Sequence[int],
        positions: Sequence[int],
        own: Sequence[Span],
        shared: Sequence[Sequence[Span]],
    ) -> torch.Tensor | None:
        """Logits of one token of each request, [requests, vocab]; None when the pass must be run plainly."""
        if not self._usable or len(token_ids) > SIZES[-1]:
            return None
        n = len(token_ids)
        size = SIZES[bisect_left(SIZES, n)]
        spare = range(n, size)
        blank = [0] * len(spare)
        columns = torch.tensor(
            [*token_ids, *blank, *texts, *blank, *positions, *(self._scratch for _ in spare), *range(size)]
        )
        padded = [*own, *(Span(i, i + 1, self._scratch, 1) for i in spare)]
        levels = [FlashSpans.of(spans, size, size=size) for spans in (padded, *shared)]
        levels = [replace(level, most_keys=_round(level.most_keys)) for level in levels]
        levels[1:] = [replace(level, most_queries=size) for level in levels[1:]]
        key = (size, *(level.most_keys for level in levels))
        try:
            if key not in self._recorded:
                self._record(key, columns, size, levels)
            return self._recorded[key].replay(columns, levels)[:n]
        except RuntimeError as error:  # what a quantised layer does, say, cannot be recorded
            self._usable = False
            self._recorded.clear()
            self.state = f"cannot be recorded: {str(error).splitlines()[0]}"
            return None

    def _record(self, key: tuple[int, ...], columns: torch.Tensor, size: int, levels: list[FlashSpans]) -> None:
        while len(self._recorded) >= MAX_GRAPHS:
            del self._recorded[next(iter(self._recorded))]
        device = torch.device("cuda", torch.cuda.current_device())
        columns, levels = columns.to(device), [level.to(device) for level in levels]
        plan = AttentionPlan(self._arena, columns[2 * size : 3 * size], [], [], self._kernel, {device: levels})
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                expected = self._read(columns, size, plan).clone()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._read(columns, size, plan)
        recorded = _Recorded(graph, columns, levels, logits)
        again = recorded.replay(columns, levels)
        if float((again - expected).abs().max()) > CLOSE * float(expected.abs().max()):
            raise RuntimeError("a replayed pass gave other logits")
        self._recorded[key] = recorded
        self.state = f"{len(self._recorded)} passes recorded"


class _Recorded:
    """One recorded pass and the buffers it reads and writes."""

    def __init__(
        self, graph: torch.cuda.CUDAGraph, columns: torch.Tensor, levels: list[FlashSpans], logits: torch.Tensor
    ) -> None:
        self._graph, self._columns, self._levels, self._logits = graph, columns, levels, logits

    def replay(self, columns: torch.Tensor, levels: list[FlashSpans]) -> torch.Tensor:
        """The pass with these numbers; what it gives is overwritten by the next replay."""
        self._columns.copy_(columns)
        for mine, new in zip(self._levels, levels, strict=True):
            mine.table.copy_(new.table)
        self._graph.replay()
        return self._logits


def _round(keys: int) -> int:
    """The next power of two, at least 256."""
    return max(256, 1 << (keys - 1).bit_length())
