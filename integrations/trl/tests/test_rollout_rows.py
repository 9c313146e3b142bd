"""From episodes to the rows that the trainer wants, and the help that follows each task's success."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import STAGES, rollouts_of

from envtune_agents.curriculum import DifficultyController
from envtune_agents.errors import ScorerError
from envtune_agents.progress import FORMAT_REWARD, RewardMix
from envtune_agents.types import CallOutcome
from envtune_trl import task_dataset
from envtune_trl.rollouts import summary_of


def test_rows_are_the_sampled_tokens_with_masks_and_rewards(model: Path) -> None:
    play = rollouts_of(model)
    prompts = [row["prompt"] for row in task_dataset(list(play.tasks.values()))][:2]
    rollouts = play.play([play.tasks[prompt[0]["task_id"]] for prompt in prompts for _ in range(2)])
    rows = play.rows(rollouts)
    assert [rollout.sample for rollout in rollouts] == [0, 1, 0, 1]
    for index, rollout in enumerate(rollouts):
        step = rollout.turns[0].steps[0]
        assert tuple(rows["prompt_ids"][index]) == step.prompt_token_ids
        assert tuple(rows["completion_ids"][index][: len(step.completion_token_ids)]) == step.completion_token_ids
        sampled = sum(len(step.completion_token_ids) for turn in rollout.turns for step in turn.steps)
        assert sum(rows["env_mask"][index]) <= sampled
        assert len(rows["env_mask"][index]) == len(rows["logprobs"][index]) == len(rows["completion_ids"][index])
        assert rows["reward"][index] == FORMAT_REWARD(rollout)
    play.engine.close()


def test_groups_are_told_apart_by_the_stages_own_reward(model: Path) -> None:
    play = rollouts_of(model)
    rollout = play.play([next(iter(play.tasks.values()))])[0]
    play.engine.close()
    outcome = CallOutcome("list_bookings", {}, "{}", "{}")
    called = replace(rollout.turns[0], steps=(replace(rollout.turns[0].steps[0], outcomes=(outcome,)),))
    pair = [replace(rollout, turns=(called,), sample=1), replace(rollout, turns=(replace(called, steps=()),))]
    assert summary_of(pair, FORMAT_REWARD)["mixed_groups"] == 1.0
    assert summary_of(pair, RewardMix(progress=1.0))["mixed_groups"] == 0.0


def test_rollouts_without_a_trainable_token_are_an_error_with_its_cause(model: Path) -> None:
    play = rollouts_of(model)
    rollout = play.play([next(iter(play.tasks.values()))])[0]
    play.engine.close()
    failed = replace(rollout, turns=(), reward=None, error="ContextOverflowError: too long")
    with pytest.raises(ScorerError, match="1 x ContextOverflowError: too long"):
        play.rows([failed])
    rows = play.rows([failed, rollout])
    assert rows["reward"][0] is None
    assert sum(rows["env_mask"][0]) == 0


def test_adaptive_help_follows_each_tasks_success(model: Path) -> None:
    play = rollouts_of(model, STAGES[1])
    play.difficulty = DifficultyController(start=1, patience=1)
    task, other = list(play.tasks.values())[:2]
    play.play([task] * 2)
    play.engine.close()
    assert play.level(task) == 2  # it fails, and gets one level more, up to the stage's
    assert play.level(other) == 1
    play.difficulty.observe(task.task_id, [0.0])
    assert play.level(task) == 2
