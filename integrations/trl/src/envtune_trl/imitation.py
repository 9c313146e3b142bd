"""Imitation: training rows -> weights under which they are likelier."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from envtune_agents.errors import ScorerError
from envtune_agents.tape import TapeBranch
from envtune_trl.settings import TrainSettings
from envtune_trl.weights import Policy

WARM_UP_RATE = 5e-4
"""Learning rate of the warm-up with LoRA; all weights take a tenth of it."""
ROWS_PER_STEP = 4
"""So that a hundred rows are 25 steps, enough to teach the form of a call (ours)."""


def imitate_rows(
    policy: Policy,
    rows: Sequence[TapeBranch],
    settings: TrainSettings,
    *,
    epochs: int = 1,
    rate: float | None = None,
    rows_per_step: int = ROWS_PER_STEP,
) -> list[float]:
    """Teaches the policy these rows, token for token; gives the loss of each step.

    The loss is the mean negative log-likelihood of the sampled tokens. `rate` is the learning rate; without one
    `WARM_UP_RATE` holds.
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
    losses = []
    for start in range(0, len(order), rows_per_step):
        batch = order[start : start + rows_per_step]
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
