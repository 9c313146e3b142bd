"""What a run is planned with, without verl: dataset rows, overrides, and reading verl's log."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from envtune_agents.curriculum import FOUR_STAGES
from envtune_agents.errors import CurriculumError, RecordError, TaskError
from envtune_agents.progress import FORMAT_REWARD
from envtune_agents.task_source import find_task_source
from envtune_verl import EpisodeTerms, VerlSettings, dataset_rows, stage_overrides, write_dataset
from envtune_verl.dataset import EpisodePlan
from envtune_verl.log import LoggedStep, evaluation_at, merged, read_log
from envtune_verl.overrides import StageFiles

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
