"""Training rows -> gradients for all runs at once: GRPO with the paper's loss, and supervised rows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from packed import Adapters, Base, RowAdapters
from shared_prompts import Attention, Batch, TrainRow, batches
from torch import Tensor

CLIP_LOW, CLIP_HIGH, DUAL_CLIP, KL_COEF = 0.2, 0.28, 10.0, 0.1


def token_losses(logprob: Tensor, old: Tensor, reference: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
    """verl's GRPO loss of each token, and its k3 KL to the reference (added with weight `KL_COEF` by the caller)."""
    ratio = (logprob - old).exp()
    plain = -advantage * ratio
    clipped = -advantage * ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    loss = torch.maximum(plain, clipped)
    loss = torch.where(advantage < 0, torch.minimum(-advantage * DUAL_CLIP, loss), loss)
    gap = reference - logprob
    return loss, gap.exp() - gap - 1


@dataclass(slots=True)
class Learned:
    """What one backward pass over all rows showed, for each run."""

    kl: list[float]
    mismatch: list[float]
    """Mean absolute difference between the log-probability when sampled and when trained."""
    entropy: list[float]
    """Mean of minus the log-probability of the sampled tokens."""
    tokens: int


def backward(
    base: Base, adapters: Adapters, rows: Sequence[TrainRow], max_tokens: int, *, kl_coef: float = KL_COEF
) -> Learned:
    """Adds the gradients of all rows to the adapters. Every run's loss is the mean over its rows of token means."""
    count = [0] * adapters.runs
    for row in rows:
        count[row.run] += 1
    sums = torch.zeros(3, adapters.runs, device=base.device)
    tokens = 0
    for run in sorted({row.run for row in rows}):
        for batch in batches([row for row in rows if row.run == run], max_tokens):
            tokens += batch.length
            _one(base, adapters, run, batch, count[run], sums, kl_coef)
    shares = torch.tensor([max(c, 1) for c in count], device=base.device)
    kl, mismatch, entropy = (sums / shares).tolist()
    return Learned(kl, mismatch, entropy, tokens)


def _one(base: Base, adapters: Adapters, run: int, batch: Batch, count: int, sums: Tensor, kl_coef: float) -> None:
    device = base.device
    ids, positions = (torch.tensor([held], device=device) for held in (batch.ids, batch.positions))
    sources, targets, owner = (
        torch.tensor(held, device=device) for held in (batch.sources, batch.targets, batch.owner)
    )
    attend = Attention(base, batch)

    def logprobs(lora: RowAdapters | None) -> Tensor:
        logits = base.logits(base.hidden(ids, positions, lora, attend)[0, sources])
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)

    rows = batch.rows
    with torch.no_grad():
        reference = logprobs(None) if kl_coef and not all(row.supervised for row in rows) else None
    logprob = logprobs(adapters.for_rows(torch.tensor([run], device=device), base.dtype))
    advantage = torch.tensor([row.advantage for row in rows], device=device)[owner]
    supervised = torch.tensor([row.supervised for row in rows], device=device)[owner]
    kl = torch.zeros_like(logprob)
    loss = -logprob
    if reference is not None:
        policy, kl = token_losses(logprob, logprob.detach(), reference, advantage)
        loss = torch.where(supervised, loss, policy + kl_coef * kl)
    share = 1 / torch.tensor([max(sum(row.mask), 1) for row in rows], device=device)[owner]
    (loss * share / count).sum().backward()
    with torch.no_grad():
        recorded = torch.tensor(batch.recorded, device=device)
        for index, part in enumerate((kl, (logprob - recorded).abs(), -logprob)):
            sums[index, run] += (part * share).sum()


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """GRPO's advantages of one group: (reward - mean) / (standard deviation + 1e-4); all 0 when all are equal."""
    mean = sum(rewards) / len(rewards)
    spread = (sum((reward - mean) ** 2 for reward in rewards) / max(len(rewards) - 1, 1)) ** 0.5
    return [(reward - mean) / (spread + 1e-4) for reward in rewards]


class Optimizer:
    """AdamW over all runs, with each run's gradient clipped by its own norm. A run whose gradient is not finite is
    skipped for this step and counted."""

    def __init__(self, adapters: Adapters, lr: float, max_norm: float = 1.0) -> None:
        self.adapters, self.max_norm = adapters, max_norm
        self.adam = torch.optim.AdamW(adapters.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)

    def step(self) -> list[float]:
        """One update; the gradient norm of each run before clipping."""
        norms = self.adapters.grad_norms()
        finite = norms.isfinite()
        factors = torch.where(finite, (self.max_norm / (norms + 1e-6)).clamp(max=1.0), 0.0)
        for tensor in self.adapters.parameters():
            if tensor.grad is not None:
                torch.nan_to_num_(tensor.grad, 0.0, 0.0, 0.0)
        self.adapters.scale_grads(factors)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return [float(norm) for norm in norms]

    def state(self) -> dict[str, Tensor]:
        found = {}
        for index, tensor in enumerate(self.adapters.parameters()):
            for name, value in self.adam.state.get(tensor, {}).items():
                found[f"{index}.{name}"] = value if torch.is_tensor(value) else torch.tensor(float(value))
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        for index, tensor in enumerate(self.adapters.parameters()):
            names = ("step", "exp_avg", "exp_avg_sq")
            if f"{index}.step" in state:
                self.adam.state[tensor] = {
                    name: state[f"{index}.{name}"].to("cpu" if name == "step" else tensor.device) for name in names
                }
