"""What can go wrong in a run: broken numbers, equal rewards, no memory, and what is refused before it starts."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import SETTINGS, STAGES, load, rollouts_of, source

from envtune_agents.curriculum import Curriculum, Evaluation, Move, Stage
from envtune_agents.errors import CurriculumError, MissingDependencyError, WeightsError
from envtune_agents.playground import Playground
from envtune_agents.progress import RewardMix
from envtune_agents.task_source import TaskSource
from envtune_agents.types import TurnEvidence
from envtune_agents.weights import load_weights
from envtune_trl import TrainSettings, train
from envtune_trl.progress import StageProgress
from envtune_trl.table import Table
from envtune_trl.trainer import memory_advice
from envtune_trl.weights import Policy, check_prefix_preserving, load_policy


class Coin(Playground):
    """Worth something by chance, so that groups of a model that can do nothing still differ."""

    def close_turn(self) -> TurnEvidence:
        return TurnEvidence(super().close_turn().turn, {"coin": next(COIN) % 2 == 0})


COIN = count()


def progress_of(model: Path, **given: Any) -> StageProgress:
    said: list[str] = []
    table = Table()
    table.note = said.append  # type: ignore[method-assign]
    play = rollouts_of(model)
    play.engine.close()
    progress = StageProgress(Curriculum(STAGES), play, [], SETTINGS, table, **{"save": lambda: None, **given})
    progress.table.said = said  # type: ignore[attr-defined]
    return progress


class Control:
    should_training_stop = False
    should_save = False


def test_a_gradient_that_is_not_a_number_stops_and_saves_nothing(model: Path, tmp_path: Path) -> None:
    progress, control = progress_of(model), Control()
    progress.logged(3, {"grad_norm": float("nan"), "loss": 0.1}, control, tmp_path)
    assert progress.move is Move.STOP
    assert control.should_training_stop
    assert not control.should_save


def test_equal_rewards_are_an_event_with_advice(model: Path, tmp_path: Path) -> None:
    progress = progress_of(model)
    progress.rollouts.notes.append({"mixed_groups": 0.0, "solved": 0.0})
    for step in (1, 2, 3, 4):
        progress.logged(step, {"grad_norm": 0.1, "loss": 0.0, "reward": 0.0}, Control(), tmp_path)
    said = progress.table.said  # type: ignore[attr-defined]
    assert said[0] == (
        "step 1: every group's rewards are equal, so this step teaches nothing. "
        "All of them are 0: the model earns no reward yet."
    )
    event = progress.curriculum.decisions[0]
    assert (event.move, event.step) == (Move.STAY, 3)
    assert "--warm-up auto" in event.reasons[1]
    assert len(progress.curriculum.decisions) == 1
    progress.logged(5, {"grad_norm": 0.1, "loss": 0.0, "reward": 0.5}, Control(), tmp_path)
    assert "All of them are 0" not in said[-1]


@pytest.mark.parametrize(("tasks", "learns"), [(source(), False), (TaskSource(load, Coin), True)])
def test_equal_rewards_move_no_weight(model: Path, tmp_path: Path, tasks: TaskSource, learns: bool) -> None:
    """Also where an entropy bonus would: Adam makes a whole step of the smallest gradient."""
    settings = replace(SETTINGS, entropy=0.01, lora=0, validation_tasks=1, learning_rate=1e-4)
    stage = Stage("one", RewardMix(progress=1.0), max_steps=1)
    done = train(model, tasks, out=tmp_path, stages=(stage,), settings=settings)
    before, after = (load_weights(path, "fp32").model.state_dict() for path in (model, done.weights))
    assert any(not torch.equal(before[name], after[name]) for name in before) == learns


def test_broken_numbers_in_a_real_run_end_it_with_the_last_good_weights(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    table = Table()
    table.note = said.append  # type: ignore[method-assign]
    settings = replace(SETTINGS, learning_rate=1e30, max_grad_norm=1e30, kl=0.0, lora=0)
    stage = Stage("one", RewardMix(progress=1.0), max_steps=4)
    done = train(model, TaskSource(load, Coin), out=tmp_path, stages=(stage,), settings=settings, table=table)
    assert not done.finished
    assert done.curriculum.decisions[-1].move is Move.STOP
    assert "lower learning rate (now 1e+30)" in said[-1]
    assert done.weights.name == "checkpoint-1"


def test_a_stage_is_over_only_when_its_weights_are_written(model: Path) -> None:
    saved: list[int] = []
    progress = progress_of(model, save=lambda: saved.append(progress.curriculum.stage_index))
    progress._decide(Evaluation(1, 0.5), Control())
    assert saved == []
    progress._decide(Evaluation(2, 0.5), Control())
    assert (saved, progress.move) == ([0], Move.ADVANCE)


def test_a_stage_that_goes_on_judges_all_steps_since_the_last_validation(model: Path) -> None:
    """Norms of steps that moved no weight are left out: what is small beside them would look like a jump."""
    told: list[dict[str, float]] = []
    known = [
        {"step": 1, "grad_norm": 0.5, "mixed_groups": 1.0, "solved": 0.5, "reward": 0.5},
        {"step": 2, "grad_norm": 1e-6, "mixed_groups": 0.0, "solved": 0.0, "reward": 0.0},
    ]
    progress = progress_of(model, known=known, report=told.append)
    progress.rollouts, progress.curriculum = rollouts_of(model), Curriculum([replace(STAGES[0], max_steps=9)])
    progress.evaluate(2, Control())
    progress.rollouts.engine.close()
    (judged,) = progress.curriculum.evaluations
    assert (judged.grad_norms, judged.success, judged.mixed_groups) == ((0.5,), 0.25, 0.5)
    assert told == [{"eval_solved": 0.0, "eval_progress": 0.0}]


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        (replace(STAGES[0], prompts=5), "plays 5 tasks in a step and has 4. Set fewer prompts"),
        (replace(STAGES[0], name="base"), "cannot be called 'base'"),
        (
            replace(STAGES[0], prompts=2, max_prompt_tokens=10),
            "has 0, and 4 with a first prompt of more than 10 tokens",
        ),
    ],
)
def test_a_stage_that_cannot_be_trained_is_refused(model: Path, tmp_path: Path, stage: Stage, named: str) -> None:
    with pytest.raises(CurriculumError, match=named):
        train(model, source(), out=tmp_path, stages=[stage], settings=replace(SETTINGS, prompts=None))


def test_a_place_for_metrics_that_does_not_exist_is_refused_first(model: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, report_to="wandbb")
    with pytest.raises(CurriculumError, match=r"Metrics cannot go to 'wandbb'.*tensorboard"):
        train(model, source(), out=tmp_path / "run", stages=STAGES, settings=settings)
    assert not (tmp_path / "run").exists()


def test_running_out_of_memory_names_the_knobs() -> None:
    with pytest.raises(CurriculumError, match=r"micro_batch \(now 2\)"), memory_advice(SETTINGS):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(KeyError), memory_advice(SETTINGS):
        raise KeyError("x")


def test_unsupported_versions_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("envtune_agents.curriculum.training_run.version", lambda name: "1.99.0")
    with pytest.raises(MissingDependencyError, match=r"trl 1\.99\.0 is installed.*\n.*trl>=1\.16,<1\.17"):
        train("nowhere", source(), out=tmp_path)


def test_a_template_that_rewrites_replies_is_refused(model: Path) -> None:
    policy = load_policy(model, SETTINGS, None)
    check_prefix_preserving(policy)
    rewriting = policy.weights.chat_template.replace(  # type: ignore[union-attr]
        "{%- for message in messages %}", "{{- messages | length }}{%- for message in messages %}"
    )
    changed = Policy(replace(policy.weights, chat_template=rewriting), policy.model)
    with pytest.raises(WeightsError, match="not prefix-preserving"):
        check_prefix_preserving(changed)


def test_quantised_weights_need_an_adapter() -> None:
    with pytest.raises(CurriculumError, match="give lora a rank"):
        TrainSettings(lora=0, precision="4bit")
