"""Many LoRA policies over one set of weights, run in one batch: fifteen training runs cost little more than one.

A plain forward pass of the Llama and Qwen3 architectures (they differ by the norms of q and k) in which every row of
the batch has its own adapter. In: a transformers model. Out: logits; keys and values go into slots, so that the next
reply of a conversation costs only its new tokens. Checked against transformers' own forward pass in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from envtune_agents.weights.packed import can_pack_full

LINEARS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
LM_HEAD = "lm_head.weight"


class Adapters:
    """The LoRA weights of all runs: for each layer and linear, A [runs, d_in, r] and B [runs, r, d_out], in fp32."""

    def __init__(self, base: Base, runs: int, rank: int, seeds: list[int], alpha: float | None = None) -> None:
        self.runs, self.rank = runs, rank
        self.scale = (alpha or 2.0 * rank) / rank
        self.a: dict[str, Tensor] = {}
        self.b: dict[str, Tensor] = {}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for name, weight in base.linears.items():
            d_out, d_in = weight.shape
            bound = 1 / math.sqrt(d_in)
            rows = [torch.empty(d_in, rank).uniform_(-bound, bound, generator=g) for g in generators]
            self.a[name] = torch.stack(rows).to(base.device).requires_grad_()
            self.b[name] = torch.zeros(runs, rank, d_out, device=base.device).requires_grad_()

    def parameters(self) -> list[Tensor]:
        return [*self.a.values(), *self.b.values()]

    def state(self) -> dict[str, Tensor]:
        return {f"{name}.{kind}": t.detach() for kind in "ab" for name, t in getattr(self, kind).items()}

    def load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for kind in "ab":
                for name, tensor in getattr(self, kind).items():
                    tensor.copy_(state[f"{name}.{kind}"])

    def for_rows(self, rows: Tensor, dtype: torch.dtype) -> RowAdapters:
        """The adapters of a batch: `rows` holds the run of each row. Differentiable."""
        if self.runs == 1:
            pick = {name: (a[0].to(dtype), (self.b[name][0] * self.scale).to(dtype)) for name, a in self.a.items()}
        else:
            pick = {
                name: (a.to(dtype)[rows], (self.b[name] * self.scale).to(dtype)[rows]) for name, a in self.a.items()
            }
        return RowAdapters(pick)

    def grad_norms(self) -> Tensor:
        """Gradient norm of each run, length `runs`."""
        squares = [t.grad.flatten(1).square().sum(1) for t in self.parameters() if t.grad is not None]
        return torch.stack(squares).sum(0).sqrt()

    def scale_grads(self, factors: Tensor) -> None:
        for t in self.parameters():
            if t.grad is not None:
                t.grad.mul_(factors[:, None, None])


@dataclass(frozen=True, slots=True)
class RowAdapters:
    """A and scaled B for each row of a batch (or shared by all rows when there is one run)."""

    pairs: dict[str, tuple[Tensor, Tensor]]

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """`y` ([n, T, d_out]) plus what the adapters make of `x` ([n, T, d_in])."""
        a, b = self.pairs[name]
        if a.dim() == 2:
            return y + (x @ a) @ b
        return torch.baddbmm(y, torch.bmm(x, a), b)


class Base:
    """The shared weights, as plain tensors."""

    def __init__(self, model: Any, *, trainable: bool = False) -> None:
        config = model.config
        state = {name: t.detach() for name, t in model.state_dict().items()}
        self.device = next(iter(state.values())).device
        self.layers = config.num_hidden_layers
        self.heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        self.inv_freq = model.model.rotary_emb.inv_freq.detach().float().to(self.device)
        self.weights = {name.removeprefix("model."): t.clone() for name, t in state.items()}
        if LM_HEAD not in self.weights or config.tie_word_embeddings:
            self.weights[LM_HEAD] = self.weights["embed_tokens.weight"]
        self.dtype = self.weights["embed_tokens.weight"].dtype
        self.linears = {
            f"layers.{layer}.{path}": self.weights[f"layers.{layer}.{path}.weight"]
            for layer in range(self.layers)
            for path in LINEARS.values()
        }
        self.packed: dict[str, Tensor] = {}
        self.qk_norm = "layers.0.self_attn.q_norm.weight" in self.weights
        if trainable:
            for t in self.weights.values():
                t.requires_grad_()

    def parameters(self) -> list[Tensor]:
        return list({id(t): t for t in self.weights.values()}.values())

    def pack(self) -> None:
        """Keeps a copy of fp32 weights on a CPU in the order in which it multiplies them, for passes without gradients:
        with a few rows, as in decoding, putting them into that order each time takes longer than the product."""
        if self.device.type != "cpu" or self.dtype != torch.float32 or not can_pack_full():
            return
        for name, weight in {**self.linears, LM_HEAD: self.weights[LM_HEAD]}.items():
            self.packed[name] = torch.ops.mkldnn._reorder_linear_weight(weight, 16)

    def merge(self, adapters: Adapters, run: int = 0) -> None:
        """Adds one run's adapter to the weights for good."""
        self.packed.clear()
        with torch.no_grad():
            for name, weight in self.linears.items():
                delta = (adapters.a[name][run] @ adapters.b[name][run]) * adapters.scale
                weight += delta.T.to(weight.dtype)

    # --- forward ---

    def hidden(
        self, ids: Tensor, positions: Tensor, lora: RowAdapters | None, attend: Any, checkpoint: bool = False
    ) -> Tensor:
        """Last hidden states [n, T, d]; `attend(layer, q, k, v)` does the attention."""
        x = functional.embedding(ids, self.weights["embed_tokens.weight"])
        angles = positions[..., None].float() * self.inv_freq
        cos, sin = (torch.cat((f(angles), f(angles)), -1).to(self.dtype)[:, None] for f in (torch.cos, torch.sin))
        for layer in range(self.layers):
            if checkpoint:
                x = torch.utils.checkpoint.checkpoint(
                    self._layer, layer, x, cos, sin, lora, attend, use_reentrant=False
                )
            else:
                x = self._layer(layer, x, cos, sin, lora, attend)
        return self._norm(x, "norm.weight")

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits of hidden states of any leading shape."""
        return self._product(LM_HEAD, hidden, self.weights[LM_HEAD]).float()

    def _layer(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, lora: RowAdapters | None, attend: Any) -> Tensor:
        at = f"layers.{layer}."
        h = self._norm(x, at + "input_layernorm.weight")
        q, k, v = (self._linear(at + f"self_attn.{name}", h, lora) for name in ("q_proj", "k_proj", "v_proj"))
        q, k, v = (t.view(*t.shape[:2], -1, self.head_dim) for t in (q, k, v))
        if self.qk_norm:
            q, k = self._norm(q, at + "self_attn.q_norm.weight"), self._norm(k, at + "self_attn.k_norm.weight")
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        mixed = attend(layer, q, k, v).transpose(1, 2).flatten(2)
        x = x + self._linear(at + "self_attn.o_proj", mixed, lora)
        h = self._norm(x, at + "post_attention_layernorm.weight")
        gate, up = self._linear(at + "mlp.gate_proj", h, lora), self._linear(at + "mlp.up_proj", h, lora)
        return x + self._linear(at + "mlp.down_proj", functional.silu(gate) * up, lora)

    def _linear(self, name: str, x: Tensor, lora: RowAdapters | None) -> Tensor:
        y = self._product(name, x, self.linears[name])
        return y if lora is None else lora.add(name, x, y)

    def _product(self, name: str, x: Tensor, weight: Tensor) -> Tensor:
        if name not in self.packed or torch.is_grad_enabled():
            return functional.linear(x, weight)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed[name], None, "none", [], "")
        return product

    def _norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weights[name]

    def attend_whole(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within whole, right-padded sequences: for training."""
        groups = self.heads // self.kv_heads
        k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class Slots:
    """Keys and values of many conversations, each in its own slot of fixed length."""

    def __init__(self, base: Base, slots: int, length: int) -> None:
        shape = (slots, base.kv_heads, length + 1, base.head_dim)  # one place more, for what nobody reads
        self.keys = [torch.zeros(shape, dtype=base.dtype, device=base.device) for _ in range(base.layers)]
        self.values = [torch.zeros(shape, dtype=base.dtype, device=base.device) for _ in range(base.layers)]
        self.length = length
        self._base = base

    def copy(self, donor: int, slot: int, tokens: int) -> None:
        """The first `tokens` of one slot become those of another."""
        for held in (*self.keys, *self.values):
            held[slot, :, :tokens] = held[donor, :, :tokens]

    def read(
        self, rows: Tensor, ids: Tensor, start: Tensor, counts: Tensor, seen: int, lora: RowAdapters | None
    ) -> Tensor:
        """Reads new tokens into slots; fp32 logits of each row's last new token, [n, vocab].

        `rows`: slots, [n]. `ids`: right-padded, [n, T]. `start`: tokens already in each slot. `counts`: new ones.
        `seen`: largest sum of the two.
        """
        base = self._base
        n, width = ids.shape
        offsets = torch.arange(width, device=ids.device)
        positions = start[:, None] + offsets
        real = offsets < counts[:, None]
        places = torch.where(real, positions, self.length)
        positions = positions.clamp(max=self.length)
        seen = min(-(-seen // 64) * 64, self.length)
        mask = (torch.arange(seen, device=ids.device) <= positions[..., None])[:, None]
        everything = width == 1 and n == self.keys[0].shape[0]  # a decode step of all slots comes in their order
        groups = base.heads // base.kv_heads

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            keys[rows[:, None], :, places] = k.transpose(1, 2)
            values[rows[:, None], :, places] = v.transpose(1, 2)
            held = [t[:, :, :seen] for t in (keys, values)]
            mine = held if everything else [t[rows] for t in held]
            if width == 1:
                return _attend_one(q, mine[0], mine[1], mask, groups)
            wide = [t.repeat_interleave(groups, 1) for t in mine]
            return functional.scaled_dot_product_attention(q, wide[0], wide[1], attn_mask=mask)

        hidden = base.hidden(ids, positions, lora, attend)
        last = hidden[torch.arange(n, device=ids.device), counts.clamp(min=1) - 1]
        return base.logits(last)


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, groups: int) -> Tensor:
    """Attention of one new token over a slot, without copying the slot. q: [n, heads, 1, d]."""
    n, heads, _, d = q.shape
    q = q.view(n, heads // groups, groups, d)
    scores = (q @ keys.transpose(2, 3)) * (1 / math.sqrt(d))
    scores = scores.float().masked_fill(~mask, float("-inf"))
    mixed = scores.softmax(-1).to(q.dtype) @ values
    return mixed.view(n, heads, 1, d)
