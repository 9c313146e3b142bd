"""Attention of one packed forward pass: tokens of many requests side by side, without padding.

transformers calls `packed_attention` for each layer with the queries, keys and values of all tokens of the pass; the
`AttentionPlan` says where the new keys and values go and which stretches of the arena each query sees. Parts of one
query's attention are computed apart and joined by their log-sum-exp, so that keys shared by many requests are read once
for all of them.

Imports torch: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from envtune_agents.engine.arena import Arena

IMPLEMENTATION = "envtune_packed"
"""The name under which transformers knows `packed_attention`."""

Attended = tuple[torch.Tensor, torch.Tensor]
"""What queries read, [tokens, heads, head size], and the log-sum-exp of their scores, [tokens, heads]."""


_FLASH_ON_CPU: Any = torch._scaled_dot_product_flash_attention_for_cpu
"""The kernel's own binding, which costs 10 microseconds a call less than its name in `torch.ops`."""
MOST_MASKED = 16
"""New tokens of one run that are attended to under a mask, in one kernel call; a longer run takes two and a join."""


class UnsupportedAttentionError(Exception):
    """The model's attention is more than a softmax over all earlier tokens; never leaves the engine thread."""


@dataclass(frozen=True, slots=True)
class Span:
    """Queries and the stretch of the arena they see."""

    first: int
    last: int
    """The queries, `first` to before `last`, in the order of the pass."""
    start: int
    length: int
    """The keys."""


