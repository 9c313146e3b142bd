"""A finished rollout -> the rows that verl trains: one for each token-continuous branch, with reward and parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from envtune_agents.errors import ScorerError
from envtune_agents.progress import RewardMix, format_reward
from envtune_agents.tape import Tape, TapeBranch, tape_of
from envtune_agents.types import Rollout, StopReason

_REWARD_BITS = 19
"""Significant bits of a training reward, so that the sum of up to 32 equal ones is exact in 32-bit floats."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One branch as verl wants it; the last three have one length, at most `rollout.response_length`."""

    prompt_ids: list[int]
    """At most `rollout.prompt_length`."""
    response_ids: list[int]
    response_mask: list[int]
    """1 where the policy sampled the token, 0 where it is context."""
    response_logprobs: list[float]
    """0.0 where the token is context."""


def training_rows(rollout: Rollout, max_prompt: int, max_response: int) -> list[TrainingRow]:
    """The rows of a rollout that hold a token to train on; none when it has none.

    A branch whose prompt is longer than `max_prompt` (tools appeared late in the episode) gives the rest of it to the
    response, as context.
    """
    rows = [_row(branch, max_prompt, max_response) for branch in tape_of(rollout).branches]
    return [row for row in rows if any(row.response_mask)]


def _row(branch: TapeBranch, max_prompt: int, max_response: int) -> TrainingRow:
    spilled = branch.prompt_ids[max_prompt:]
    return TrainingRow(
        list(branch.prompt_ids[:max_prompt]),
        list((*spilled, *branch.completion_ids)[:max_response]),
        [*[0] * len(spilled), *branch.on_policy_mask][:max_response],
        [*[0.0] * len(spilled), *branch.logprobs][:max_response],
    )


def untrainable_row(rollout: Rollout, pad: int, max_prompt: int) -> TrainingRow:
    """A row for a rollout that verl must count although nothing of it can be trained."""
    prompt = next((branch.prompt_ids for branch in tape_of(rollout).branches), (pad,))
    return TrainingRow(list(prompt[:max_prompt]), [pad], [0], [0.0])


def reward_of(rollout: Rollout, reward: RewardMix, *, validation: bool) -> float:
    """The number that verl gets: the stage's mix in training, the progress in validation.

    A rollout with an error is worth 0 in validation; in training it raises `ScorerError`, because a made-up 0 would
    shift the advantages of its whole group.
    """
    if rollout.error is not None or rollout.reward is None:
        if validation:
            return 0.0
        raise ScorerError(f"The rollout {rollout.rollout_id} has no reward, it ended with: {rollout.error}.")
    return rollout.reward if validation else summable(reward(rollout))


def summable(reward: float) -> float:
    """The reward, off by two millionths of it at most, as a number whose group mean verl computes exactly.

    verl 0.9 takes the mean of a group in 32-bit floats and divides by a deviation of 0 + 1e-6: sixteen times 0.9 have a
    mean that is not 0.9, and the whole group an advantage of 0.1 or more instead of 0.
    """
    mantissa, exponent = math.frexp(reward)
    return math.ldexp(round(math.ldexp(mantissa, _REWARD_BITS)), exponent - _REWARD_BITS)


def reward_extra_info(rollout: Rollout, reward: RewardMix) -> dict[str, float]:
    """What verl reports for each rollout beside its reward; always the same keys.

    `acc` is the verdict: verl puts it first and counts rollouts that are missing as 0.
    """
    tape: Tape = tape_of(rollout)
    steps = [step for turn in rollout.turns for step in turn.steps]
    outcomes = [outcome for step in steps for outcome in step.outcomes]
    scored = [turn.score.value for turn in rollout.turns if turn.score is not None]
    mixed = 0.0 if rollout.error else reward(rollout)
    return {
        "acc": float(rollout.solved),
        "progress": rollout.reward or 0.0,
        "format": format_reward(rollout) if steps else 0.0,
        "mix": mixed,
        "turns_closed": len(scored) / max(rollout.n_turns, 1),
        "steps": float(len(steps)),
        "calls": float(len(outcomes)),
        "failed_calls": float(sum(outcome.failure is not None for outcome in outcomes)),
        "hints": float(sum(outcome.hint is not None for outcome in outcomes)),
        "branches": float(len(tape.branches)),
        "drifted": float(tape.drifted),
        "truncated": float(rollout.stop_reason is StopReason.CONTEXT),
        "error": float(rollout.error is not None),
    }


def chat_turns(rollout: Rollout) -> int:
    """Messages of the episode: the user's, the model's and the tools'."""
    steps = [step for turn in rollout.turns for step in turn.steps]
    return len(rollout.turns) + len(steps) + sum(len(step.outcomes) for step in steps)
