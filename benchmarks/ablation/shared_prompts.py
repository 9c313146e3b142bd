"""Training rows -> batches without padding in which a prompt that several rows share stands once.

The replies of a group answer one prompt, and a conversation's prompt is mostly the declaration of its tools. So the
tokens of a pack are that prompt and then each row's completion, which attends to the prompt and to itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from packed import Base
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One sequence to learn from."""

    run: int
    prompt: list[int]
    completion: list[int]
    mask: list[int]
    logprobs: list[float]
    advantage: float
    supervised: bool = False
    """True: raise the likelihood of the masked tokens, without KL and clipping."""


_NOTHING = slice(0, 0)


@dataclass(slots=True)
class Batch:
    """The tokens of some packs, one after another."""

    rows: list[TrainRow] = field(default_factory=list)
    """What is learnt from, pack by pack."""
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Each token's place in its own conversation."""
    parts: list[tuple[slice, slice]] = field(default_factory=list)
    """Tokens that attend to each other causally, and the tokens before them that they see too; in order."""
    sources: list[int] = field(default_factory=list)
    """For each token to learn: the place whose state predicts it."""
    targets: list[int] = field(default_factory=list)
    """Its id."""
    recorded: list[float] = field(default_factory=list)
    """Its log-probability when it was sampled."""
    owner: list[int] = field(default_factory=list)
    """Its row, an index of `rows`."""

    @property
    def length(self) -> int:
        return len(self.ids)

    def add(self, rows: Sequence[TrainRow]) -> None:
        """A pack: rows with one prompt."""
        prompt, start = rows[0].prompt, self.length
        head = slice(start, start + len(prompt))
        self.ids += prompt
        self.positions += range(len(prompt))
        if len(rows) > 1:
            self.parts.append((head, _NOTHING))
        for row in rows:
            begin, end = self.length, self.length + len(row.completion)
            self.parts.append((slice(begin, end), head) if len(rows) > 1 else (slice(start, end), _NOTHING))
            self.ids += row.completion
            self.positions += range(len(prompt), len(prompt) + len(row.completion))
            for place in (place for place, learn in enumerate(row.mask) if learn):
                self.sources.append(begin + place - 1 if place else head.stop - 1)
                self.targets.append(row.completion[place])
                self.recorded.append(row.logprobs[place])
                self.owner.append(len(self.rows))
            self.rows.append(row)


def batches(rows: Sequence[TrainRow], max_tokens: int) -> list[Batch]:
    """The rows of one run in batches of at most `max_tokens`, where a single row is not longer."""
    packs: dict[tuple[int, ...], list[TrainRow]] = defaultdict(list)
    for row in rows:
        packs[tuple(row.prompt)].append(row)
    found = [Batch()]
    for prompt, waiting in packs.items():
        while waiting:
            room = max_tokens - found[-1].length - len(prompt)
            fitting = _first_fitting(waiting, room)
            if not fitting and found[-1].rows:
                found.append(Batch())
                continue
            fitting = fitting or 1
            found[-1].add(waiting[:fitting])
            waiting = waiting[fitting:]
    return found


def _first_fitting(rows: Sequence[TrainRow], room: int) -> int:
    """How many of the first rows' completions have room together."""
    for index, row in enumerate(rows):
        room -= len(row.completion)
        if room < 0:
            return index
    return len(rows)


class Attention:
    """Attention within a batch; q: [1, heads, T, d], k and v: [1, kv_heads, T, d]."""

    def __init__(self, base: Base, batch: Batch) -> None:
        self._groups = base.heads // base.kv_heads
        self._parts = [(own, seen, _lower_right(own, seen, base.device)) for own, seen in batch.parts]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(self._groups, 1) for t in (k, v))
        mixed = []
        for own, seen, mask in self._parts:
            keys, values = (
                t[:, :, own] if mask is None else torch.cat((t[:, :, seen], t[:, :, own]), 2) for t in (k, v)
            )
            mixed.append(
                functional.scaled_dot_product_attention(
                    q[:, :, own], keys, values, attn_mask=mask, is_causal=mask is None
                )
            )
        return torch.cat(mixed, 2)


def _lower_right(own: slice, seen: slice, device: torch.device) -> Tensor | None:
    """[own, seen + own]: all that is before, and causally what is own; None where nothing is before."""
    new, before = own.stop - own.start, seen.stop - seen.start
    return torch.ones(new, before + new, dtype=torch.bool, device=device).tril(before) if before else None
