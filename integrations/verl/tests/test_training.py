"""The controller with a scripted trainer: what it starts, what it reads, what it decides, and what survives a kill."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from typer.testing import CliRunner

from envtune_agents.cli import app
from envtune_agents.curriculum import AdvanceRule, Move, Stage
from envtune_agents.errors import CurriculumError, MissingDependencyError, TaskError, WeightsError
from envtune_agents.progress import FORMAT_REWARD
from envtune_agents.rollout import collect
from envtune_agents.task_source import find_task_source
from envtune_agents.testing import solution_model
from envtune_agents.types import Task
from envtune_verl import Trained, VerlSettings, planned_commands, train
from envtune_verl.run_folder import Commands, StageFolder
from envtune_verl.training import check_verl

SCRIPT = Path(__file__).with_name("scripted_trainer.py")
PLAY = (sys.executable, str(SCRIPT))
COMMANDS = Commands(PLAY, PLAY, imitator=PLAY, imitation=(), adapter_merger=(sys.executable, "-c", "pass"))
STAGES = (Stage("one", FORMAT_REWARD, max_steps=4), Stage("two", hint_level=2, max_steps=2))
SETTINGS = VerlSettings(prompts=2, samples=4, evaluate_every=2, save_every=2, validation_tasks=4)


def tasks_of(split: str, count: int = 4) -> list[Task]:
    found = find_task_source("playground").load(split, ["base", "miss_param"])
    return found[:: len(found) // count][:count]


def run(model: Path, out: Path, script: dict[str, Any] | None = None, **changes: Any) -> Trained:
    out.mkdir(exist_ok=True)
    (out / "script.json").write_text(json.dumps(script or {}))
    os.environ["SCRIPT"] = str(out / "script.json")
    given: dict[str, Any] = {"stages": STAGES, "settings": SETTINGS, "tasks": tasks_of("train"), "commands": COMMANDS}
    return train(model, "playground", out=out, validation=tasks_of("validation"), **given | changes)


def steps_of(folder: Path) -> list[list[int]]:
    """The steps that each attempt logged."""
    logs = sorted((folder / "logs").glob("*.jsonl"))
    return [[json.loads(line)["step"] for line in log.read_text().splitlines()] for log in logs]


def test_stages_are_trained_in_chunks_each_from_the_weights_before(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(model, out, {"two": {"2": {"acc": 0.75}}})
    assert done.finished
    assert done.weights == out / "two" / "model"
    assert (done.weights / "from.txt").read_text() == str(out / "two" / "checkpoints" / "global_step_2" / "actor")
    moves = [(decision.stage, decision.step, decision.move) for decision in done.curriculum.decisions]
    assert moves == [("one", 2, Move.STAY), ("one", 4, Move.ADVANCE), ("two", 2, Move.FINISH)]
    assert steps_of(out / "one") == [[1, 2], [3, 4]]
    assert [path.name for path in (out / "one" / "checkpoints").glob("global_step_*")] == ["global_step_4"]
    assert f"actor_rollout_ref.model.path={out / 'one' / 'model'}" in (out / "two" / "overrides.txt").read_text()
    last = done.curriculum.evaluations[-1]
    assert (last.score, last.grad_norms, last.hint_gap) == (0.75, (0.5, 0.5), 0.25)
    before = sorted(out.rglob("*.jsonl"))
    assert run(model, out).weights == done.weights
    assert sorted(out.rglob("*.jsonl")) == before


@pytest.mark.parametrize(("fail", "logged"), [("die", [[1, 2], [3], [3, 4]]), ("save", [[1, 2], [3], [4]])])
def test_a_killed_trainer_goes_on_where_it_was(model: Path, tmp_path: Path, fail: str, logged: list[Any]) -> None:
    out, stages = tmp_path / "run", STAGES[:1]
    with pytest.raises(CurriculumError, match="ended with code"):
        run(model, out, {"one": {"4": {"fail": fail}}}, stages=stages)
    done = run(model, out, stages=stages)
    assert done.finished
    assert steps_of(out / "one") == logged
    assert len(done.curriculum.evaluations[-1].grad_norms) == (2 if fail == "die" else 1)


def test_a_decision_that_was_not_saved_is_made_from_the_log(model: Path, tmp_path: Path) -> None:
    out, stages = tmp_path / "run", STAGES[:1]
    run(model, out, stages=stages)
    (out / "curriculum.json").unlink()
    again = run(model, out, {"one": {"1": {"fail": "the trainer must not start"}}}, stages=stages)
    assert [decision.step for decision in again.curriculum.decisions] == [2, 4]


def test_a_gradient_that_is_not_a_number_goes_back_to_the_last_good_checkpoint(model: Path, tmp_path: Path) -> None:
    out, stages = tmp_path / "run", STAGES[:1]
    done = run(model, out, {"one": {"3": {"grad_norm": None}}}, stages=stages)
    assert not done.finished
    assert done.curriculum.decisions[-1].move is Move.STOP
    folder = StageFolder(out / "one")
    assert folder.saved() == 2
    assert run(model, out, stages=stages).finished
    assert steps_of(out / "one") == [[1, 2], [3, 4]]


def test_the_first_chunk_broken_goes_back_to_the_stages_first_weights(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(model, out, {"one": {"1": {"grad_norm": None}}})
    assert (done.finished, done.weights) == (False, model.resolve())
    assert StageFolder(out / "one").saved() == 0


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", "gpu_memory down"),
        ("ValueError: No available memory for the cache blocks. Try increasing it.", "gpu_memory up"),
        ("AssertionError: the config is odd", "the config is odd"),
    ],
)
def test_a_failing_trainer_is_explained(model: Path, tmp_path: Path, fail: str, said: str) -> None:
    with pytest.raises(CurriculumError, match=said):
        run(model, tmp_path / "run", {"one": {"1": {"fail": fail}}})


def test_a_validation_that_leaves_a_category_out_is_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CurriculumError, match="does not report every category"):
        run(model, tmp_path / "run", {"one": {"2": {"categories": ["base"]}}})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": replace(SETTINGS, learning_rate=2e-6)}, "learning_rate"),
        ({"stages": STAGES[:1]}, "stages"),
        ({"tasks": tasks_of("train", 3)}, "tasks"),
    ],
)
def test_a_changed_run_is_refused_and_another_machine_is_not(
    model: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    out = tmp_path / "run"
    planned_commands(
        model, "playground", out=out, stages=STAGES, settings=SETTINGS, tasks=tasks_of("train"),
        validation=tasks_of("validation"),
    )  # fmt: skip
    with pytest.raises(CurriculumError, match=f"another {named}"):
        run(model, out, **change)


def test_two_trainers_never_share_a_folder(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held'); input()"
    other = subprocess.Popen(
        [sys.executable, "-u", "-c", hold, str(out / "trainer.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(CurriculumError, match="still trains"):
        run(model, out)
    other.communicate("\n")
    assert run(model, out, settings=replace(SETTINGS, gpus=2)).finished


def test_a_dry_run_writes_everything_and_starts_nothing(model: Path, tmp_path: Path) -> None:
    commands = planned_commands(
        model,
        "playground",
        out=tmp_path,
        stages=STAGES,
        settings=replace(SETTINGS, overrides=("a.b=c d",)),
        tasks=tasks_of("train"),
        validation=tasks_of("validation"),
    )
    ends = [command.split(" ", 2)[1:] for command in commands]
    folders = [tmp_path / "one", tmp_path / "two"]
    assert [Path(script).parent for script, _ in ends] == [folders[0]] * 3 + [folders[1]] * 2
    assert [Path(script).name for script, _ in ends] == ["run.sh", "run.sh", "merge.sh", "run.sh", "merge.sh"]
    assert (tmp_path / "one" / "overrides.txt").read_text().splitlines()[-1] == "a.b=c d"
    assert not list(tmp_path.rglob("*.jsonl"))
    for script in tmp_path.rglob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)


def test_the_command_line_plans_a_run_and_knows_its_own_options(model: Path, tmp_path: Path) -> None:
    base = ["train", "--engine", "verl", "--model", str(model), "--out", str(tmp_path / "run"), "--max-steps", "3"]
    small = ["--limit", "20", "--prompts", "2", "--samples", "4", "--validation-tasks", "4", "--evaluate-every", "2"]
    planned = CliRunner().invoke(app, [*base, *small, "--override", "a.b=1", "--dry-run"], catch_exceptions=False)
    assert planned.output.count("run.sh 2 ") == planned.output.count("run.sh 3 ") == 4
    assert planned.output.count("merge.sh") == 4
    assert "a.b=1" in (tmp_path / "run" / "4_alignment" / "overrides.txt").read_text()
    for wrong, engine in ((["--precision", "4bit"], "verl"), (["--gpus", "2", "--engine", "trl"], "trl")):
        with pytest.raises(TaskError, match=f"--engine {engine} has no such option"):
            CliRunner().invoke(app, [*base, *wrong], catch_exceptions=False)


def test_equal_rewards_are_an_event_with_advice(model: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Listening:
        def add(self, stage: str, line: Any) -> None: ...

        def note(self, text: str) -> None:
            said.append(text)

    run(model, tmp_path / "run", {"one": {"2": {"equal": True}}}, table=Listening(), stages=STAGES[:1])
    assert [text[:44] for text in said if "are equal" in text] == ["step 2: every group's rewards are equal, so "]


COLD: dict[str, Any] = {"one": {str(step): {"cold": True} for step in range(1, 5)}}


def test_a_model_that_cannot_begin_is_warmed_up_and_begins_again(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(model, out, COLD, warm_up="auto", stages=STAGES[:1], tasks=tasks_of("train", 12))
    moves = [(decision.step, decision.move) for decision in done.curriculum.decisions]
    assert moves == [(2, Move.STAY), (3, Move.RESTART), (2, Move.STAY), (4, Move.FINISH)]
    restart = done.curriculum.decisions[1]
    assert restart.reasons[0].startswith("steps 1 to 3: every group's rewards are equal, so they teach nothing.")
    assert restart.reasons[1] == "Warmed up by imitating the solutions of training tasks."
    assert f"actor_rollout_ref.model.path={out / 'warm_up' / 'model'}" in (out / "one" / "overrides.txt").read_text()
    assert (out / "one.cold" / "logs").is_dir()
    table = parquet.read_table(out / "warm_up" / "train.parquet").to_pylist()
    assert len(table) == 12
    said = table[0]["messages"]
    assert [message["role"] for message in said[:3]] == ["system", "user", "assistant"]
    assert "<tools>" in said[0]["content"]
    assert said[2]["content"].startswith("<tool_call>")


def test_a_warm_up_that_was_cut_off_is_made_when_the_run_goes_on(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    broken = replace(COMMANDS, imitator=(sys.executable, "-c", "raise SystemExit('no GPU')"))
    given: dict[str, Any] = {"warm_up": "auto", "stages": STAGES[:1], "tasks": tasks_of("train", 12)}
    with pytest.raises(CurriculumError, match="no GPU"):
        run(model, out, COLD, commands=broken, **given)
    done = run(model, out, COLD, **given)
    assert [decision.move for decision in done.curriculum.decisions][1:] == [Move.RESTART, Move.STAY, Move.FINISH]


def test_without_a_warm_up_a_cold_start_is_an_event_that_names_the_next_step(model: Path, tmp_path: Path) -> None:
    done = run(model, tmp_path / "run", COLD, stages=STAGES[:1])
    event = next(decision for decision in done.curriculum.decisions if decision.step == 3)
    assert event.move is Move.STAY
    assert "--warm-up auto" in event.reasons[1]


async def test_a_rollout_file_is_imitated_first_and_only_once(model: Path, tmp_path: Path) -> None:
    tasks, out = tasks_of("train", 12), tmp_path / "run"
    await collect(tasks, solution_model(tasks), find_task_source("playground").environment, out=tmp_path / "good")
    given: dict[str, Any] = {"warm_up": tmp_path / "good" / "rollouts.jsonl", "stages": STAGES[:1], "tasks": tasks}
    assert (await asyncio.to_thread(run, model, out, **given)).finished
    assert (out / "warm_up" / "model" / "from.txt").read_text() == str(
        out / "warm_up" / "checkpoints" / "global_step_1"
    )
    before = sorted((out / "warm_up" / "logs").iterdir())
    assert (await asyncio.to_thread(run, model, out, **given)).finished
    assert sorted((out / "warm_up" / "logs").iterdir()) == before
    with pytest.raises(CurriculumError, match="another warm-up rollouts"):
        await asyncio.to_thread(run, model, out, stages=STAGES[:1], tasks=tasks)
    with pytest.raises(CurriculumError, match=r"takes 16 rollouts in one step, and .* has 1\d "):
        await asyncio.to_thread(run, model, tmp_path / "b", **given, settings=replace(SETTINGS, samples=8, gpus=16))


def test_help_follows_the_rewards_of_the_chunk_before(model: Path, tmp_path: Path) -> None:
    out, stages = tmp_path / "run", (replace(STAGES[1], max_steps=6),)
    script = {"two": {str(step): {"progress": 1.0} for step in (1, 2, 3, 4)} | {"6": {"fail": "die"}}}
    with pytest.raises(CurriculumError, match="ended with code"):
        run(model, out, script, stages=stages, adaptive=True)
    known = json.loads((out / "two" / "difficulty.json").read_text())
    assert known["step"] == 4
    assert set(known["controller"]["levels"].values()) == {0}
    assert run(model, out, {}, stages=stages, adaptive=True).finished
    rows = parquet.read_table(out / "two" / "train.parquet").to_pylist()
    assert [json.loads(row["extra_info"]["episode"])["terms"]["hint_level"] for row in rows] == [0] * 4
    assert [row["extra_info"]["index"] for row in rows] == [0, 1, 2, 3]
    assert json.loads((out / "two" / "difficulty.json").read_text())["step"] == 6


def test_the_model_card_has_what_verl_measured_on_the_test_tasks(model: Path, tmp_path: Path) -> None:
    test = find_task_source("playground").load("test", ["base", "miss_param"])[::20]
    done = run(model, tmp_path / "run", stages=STAGES[:1], test=test, settings=replace(SETTINGS, lora=8))
    card = (done.weights / "README.md").read_text()
    assert "| base | 5 | 5 | 100.00% | 50.00% |" not in card  # half of five is no number of tasks
    assert "| **OVERALL** | **10** | **10** | **100.00%** | **40.00%** |" in card
    assert "LoRA adapters of rank 8, merged after each stage" in card
    logs = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "test").glob("*.jsonl")}
    assert len(logs) == 2
    (done.weights / "README.md").unlink()
    run(model, tmp_path / "run", stages=STAGES[:1], test=test, settings=replace(SETTINGS, lora=8))
    assert logs == {path: path.stat().st_mtime_ns for path in logs}


def test_a_plateau_ends_a_stage_before_its_budget(model: Path, tmp_path: Path) -> None:
    rule = AdvanceRule(window=1, confirm=1)
    done = run(model, tmp_path / "run", stages=(replace(STAGES[0], max_steps=40),), rule=rule)
    assert [decision.step for decision in done.curriculum.decisions] == [2, 4]
    assert "plateaued" in done.curriculum.decisions[-1].reasons[0]


def test_what_cannot_be_trained_is_refused_before_anything_starts(model: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="safetensors"):
        run(Path("x.gguf"), tmp_path / "a")
    with pytest.raises(CurriculumError, match="takes 8 tasks in one step and has 4"):
        run(model, tmp_path / "b", settings=replace(SETTINGS, prompts=8))
    with pytest.raises(CurriculumError, match="takes 2 tasks in one step and has 0; 4 more"):
        run(model, tmp_path / "c", stages=(replace(STAGES[0], max_prompt_tokens=10),))
    with pytest.raises(CurriculumError, match=r"2 x 3 = 6 rollouts in one step, which 8 GPUs cannot share evenly"):
        run(model, tmp_path / "f", settings=replace(SETTINGS, samples=3))
    with pytest.raises(CurriculumError, match=r"without \[ \]"):
        run(model, tmp_path / "[e]")
    with pytest.raises(TaskError, match="unknown in 'playground', split 'train'"):
        run(model, tmp_path / "d", tasks=tasks_of("test"))


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        {"gpu_memory": 1.5},
        {"learning_rate": math.nan},
        {"tensor_parallel": 3},
        {"server": "x"},
        {"gpus": 0},
    ):
        with pytest.raises(CurriculumError):
            VerlSettings(**wrong)


def test_unsupported_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envtune_agents.curriculum.training_run.version", lambda name: "0.10.0")
    with pytest.raises(MissingDependencyError, match=r"verl 0\.10\.0 is installed"):
        check_verl()
