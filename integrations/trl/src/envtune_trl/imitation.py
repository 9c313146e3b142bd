"""A supervised warm-up on rollouts: for a model that cannot call tools yet, or to start from a better one."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from envtune_agents.errors import ScorerError
from envtune_agents.rollout import read_rollouts
from envtune_agents.tape import TapeBranch, branches_of
from envtune_agents.types import Rollout
from envtune_trl.settings import TrainSettings
from envtune_trl.weights import Policy

WARM_UP_RATE = 5e-4
"""Learning rate of the warm-up with LoRA; all weights take a tenth of it."""


def imitate(policy: Policy, rollouts: Path, settings: TrainSettings, *, epochs: int = 1) -> list[float]:
    """Teaches the policy the rollouts that earned something, token for token; gives the loss of each step."""
    rows = [row for rollout in read_rollouts(rollouts) if _worthy(rollout) for row in branches_of(rollout)]
    return imitate_rows(policy, rows, settings, epochs=epochs)


def imitate_rows(
    policy: Policy, rows: list[TapeBranch], settings: TrainSettings, *, epochs: int = 1, rate: float | None = None
) -> list[float]:
    """Teaches the policy these rows: mean negative log-likelihood of the sampled tokens, four micro-batches a step.

    `rate` is the learning rate; without one `WARM_UP_RATE` holds.
    """
    import torch

    rows = [row for row in rows if any(row.loss_mask)]
    if not rows:
        raise ScorerError(
            "No rollout has tokens and a reward to imitate. Collect some with a model that reports tokens."
        )
    model = policy.model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    rate = rate or (WARM_UP_RATE if settings.lora else WARM_UP_RATE / 10)
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    order = [row for _ in range(epochs) for row in Random(settings.seed).sample(rows, k=len(rows))]
    size = 4 * settings.micro_batch
    losses = []
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        total = 0.0
        for row in batch:
            loss = _loss(model, row) / len(batch)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    model.eval()
    return losses


def _loss(model: Any, row: TapeBranch) -> Any:
    import torch

    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]], device=model.device)
    mask = torch.tensor([*[False] * len(row.prompt_ids), *map(bool, row.loss_mask)], device=model.device)
    logits = model(input_ids=ids[:, :-1]).logits[0].float()
    chosen = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return -chosen[mask[1:]].mean()


def _worthy(rollout: Rollout) -> bool:
    return rollout.error is None and bool(rollout.reward)
