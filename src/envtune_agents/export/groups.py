"""Rollouts -> groups: the rollouts of one task beside each other, as group RL compares them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import fmean, pstdev
from typing import Any

from envtune_agents.errors import RecordError
from envtune_agents.tape import branches_of
from envtune_agents.types import Rollout

_SAME = ("model", "stage", "hint_level")


def grouped(rollouts: Iterable[Rollout]) -> Iterator[list[Rollout]]:
    """The rollouts of each task, in the order in which tasks first appear. Holds all of them in memory.

    Raises `RecordError` when a task was played by different models, at different stages or levels of the dial, or when
    a rollout appears twice: such a group compares unlike things.
    """
    groups: dict[str, list[Rollout]] = {}
    seen: set[str] = set()
    for rollout in rollouts:
        if rollout.rollout_id in seen:
            raise RecordError(
                f"{rollout.rollout_id} appears twice: the file mixes runs. Export each run by itself, or narrow it "
                "with --where."
            )
        seen.add(rollout.rollout_id)
        groups.setdefault(rollout.task_id, []).append(rollout)
    for task_id, group in groups.items():
        for name in _SAME:
            values = sorted({str(getattr(rollout, name)) for rollout in group if rollout.turns})
            if len(values) > 1:
                raise RecordError(
                    f"The rollouts of {task_id} mix {name} {' and '.join(map(repr, values))}; a group compares like "
                    f'with like. Choose one with --where "{name} == …".'
                )
        yield group


def to_grpo_groups(rollouts: Iterable[Rollout]) -> Iterator[dict[str, Any]]:
    """One row for each task: its rollouts with their rewards and token-continuous branches.

    `rollouts[].branches[]` hold `prompt_ids`, `completion_ids`, `loss_mask` (0 for context and for replies that a
    grammar limited, which are not on-policy) and `logprobs`. `reward_mean` and `reward_std` (of the population) are
    those of the group. A rollout with an error or without an on-policy token is left out, and so is a group in which
    fewer than two remain.
    """
    for group in grouped(rollouts):
        rows = [row for rollout in group if (row := _row(rollout))]
        if len(rows) < 2:
            continue
        rewards = [row["reward"] for row in rows]
        yield {
            "task_id": group[0].task_id,
            "category": group[0].category,
            "model": group[0].model,
            "stage": group[0].stage,
            "hint_level": group[0].hint_level,
            "reward_mean": fmean(rewards),
            "reward_std": pstdev(rewards),
            "rollouts": rows,
        }


def _row(rollout: Rollout) -> dict[str, Any] | None:
    branches = [branch for branch in branches_of(rollout) if any(branch.on_policy_mask)]
    if rollout.reward is None or not branches:
        return None
    return {
        "rollout_id": rollout.rollout_id,
        "reward": rollout.reward,
        "branches": [
            {
                "prompt_ids": list(branch.prompt_ids),
                "completion_ids": list(branch.completion_ids),
                "loss_mask": list(branch.on_policy_mask),
                "logprobs": list(branch.logprobs),
            }
            for branch in branches
        ],
    }
