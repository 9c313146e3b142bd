"""The loss that TRL computes with our settings, and its gradient, against verl's formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import SETTINGS, STAGES, load

from envtune_trl import task_dataset
from envtune_trl.weights import load_policy


def verl_loss(logp: Any, old: Any, ref: Any, advantages: Any, mask: Any) -> Any:
    """verl's policy loss and k3 KL, written from its documented formula: clip, dual clip, mean over each sequence's
    tokens, mean over sequences."""
    ratio = torch.exp(logp - old)
    plain, clipped = -advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.28)
    loss = torch.maximum(plain, clipped)
    loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * 10.0), loss)
    kl = torch.exp(ref - logp) - (ref - logp) - 1
    each = ((loss + 0.1 * kl) * mask).sum(-1) / mask.sum(-1)
    return each.mean()


def test_the_loss_and_its_gradient_are_verls(model: Path, tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    policy = load_policy(model, replace(SETTINGS, lora=0), None)
    options = replace(SETTINGS, lora=0, entropy=0.0).grpo_options(replace(STAGES[0], prompts=2, samples=2), tmp_path, 1)
    options.pop("gradient_checkpointing")
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(**options, bf16=False, use_cpu=True),
        train_dataset=task_dataset(load("train", None)),
        processing_class=policy.weights.tokenizer,
    )
    torch.manual_seed(0)
    rows, width = 4, 12
    prompt, completion = torch.randint(0, 400, (rows, 5)), torch.randint(0, 400, (rows, width))
    completion_mask = torch.ones(rows, width, dtype=torch.long)
    completion_mask[1, 9:] = 0
    tool_mask = (torch.rand(rows, width) < 0.6).long()
    tool_mask[:, 0] = 1
    model_now = trainer.model.eval()
    with torch.no_grad():
        now = _logprobs(model_now, prompt, completion)
    old = now - torch.empty(rows, width).uniform_(-3.0, 3.5)  # ratios from 0.05 to 33: every branch of the formula
    ref = now + torch.empty(rows, width).uniform_(-1.0, 1.0)
    advantages = torch.tensor([1.0, -1.0, 0.5, -2.0])
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": tool_mask.sum(),
    }
    theirs = trainer._compute_loss(model_now, inputs)
    gradients = torch.autograd.grad(theirs, list(model_now.parameters()))
    ours = verl_loss(
        _logprobs(model_now, prompt, completion), old, ref, advantages[:, None], completion_mask * tool_mask
    )
    expected = torch.autograd.grad(ours, list(model_now.parameters()))
    assert float(theirs) == pytest.approx(float(ours), rel=1e-5)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)


def _logprobs(model: Any, prompt: Any, completion: Any) -> Any:
    ids = torch.cat([prompt, completion], 1)
    logits = model(input_ids=ids[:, :-1]).logits[:, prompt.shape[1] - 1 :]
    return logits.log_softmax(-1).gather(2, completion[..., None])[..., 0]
