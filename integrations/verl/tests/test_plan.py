"""What a run is planned with, without verl: dataset rows, overrides, and reading verl's log."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from envtune_agents.curriculum import FOUR_STAGES, Solved
from envtune_agents.errors import CurriculumError, MissingDependencyError, RecordError, TaskError
from envtune_agents.progress import FORMAT_REWARD
from envtune_agents.task_source import find_task_source
from envtune_verl import EpisodeTerms, VerlSettings, dataset_rows, stage_overrides, train, write_dataset
from envtune_verl.adaptive import AdaptiveHelp
from envtune_verl.dataset import EpisodePlan
from envtune_verl.log import LoggedStep, evaluation_at, finding_in, merged, read_log
from envtune_verl.measure import solved_in
from envtune_verl.overrides import StageFiles
from envtune_verl.plan import RunPlan
from envtune_verl.rewards import note_reward, reward_groups
from envtune_verl.run_folder import StageFolder

FILES = StageFiles("some/model", Path("/r/t.parquet"), Path("/r/v.parquet"), Path("/r/a b.yaml"), Path("/r/c"))
TASKS = find_task_source("playground").load("validation", ["base", "miss_param"])[::10]


def overrides_of(index: int, **settings: Any) -> dict[str, str]:
    lines = stage_overrides(FOUR_STAGES[index], VerlSettings(**settings), FILES)
    return dict(line.split("=", 1) for line in lines)


def test_a_row_says_how_its_episode_is_played_and_reports_by_category() -> None:
    terms = EpisodeTerms("2_basic", 3, FORMAT_REWARD)
    rows = dataset_rows(TASKS, "playground", "validation", terms)
    assert [row["data_source"] for row in rows] == [task.category for task in TASKS]
    assert all(isinstance(value, str | int) for row in rows for value in row["extra_info"].values())
    plan = EpisodePlan.from_json(rows[0]["extra_info"]["episode"])
    assert plan == EpisodePlan("playground", "validation", TASKS[0].task_id, TASKS[0].turns, terms)
    assert plan.task()[1] == TASKS[0]
    hinted = dataset_rows(TASKS, "playground", "validation", replace(terms, validation=True))
    assert {row["data_source"] for row in hinted} == {"base with hints", "miss_param with hints"}


def test_a_task_that_is_not_as_it_was_is_noticed() -> None:
    plan = EpisodePlan("playground", "validation", TASKS[0].task_id, ("Other words.",))
    with pytest.raises(TaskError, match="has other user messages in 'playground', split 'validation'"):
        plan.task()
    with pytest.raises(TaskError, match="is unknown"):
        dataset_rows(TASKS, "playground", "train")


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"source": "playground", "turns": 3}'])
def test_a_row_of_another_dataset_is_refused(text: Any) -> None:
    with pytest.raises(RecordError, match="write_dataset"):
        EpisodePlan.from_json(text)


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert write_dataset(path, "playground", "validation", tasks=TASKS) == len(TASKS)
    before = path.read_bytes()
    assert parquet.read_table(path).column_names == list(dataset_rows(TASKS, "playground", "validation")[0])
    with pytest.raises(TaskError, match="no task"):
        write_dataset(path, "playground", tasks=[])
    assert path.read_bytes() == before
    with pytest.raises(RecordError, match="Cannot write"):
        write_dataset(path / "below", "playground", "validation", tasks=TASKS)
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


def test_the_settings_are_the_papers() -> None:
    found = overrides_of(1)
    actor = "actor_rollout_ref.actor"
    for key, value in {
        "algorithm.adv_estimator": "grpo",
        f"{actor}.clip_ratio_low": "0.2",
        f"{actor}.clip_ratio_high": "0.28",
        f"{actor}.clip_ratio_c": "10.0",
        f"{actor}.loss_agg_mode": "seq-mean-token-mean",
        f"{actor}.use_kl_loss": "True",
        f"{actor}.kl_loss_coef": "0.1",
        f"{actor}.kl_loss_type": "low_var_kl",
        f"{actor}.entropy_coeff": "0.001",
        f"{actor}.optim.lr": "1e-06",
        f"{actor}.grad_clip": "1.0",
        "actor_rollout_ref.rollout.n": "16",
        "actor_rollout_ref.rollout.val_kwargs.temperature": "0",
        "data.max_prompt_length": "8192",
        "trainer.resume_mode": "auto",
    }.items():
        assert found[key] == value, key


@pytest.mark.skipif(find_spec("verl") is not None, reason="verl is installed")
def test_without_verl_a_run_is_planned_and_not_started(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"Training on many GPUs needs verl>=0\.9,<0\.10.*\n  pip install"):
        train("nowhere", "playground", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_stages_differ_where_the_curriculum_does() -> None:
    stages = [overrides_of(index) for index in range(4)]
    assert [found["data.train_batch_size"] for found in stages] == ["16", "32", "32", "32"]
    assert [found["data.max_response_length"] for found in stages] == ["10000", "10000", "24576", "24576"]
    assert [found["trainer.experiment_name"] for found in stages] == [stage.name for stage in FOUR_STAGES]
    assert "data.train_batch_size=4" in stage_overrides(FOUR_STAGES[0], VerlSettings(prompts=4), FILES)
    assert stage_overrides(FOUR_STAGES[0], VerlSettings(overrides=("x=1",)), FILES)[-1] == "x=1"


def line(step: int, score: float, **data: float | None) -> str:
    validated = {"val-core/a/b/acc/mean@1": score, "val-core/c/acc/mean@1": 1.0, "val-aux/c/progress/mean@1": 1.0}
    return json.dumps({"step": step, "data": {**validated, **{key.replace("_", "/", 1): v for key, v in data.items()}}})


def test_a_log_is_read_line_by_line_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_log(path) == ([], 0)
    first, second = line(1, 0.5, actor_grad_norm=0.25), line(2, 0.5, actor_grad_norm=None)
    path.write_text(f"{first}\n{second[:20]}")
    lines, position = read_log(path)
    assert [(one.step, one.grad_norm) for one in lines] == [(1, 0.25)]
    path.write_text(f"{first}\n{second}\n")
    lines, position = read_log(path, position)
    assert [one.step for one in lines] == [2]
    assert math.isnan(lines[0].grad_norm or 0.0)
    assert read_log(path, position) == ([], position)
    path.write_text("no log\n")
    with pytest.raises(CurriculumError, match="not a log"):
        read_log(path)


def test_the_score_is_the_share_of_all_tasks_and_later_attempts_hold() -> None:
    logs = [[LoggedStep(1, {"actor/grad_norm": 9.0}), LoggedStep(2, {"actor/grad_norm": 9.0})]]
    logs.append([LoggedStep(2, {"actor/grad_norm": 2.0, "val-core/a/b/acc/mean@1": 0.5, "val-core/c/acc/mean@1": 1.0})])
    found = evaluation_at(merged(logs), 2, 0, {"a/b": 3, "c": 1})
    assert found is not None
    assert (found.score, found.grad_norms, found.hint_gap) == (0.625, (9.0, 2.0), None)
    assert evaluation_at(merged(logs), 1, 0, {"a/b": 3}) is None
    with pytest.raises(CurriculumError, match="every category"):
        evaluation_at(merged(logs), 2, 0, {"a/b": 3, "c": 1, "d": 1})


def test_a_step_made_again_counts_as_it_was_made_last(tmp_path: Path) -> None:
    one, two = tmp_path / "step_000002_01.rewards", tmp_path / "step_000002_02.rewards"
    for folder, step, rewards in ((one, 1, [0.0]), (one, 2, [0.0, 0.0]), (two, 2, [1.0, 0.5])):
        for reward in rewards:
            note_reward(folder, step, "t", reward)
    with next(one.iterdir()).open("a") as file:
        file.write('{"step": 2, "task_')  # a kill cut it off
    assert reward_groups([one, two], 0, 2) == [("t", [0.0]), ("t", [1.0, 0.5])]
    assert reward_groups([one, two], 1, 2) == [("t", [1.0, 0.5])]


def test_help_is_learnt_once_from_each_chunk_and_kept(tmp_path: Path) -> None:
    stage, folder = replace(FOUR_STAGES[1], hint_level=2), StageFolder(tmp_path)
    help_ = AdaptiveHelp(folder, stage)
    assert help_.level(TASKS[0]) == 2
    next_chunk = help_.next_chunk(folder.next_log(2))
    for step in (1, 2):
        for _ in range(2):
            note_reward(next_chunk.rewards, step, TASKS[0].task_id, 1.0)
    assert help_.learn(2) == "Help: mean hint level 1.00 after 2 groups."
    assert (help_.level(TASKS[0]), help_.level(TASKS[1])) == (1, 2)
    again = AdaptiveHelp(folder, stage)
    assert again.learn(2) is None
    assert again.level(TASKS[0]) == 1
    assert "must see the run's folder" in str(again.learn(4))
    rows = dataset_rows(TASKS, "playground", "validation", EpisodeTerms("s", 2), again.level)
    levels = [EpisodePlan.from_json(row["extra_info"]["episode"]).terms.hint_level for row in rows]
    assert levels == [1] + [2] * (len(TASKS) - 1)
    (tmp_path / "next").mkdir()
    later = AdaptiveHelp(StageFolder(tmp_path / "next"), replace(stage, hint_level=3), [folder])
    assert (later.level(TASKS[0]), later.level(TASKS[1])) == (1, 3)
    assert "must see the run's folder" in str(later.learn(1))


def test_what_was_solved_of_the_test_tasks_is_read_from_the_log(tmp_path: Path) -> None:
    log, counts = tmp_path / "after.jsonl", [*["base"] * 4, *["miss_param"] * 2]
    tasks = [replace(TASKS[0], category=category) for category in counts]
    assert solved_in(log, tasks) is None
    measured = {"val-core/base/acc/mean@1": 0.75, "val-core/miss_param/acc/mean@1": 0.0}
    log.write_text(json.dumps({"step": 0, "data": measured}) + "\n")
    assert solved_in(log, tasks) == {"base": Solved(3, 4), "miss_param": Solved(0, 2)}
    with pytest.raises(CurriculumError, match="does not report late"):
        solved_in(log, [*tasks, replace(TASKS[0], category="late")])


def test_old_checkpoints_go_when_a_newer_one_is_whole(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    names = ["global_step_2", "global_step_4", "global_step_6", "global_step_2.mine"]
    for name in names:
        (folder.checkpoints / name / "actor").mkdir(parents=True)
    tracker = folder.checkpoints / "latest_checkpointed_iteration.txt"
    for newest in ("4", "6", "no number"):  # 8 is not there, 6 is not the newest, and nobody knows which is
        tracker.write_text(newest)
        folder.drop_checkpoints(before=8 if newest == "6" else 6)
        assert all((folder.checkpoints / name).is_dir() for name in names)
    tracker.write_text("4")
    folder.drop_checkpoints(before=4)
    assert sorted(path.name for path in folder.checkpoints.iterdir() if path.is_dir()) == sorted(names[1:])
    assert (folder.saved(), folder.saved(at_most=5)) == (4, 4)


def test_the_rollouts_of_a_step_are_shared_evenly_unless_verl_is_told_otherwise() -> None:
    def planned(**settings: Any) -> RunPlan:
        chosen = VerlSettings(prompts=2, samples=3, validation_tasks=2, **settings)
        tasks = find_task_source("playground").load("train", ["base"])[:8]
        return RunPlan.made("some/model", "playground", FOUR_STAGES[:1], chosen, tasks, TASKS)

    with pytest.raises(CurriculumError, match="multiple of 4"):
        planned(gpus=2, nodes=2)
    assert planned(gpus=3).stages[0].samples == 3
    assert planned(gpus=4, overrides=("actor_rollout_ref.actor.ulysses_sequence_parallel_size=2",)).stages


@pytest.mark.parametrize("equal", [0.0, 0.19])
def test_rounding_noise_is_no_difference_between_rewards(equal: float) -> None:
    def teaches_nothing(high: float | None, low: float | None) -> bool:
        metrics = {"critic/advantages/max": high, "critic/advantages/min": low}
        return LoggedStep(1, {name: value for name, value in metrics.items() if value is not None}).teaches_nothing

    assert teaches_nothing(equal, -equal)
    assert not teaches_nothing(equal, -0.71)
    assert not teaches_nothing(0.71, -equal)
    assert not teaches_nothing(math.nan, math.nan)
    assert not teaches_nothing(None, None)


def test_steps_that_taught_nothing_are_found_in_the_log_once() -> None:
    silent = {"critic/advantages/max": 0.0, "critic/advantages/min": 0.0, "critic/score/mean": 0.0}
    steps = {step: LoggedStep(step, silent) for step in range(1, 6)}
    found = finding_in(steps, 0, 4)
    assert found is not None
    assert (found.step, found.steps, found.cold) == (3, 3, True)
    assert finding_in(steps, 3, 5) is None
    steps[1] = LoggedStep(1, {**silent, "critic/advantages/max": 1.0, "critic/score/mean": 0.5})
    late = finding_in(steps, 0, 5)
    assert late is not None
    assert (late.step, late.cold) == (4, False)


def test_the_readme_names_options_that_there_are() -> None:
    import typer

    from envtune_agents.cli import app

    command: Any = typer.main.get_command(app)
    known = {option for parameter in command.commands["train"].params for option in parameter.opts}
    text = (Path(__file__).parents[1] / "README.md").read_text()
    named = {
        option for line in text.splitlines() if "pip " not in line for option in re.findall(r"--[a-z][a-z-]+", line)
    }
    assert named - known == {"--head", "--address", "--local-dir"}  # of ray and hf
    assert {"--engine", "--dry-run", "--override", "--adaptive"} <= named
