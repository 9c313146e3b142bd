"""Packed attention against plain attention over each text: on the CPU's kernel, and with what a GPU's is asked for."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.testing.tiny import tiny_qwen
from envtune_agents.weights import load_weights

torch = pytest.importorskip("torch")

from envtune_agents.engine import attention  # noqa: E402
from envtune_agents.engine.arena import Arena  # noqa: E402
from envtune_agents.engine.attention import AttentionPlan, FlashSpans, Span, attend_by_span, attend_flash  # noqa: E402
from envtune_agents.engine.packed_model import PackedModel  # noqa: E402

HEADS, KV_HEADS, SIZE, CAPACITY = 6, 2, 16, 200
# Two texts share 40 keys at 10; the first adds 12 at 60, 5 of them new, the second 1 at 100; the third stands alone.
OWN = [Span(0, 5, 60, 12), Span(5, 6, 100, 1), Span(6, 10, 120, 4)]
SHARED = [[Span(0, 6, 10, 40)], [Span(0, 5, 150, 3)]]


def varlen(
    query: Any, keys: Any, values: Any, first: Any, starts: Any, most_q: int, most_k: int, dropout: float,
    causal: bool, debug: bool, *, scale: float, seqused_k: Any,
) -> Any:  # fmt: skip
    """What torch's FlashAttention computes for spans of a packed batch, -inf being inf where there are no keys."""
    out, lse = torch.zeros_like(query), torch.full(query.shape[:2], float("inf")).T.contiguous()
    group = query.shape[1] // keys.shape[1]
    for i, (length, start) in enumerate(zip(seqused_k.tolist(), starts.tolist(), strict=False)):
        a, b = int(first[i]), int(first[i + 1])
        assert b - a <= most_q
        assert length <= most_k
        if not length or a == b:
            continue
        k, v = (t[start : start + length].repeat_interleave(group, 1) for t in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[a:b], k) * scale
        if causal:
            scores = scores.masked_fill(torch.ones(b - a, length).triu(length - (b - a) + 1).bool(), float("-inf"))
        lse[:, a:b] = scores.logsumexp(-1)
        out[a:b] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return out, lse, None, None, None


def seen_by_each() -> list[list[int]]:
    """The arena places that each of the ten queries of the plan sees."""
    places: list[list[int]] = []
    for span in OWN:
        for query in range(span.first, span.last):
            own = range(span.start, span.start + span.length - (span.last - 1 - query))
            shared = [s for level in SHARED for s in level if s.first <= query < s.last]
            places.append([*own, *(place for s in shared for place in range(s.start, s.start + s.length))])
    return places


def tensors() -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(heads, n, SIZE, generator=generator)
        for heads, n in ((HEADS, 10), (KV_HEADS, CAPACITY), (KV_HEADS, CAPACITY))
    )  # type: ignore[return-value]


def expected(query: Any, keys: Any, values: Any) -> Any:
    rows = []
    for i, places in enumerate(seen_by_each()):
        k, v = (t[:, places].repeat_interleave(HEADS // KV_HEADS, 0) for t in (keys, values))
        weight = (torch.einsum("hd,hkd->hk", query[:, i], k) * 0.3).softmax(-1)
        rows.append(torch.einsum("hk,hkd->hd", weight, v))
    return torch.stack(rows)


def plan(kernel: Any) -> AttentionPlan:
    return AttentionPlan(Arena(CAPACITY), torch.arange(10), OWN, SHARED, kernel)


def test_every_query_sees_its_text_and_nothing_else() -> None:
    query, keys, values = tensors()
    out = attend_by_span(query, keys, values, 0.3, plan(attend_by_span))
    assert torch.allclose(out, expected(query, keys, values), atol=1e-5)


def test_a_longer_run_is_read_in_two_parts_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MOST_MASKED", 1)
    query, keys, values = tensors()
    out = attend_by_span(query, keys, values, 0.3, plan(attend_by_span))
    assert torch.allclose(out, expected(query, keys, values), atol=1e-5)


def test_flash_attention_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", varlen)
    query, keys, values = tensors()
    out = attend_flash(query, keys, values, 0.3, plan(attend_flash))
    assert torch.allclose(out, expected(query, keys, values), atol=1e-5)


def test_spans_filled_up_for_a_recorded_pass_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", varlen)
    query, keys, values = tensors()
    filled = plan(attend_flash)
    filled.flash[query.device] = [FlashSpans.of(spans, 10, size=16) for spans in (OWN, *SHARED)]
    out = attend_flash(query, keys, values, 0.3, filled)
    assert torch.allclose(out, expected(query, keys, values), atol=1e-5)


def test_the_plain_kernel_equals_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves other devices, run here."""
    query, keys, values = tensors()
    rows, stretch = query[None], (keys[None, :, 5:90].repeat(1, 3, 1, 1), values[None, :, 5:90].repeat(1, 3, 1, 1))
    fast, slow = attention._attend(rows, *stretch, 0.3), attention._attend_plainly(rows, *stretch, 0.3)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(fast, slow, strict=True))
    masked = (*stretch, 0.3, attention._mask(query, 5, 85, 2))
    fast, slow = attention._attend(rows, *masked), attention._attend_plainly(rows, *masked)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(fast, slow, strict=True))
    square = (rows, *(t[:, :, :10] for t in stretch))
    fast, slow = attention._attend(*square, 0.3, causal=True), attention._attend_plainly(*square, 0.3, causal=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(fast, slow, strict=True))


def test_an_arena_hands_out_and_joins_stretches() -> None:
    rng = random.Random(0)
    arena, held = Arena(100), []
    for _ in range(2000):
        if held and rng.random() < 0.5:
            start, size = held.pop(rng.randrange(len(held)))
            part = rng.randint(0, size)
            arena.give(start + part, size - part)
            arena.give(start, part)
        else:
            size = rng.randint(1, 30)
            start = arena.take(size)
            if start is not None and arena.extend(start + size, 2):
                size += 2
            if start is not None:
                held.append((start, size))
        places = [place for start, size in held for place in range(start, start + size)]
        assert len(set(places)) == len(places)
        assert arena.free_tokens == 100 - len(places)
    for start, size in held:
        arena.give(start, size)
    assert arena.take(100) == 0


@pytest.mark.parametrize("change", [{}, {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}])
def test_only_attention_over_the_whole_past_is_packed(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = tiny_qwen(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | change
    if change:
        config["layer_types"] = ["sliding_attention"] * 2
    (folder / "config.json").write_text(json.dumps(config))
    packed = PackedModel.of(load_weights(folder, "fp32").model, 2**20)
    assert (packed is None) == bool(change)
    if packed:
        assert packed.room == 2**20 // 512


def test_a_model_with_attention_of_its_own_is_not_packed() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BloomConfig(vocab_size=100, hidden_size=32, n_layer=1, n_head=2)
    assert PackedModel.of(transformers.BloomForCausalLM(config).eval(), 2**20) is None


def test_positions_whose_encoding_changes_with_the_length_are_not_packed(tmp_path: Path) -> None:
    folder = tiny_qwen(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    assert PackedModel.of(load_weights(folder, "fp32").model, 2**20) is None