@dataclass(slots=True)
class AttentionPlan:
    """Who sees what in one forward pass."""

    arena: Arena
    positions: torch.Tensor
    """Where each token's keys and values go, [tokens]."""
    own: list[Span]
    """For each run of new tokens, in order and covering all of them: the keys of its node up to its last token. The
    new tokens are the last of these keys, and each sees only those before itself."""
    shared: list[list[Span]]
    """Keys that every query of a span sees in full. One list for each depth of the tree; within it queries ascend."""
    kernel: Kernel
    """How it is computed on this device: `attend_by_span` or `attend_flash`."""
    flash: dict[torch.device, list[FlashSpans]] = field(default_factory=dict)
    """`own` and `shared` as `attend_flash` wants them on each device, made at its first layer."""
    masks: dict[tuple[torch.device, int, int], torch.Tensor] = field(default_factory=dict)
    """`_mask` of each run that needs one: by device, new tokens and keys, made at the first layer."""


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, AttentionPlan], torch.Tensor]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed_plan: AttentionPlan | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, tokens, head size] -> [1, tokens, heads, head size]."""
    strange = sorted(name for name in ("sliding_window", "softcap", "s_aux") if options.get(name) is not None)
    if packed_plan is None or strange:
        raise UnsupportedAttentionError(f"The attention of {type(module).__name__} needs {strange or 'a plan'}.")
    layer: Any = module.layer_idx
    keys, values = packed_plan.arena.write(layer, packed_plan.positions, key[0], value[0])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_plan.kernel(query[0], keys, values, scale, packed_plan)[None], None


def attend_by_span(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, plan: AttentionPlan
) -> torch.Tensor:
    """One kernel call for each span: cheap on a CPU, and works everywhere.

    `query`: [heads, tokens, head size]; `keys`, `values`: [kv heads, capacity, head size]. The query heads of one kv
    head become further rows of it, so keys are neither repeated nor copied.
    """
    heads, tokens, size = query.shape
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    by_group = query.reshape(kv_heads, group, tokens, size)
    rows = by_group.transpose(1, 2).reshape(1, kv_heads, tokens * group, size)

    all_keys, all_values = keys[None], values[None]

    def seen(first: int, last: int, start: int, length: int, mask: torch.Tensor | None = None) -> Attended:
        queries = rows.narrow(2, first * group, (last - first) * group)
        return _attend(queries, all_keys.narrow(2, start, length), all_values.narrow(2, start, length), scale, mask)

    def mask_of(new: int, length: int) -> torch.Tensor:
        key = (query.device, new, length)
        if key not in plan.masks:
            plan.masks[key] = _mask(query, new, length, group)
        return plan.masks[key]

    parts: list[Attended] = []
    for span in plan.own:
        new = span.last - span.first
        if new <= MOST_MASKED:
            mask = mask_of(new, span.length) if new > 1 else None
            parts.append(seen(span.first, span.last, span.start, span.length, mask))
            continue
        stretch = slice(span.start + span.length - new, span.start + span.length)
        new_rows = by_group[:, :, span.first : span.last]
        part = _causal(new_rows, keys[:, stretch], values[:, stretch], scale)
        if span.length > new:
            _join(*part, *seen(span.first, span.last, span.start, span.length - new))
        parts.append(part)
    out, lse = parts[0] if len(parts) == 1 else (torch.cat(column, 2) for column in zip(*parts, strict=True))
    for span in (span for level in plan.shared for span in level):
        mine = slice(span.first * group, span.last * group)
        _join(out[:, :, mine], lse[:, :, mine], *seen(span.first, span.last, span.start, span.length))
    return out.view(kv_heads, tokens, group, -1).transpose(0, 1).reshape(tokens, heads, -1)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
) -> Attended:
    """Attention [batch, heads, rows, head size] with its log-sum-exp [batch, heads, rows]. `mask`: added to scores."""
    if query.device.type != "cpu":
        return _attend_plainly(query, keys, values, scale, mask, causal=causal)
    found: Attended = _FLASH_ON_CPU(query, keys, values, 0.0, causal, attn_mask=mask, scale=scale)
    return found


def _attend_plainly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
) -> Attended:
    """`_attend` on any device."""
    scores = (query @ keys.transpose(-1, -2)).float() * scale
    if mask is not None:
        scores = scores + mask
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(values.dtype) @ values, lse


def _mask(query: torch.Tensor, new: int, length: int, group: int) -> torch.Tensor:
    """0 where a new token sees a key, else minus infinity, [new * group, length]: the new ones are the last keys."""
    ones = torch.ones(new, length, dtype=torch.bool, device=query.device)
    hidden = ones.triu(length - new + 1).repeat_interleave(group, 0)
    return torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, float("-inf"))


def _causal(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> Attended:
    """Attention of a run of tokens to itself, in the layout of `rows`; query: [kv heads, group, new tokens, size]."""
    kv_heads, group, new, _ = query.shape
    many_keys, many_values = (t[:, None].expand(kv_heads, group, new, t.shape[-1]) for t in (keys, values))
    out, lse = _attend(query, many_keys, many_values, scale, causal=True)
    flat = out.transpose(1, 2).reshape(1, kv_heads, new * group, -1)
    return flat, lse.transpose(1, 2).reshape(1, kv_heads, new * group)


def _join(out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, more_lse: torch.Tensor) -> None:
    """Take what else the same queries see into `out` and `lse`, in place."""
    out.lerp_(more, torch.sigmoid(more_lse - lse).unsqueeze(-1).to(out.dtype))
    lse.copy_(torch.logaddexp(lse, more_lse))


def attend_flash(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, plan: AttentionPlan
) -> torch.Tensor:
    """One kernel call for all spans of a depth: FlashAttention, on a GPU in bf16 or fp16. Shapes: `attend_by_span`."""
    levels = plan.flash.get(query.device)
    if levels is None:
        tokens = query.shape[1]
        levels = [FlashSpans.of(spans, tokens).to(query.device) for spans in (plan.own, *plan.shared)]
        plan.flash[query.device] = levels
    packed = (query.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1))
    out: torch.Tensor
    out, lse = levels[0].attend(*packed, scale, causal=True)
    for level in levels[1:]:
        _join(out, lse, *level.attend(*packed, scale, causal=False))
    return out


@dataclass(frozen=True, slots=True)
class FlashSpans:
    """Spans as FlashAttention wants them; queries that no span covers become spans without keys."""

    table: torch.Tensor
    """First query of each span and the end [spans + 1], first keys [spans + 1] and numbers of keys [spans], int32."""
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, spans: Sequence[Span], tokens: int, *, size: int = 0) -> FlashSpans:
        """On the CPU; filled up with empty spans to at least `size`."""
        whole: list[Span] = []
        at = 0
        for span in (*spans, Span(tokens, tokens, 0, 0)):
            if span.first > at:
                whole.append(Span(at, span.first, 0, 0))
            if span.last > span.first:
                whole.append(span)
            at = span.last
        whole += [Span(tokens, tokens, 0, 0)] * (size - len(whole))
        starts, lengths = [span.start for span in whole], [span.length for span in whole]
        table = torch.tensor([*(span.first for span in whole), tokens, *starts, 0, *lengths], dtype=torch.int32)
        return cls(table, max(span.last - span.first for span in whole), max(lengths))

    def to(self, device: torch.device) -> FlashSpans:
        """The same on a GPU."""
        return FlashSpans(self.table.to(device, non_blocking=True), self.most_queries, self.most_keys)

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, *, causal: bool
    ) -> Attended:
        """query: [tokens, heads, head size]; keys, values: [capacity, kv heads, head size]."""
        n = len(self.table) // 3
        queries, starts, lengths = self.table[: n + 1], self.table[n + 1 : 2 * n + 2], self.table[2 * n + 2 :]
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query, keys, values, queries, starts, self.most_queries, self.most_keys, 0.0, causal, False,
            scale=scale, seqused_k=lengths,
        )  # fmt: skip
        lse = lse.transpose(0, 1)
        return out, lse.masked_fill(lse == float("inf"), float("-inf"))  # it says inf where there was no key
