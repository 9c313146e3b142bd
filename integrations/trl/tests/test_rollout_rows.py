"""From episodes to the rows that the trainer wants, and the help that follows each task's success."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import STAGES, rollouts_of

from envtune_agents.curriculum import DifficultyController
from envtune_agents.errors import ScorerError, TaskError
from envtune_agents.playground import Playground, generated_tasks
from envtune_agents.progress import FORMAT_REWARD, RewardMix
from envtune_agents.types import CallOutcome, StopReason, Task
from envtune_trl import task_dataset
from envtune_trl.tally import means, tally_of


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
    step = rollout.turns[0].steps[0]
    silent, called = (replace(rollout.turns[0], steps=(replace(step, outcomes=made),)) for made in ((), (outcome,)))
    pair = [replace(rollout, turns=(called,), sample=1), replace(rollout, turns=(silent,))]
    assert means([tally_of(pair, FORMAT_REWARD)])["mixed_groups"] == 1.0
    assert means([tally_of(pair, RewardMix(progress=1.0))])["mixed_groups"] == 0.0
    without_tokens = replace(rollout, turns=(replace(silent, steps=()),))
    told = means([tally_of([pair[0], without_tokens], FORMAT_REWARD)])
    assert told["mixed_groups"] == 0.0
    assert told["reward_format"] == FORMAT_REWARD(pair[0]) > 0  # the mean over what is trained on


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


def test_an_environment_that_cannot_be_made_ends_its_own_episode_only(model: Path) -> None:
    play, (good, bad, *_) = rollouts_of(model), generated_tasks(0, 4, "base")

    def made(task: Task) -> Playground:
        if task is bad:
            raise OSError("no room")
        return Playground(task)

    play.source = replace(play.source, environment=made)
    fine, failed = play.play([good, bad])
    play.engine.close()
    assert fine.error is None
    assert failed.error is not None
    assert "OSError: no room" in failed.error
    assert play.rows([fine, failed])["reward"][1] is None


def test_an_episode_ends_where_the_limits_of_its_stage_do(model: Path) -> None:
    task = generated_tasks(0, 40, "base", domains=("mail",))[0]
    whole, short = (replace(STAGES[0], max_response_tokens=limit) for limit in (10_000, 12))
    for stage in (whole, short):
        play = rollouts_of(model, stage)
        play.settings = replace(play.settings, max_tokens=8, max_steps_per_turn=4)
        (rollout,) = play.play([task])
        play.engine.close()
        first = rollout.turns[0].steps[0]
        ids = play.rows([rollout])["completion_ids"][0]
        assert (rollout.stop_reason is StopReason.CONTEXT) == (stage is short)
        assert rollout.reward is not None
        assert (len(ids) <= 12) == (stage is short)
        assert play.rows([rollout])["prompt_ids"][0] == list(first.prompt_token_ids or ())


def test_where_the_trainer_evaluates_rollouts_are_greedy_without_hints_and_teach_the_controller_nothing(
    model: Path,
) -> None:
    play = rollouts_of(model, STAGES[1])
    play.difficulty = DifficultyController(start=2, patience=1, ceiling=2)
    prompt = task_dataset(list(play.tasks.values()))[0]["prompt"]
    trainer = SimpleNamespace(model=torch.nn.Module().eval(), state=SimpleNamespace(global_step=0))
    evaluated = play([prompt, prompt], trainer)
    assert evaluated["completion_ids"][0] == evaluated["completion_ids"][1]
    assert evaluated["notes"][0]["hint_level"] == 0
    assert (play.notes, play.difficulty.state()["levels"]) == ([], {})
    trainer.model.train()
    trained = play([prompt, prompt], trainer)
    assert trained["completion_ids"][0] != trained["completion_ids"][1]
    assert trainer.model.training
    assert trained["notes"][0]["hint_level"] == 2
    assert list(play.successes) == [prompt[0]["task_id"]]
    with pytest.raises(TaskError, match="names the task 'nobody'"):
        play([[{"role": "user", "content": "x", "task_id": "nobody"}]], trainer)
    play.engine.close()


def test_adaptive_help_follows_each_tasks_success(model: Path) -> None:
    play = rollouts_of(model, STAGES[1])
    play.difficulty = DifficultyController(start=1, patience=1, ceiling=STAGES[1].hint_level)
    task, other = list(play.tasks.values())[:2]
    play.play([task] * 2)
    play.engine.close()
    assert play.level(task) == 2  # it fails, and gets one level more, up to the stage's
    assert play.level(other) == 1
    play.difficulty.observe(task.task_id, [0.0])
    assert play.level(task) == 2
