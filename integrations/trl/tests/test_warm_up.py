"""Imitation: of what, when a stage cannot begin without it, and what is never imitated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_training import SETTINGS, STAGES, load, rollouts_of, source

from envtune_agents.curriculum import Move, Silence
from envtune_agents.errors import RecordError, ScorerError
from envtune_agents.playground import Playground, generated_tasks
from envtune_agents.progress import RewardMix
from envtune_agents.rollout import collect
from envtune_agents.tape import TapeBranch, TapeSpan, branches_of
from envtune_agents.task_source import find_task_source
from envtune_agents.testing import TaughtModel
from envtune_agents.types import RolloutTurn, Task
from envtune_trl import train
from envtune_trl.imitation import imitate_rows
from envtune_trl.progress import METRICS, metrics_of, signal_of
from envtune_trl.warm_up import Lessons, find_lessons, from_file, make_warm_up, read_warm_up
from envtune_trl.weights import load_policy


def interrupted(task: Task) -> Any:
    raise KeyboardInterrupt


def test_a_model_that_cannot_begin_is_warmed_up_and_begins_again(model: Path, tmp_path: Path) -> None:
    stage = replace(STAGES[0], max_steps=3)
    settings = replace(SETTINGS, evaluate_every=3, save_every=3, validation_tasks=1)
    cut = replace(source(), solution=interrupted)
    known = replace(source(), solution=find_task_source("playground").solution)
    given: dict[str, Any] = {"out": tmp_path, "stages": (stage,), "settings": settings, "warm_up": "auto"}
    with pytest.raises(KeyboardInterrupt):
        train(model, cut, **given)
    done = train(model, known, **given)  # finds out once more what a kill in the middle of the warm-up lost
    assert done.finished
    restart = done.curriculum.decisions[0]
    assert (restart.move, restart.step) == (Move.RESTART, 3)
    assert restart.reasons[0].startswith("steps 1 to 3: every group's rewards are equal")
    assert restart.reasons[1].startswith("Warmed up by imitating 4 rollouts (the solutions of training tasks); loss ")
    assert (tmp_path / "one.cold" / METRICS).exists()
    assert [json.loads(line)["step"] for line in (tmp_path / "one" / METRICS).open()] == [1, 2, 3]


def test_a_restart_that_was_cut_off_is_made_when_the_run_goes_on(model: Path, tmp_path: Path) -> None:
    rollouts = rollouts_of(model)
    rollout = rollouts.play([next(iter(rollouts.tasks.values()))])[0]
    rollouts.engine.close()
    made = make_warm_up(
        tmp_path,
        load_policy(model, SETTINGS, None),
        Lessons([rollout], "x"),
        SETTINGS,
        because=Silence(3, 3, 0.0, True),
    )
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / METRICS).write_text("{}")
    given: dict[str, Any] = {"stages": (replace(STAGES[0], max_steps=1),), "settings": SETTINGS, "warm_up": "auto"}
    done = train(model, source(), out=tmp_path, **given)
    assert [(one.step, one.move) for one in done.curriculum.decisions] == [(3, Move.RESTART), (1, Move.FINISH)]
    assert (tmp_path / "one.cold" / METRICS).read_text() == "{}"
    assert read_warm_up(tmp_path) == made


def test_what_the_model_says_under_a_grammar_is_imitated_where_no_solution_is_known(model: Path) -> None:
    settings = replace(SETTINGS, max_tokens=64)
    policy = load_policy(model, settings, None)
    lessons = find_lessons(policy, load("train", None)[:2], source(), STAGES[0], settings)
    assert lessons is not None
    assert lessons.origin == "the model's own calls under a grammar"
    assert all(rollout.turns[0].steps[0].outcomes for rollout in lessons.rollouts)
    rewarded_for_solving = replace(STAGES[0], reward=RewardMix(solved=1.0))
    assert find_lessons(policy, load("train", None)[:2], source(), rewarded_for_solving, settings) is None


def test_a_stage_that_has_learnt_is_never_cold_when_it_goes_on(tmp_path: Path) -> None:
    records = [{"step": 1, "mixed_groups": 0.5, "reward": 0.2}, {"step": 2, "mixed_groups": 0.0, "reward": 0.0}]
    (tmp_path / METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))
    silence = signal_of(metrics_of(tmp_path)).observe(3, 0.0, 0.0)
    assert silence is not None
    assert (silence.steps, silence.cold) == (2, False)
    fresh = signal_of(metrics_of(tmp_path / "nothing")).observe(1, 0.0, 0.0)
    assert fresh is not None
    assert fresh.cold


def test_a_warm_up_makes_the_rollouts_likelier(model: Path) -> None:
    policy = load_policy(model, SETTINGS, None)
    row = TapeBranch((5, 6, 7), (8, 9, 10, 11), (1, 1, 0, 1), (0.0,) * 4, (TapeSpan(0, 0, 0, 2), TapeSpan(0, 1, 3, 4)))
    losses = imitate_rows(policy, [row] * 8, SETTINGS, epochs=12)
    assert losses[-1] < 0.9 * losses[0]
    with pytest.raises(ScorerError, match="No rollout has tokens"):
        imitate_rows(policy, [], SETTINGS)


def shifted(turns: tuple[RolloutTurn, ...]) -> tuple[RolloutTurn, ...]:
    """The same replies in the token ids of another tokenizer."""
    return tuple(
        replace(
            turn,
            steps=tuple(
                replace(step, completion_token_ids=tuple(token + 1 for token in step.completion_token_ids))
                for step in turn.steps
            ),
        )
        for turn in turns
    )


async def test_a_rollout_file_is_imitated_and_its_failures_are_not(model: Path, tmp_path: Path) -> None:
    """Stage 1 of a model that cannot call tools yet begins so."""
    tasks = [task for task in generated_tasks(0, 400, "base", domains=("travel",)) if "booked" in task.turns[0]]
    call = '<tool_call>\n{"name": "list_bookings", "arguments": {}}\n</tool_call>'
    taught = TaughtModel(
        model=str(model), precision="fp32", answer=lambda prompt: "Done." if "<tool_response>" in prompt else call
    )
    silent = TaughtModel(model=str(model), precision="fp32", answer=lambda prompt: "No.")
    chosen = [task for task in tasks if len(task.turns) == 1][:3]
    good = await collect(chosen, taught, Playground, out=tmp_path / "good")
    bad = await collect(chosen, silent, Playground, out=tmp_path / "bad")
    lessons = from_file(good.path)
    rows = [row for rollout in lessons.rollouts for row in branches_of(rollout)]
    losses = imitate_rows(load_policy(model, SETTINGS, None), rows, SETTINGS, epochs=8)
    assert losses[-1] < losses[0]
    assert from_file(bad.path).rollouts == []
    other = [replace(rollout, turns=shifted(rollout.turns)) for rollout in lessons.rollouts]
    with pytest.raises(RecordError, match="another tokenizer"):
        make_warm_up(tmp_path, load_policy(model, SETTINGS, None), replace(lessons, rollouts=other), SETTINGS)
    with pytest.raises(ScorerError, match="No rollout has tokens"):
        train(model, source(), out=tmp_path / "run", stages=STAGES, settings=SETTINGS, warm_up=bad.path)
