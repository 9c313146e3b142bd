"""verl's real log and commands on a CPU: what our scripts start, and what we read of what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from verl_batches import STAGE, composed, tasks_of

from envtune_agents.curriculum import Curriculum
from envtune_verl import VerlSettings
from envtune_verl.log import evaluation_at, merged, read_log
from envtune_verl.plan import RunPlan
from envtune_verl.run_folder import Commands, StageFolder, write_stage

pytest.importorskip("verl")


def test_a_script_hands_verl_what_the_folder_says(model: Path, tmp_path: Path) -> None:
    plan = RunPlan.made(model, "playground", (STAGE,), VerlSettings(), tasks_of("base"), None)
    folder = StageFolder(tmp_path / "it's a run, 'x' = 1" / "s")
    show = (sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))")
    write_stage(folder, plan, 0, model, lambda task: 0, Commands(trainer=show))
    log = folder.next_log(5)
    command = ["bash", str(folder.script), "5", str(log), "trainer.val_only=True"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = composed(json.loads(shown))
    assert str(log) == found.ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH
    assert (found.trainer.total_training_steps, found.trainer.val_only) == (5, True)
    assert found.data.train_files == str(folder.path / "train.parquet")


def test_the_log_of_the_real_logger_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils.tracking import FileLogger

    sources = ["base", "base", "miss/func", "base with hints", "miss/func with hints"]
    infos = {"acc": [1.0, 0.0, 1.0, 1.0, 1.0], "progress": [1.0, 0.5, 1.0, 1.0, 1.0], "reward": [0.0] * 5}
    validated = PPOTrainer._val_metrics_update(None, sources, list("abcde"), infos, [3] * 5)
    path = tmp_path / "log.jsonl"
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(path))
    logger = FileLogger("envtune", "s")
    logger.log({"actor/grad_norm": np.float32(0.5), "critic/score/mean": 0.1}, step=1)
    logger.log({"actor/grad_norm": float("nan"), "text": "x", **validated}, step=2)
    found = evaluation_at(merged([read_log(path)[0]]), 2, 0, {"base": 2, "miss/func": 1})
    assert found is not None
    assert found.score == pytest.approx(2 / 3)
    assert found.hint_gap == pytest.approx(1 - 2.5 / 3)
    decision = Curriculum((STAGE,)).observe(found)
    assert str(decision) == "s, step 2: stop. A gradient norm is nan. Go back to the last good weights."
    logger.finish()


def test_the_scripted_trainer_writes_what_the_real_logger_writes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("scripted_trainer.py")
    (tmp_path / "script.json").write_text("{}")
    (tmp_path / "t.parquet").touch()
    arguments = {
        "trainer.experiment_name": "s", "trainer.total_training_steps": "2", "trainer.save_freq": "2",
        "trainer.default_local_dir": str(tmp_path), "data.train_files": str(tmp_path / "t.parquet"),
    }  # fmt: skip
    logs = []
    for real in ("", "1"):
        (tmp_path / "latest_checkpointed_iteration.txt").unlink(missing_ok=True)
        log = tmp_path / f"log{real}.jsonl"
        told = {"SCRIPT": str(tmp_path / "script.json"), "REAL_LOGGER": real}
        arguments["+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"] = f"'{log}'"
        command = [sys.executable, str(script), *(f"{key}={value}" for key, value in arguments.items())]
        subprocess.run(command, env=os.environ | told, check=True, capture_output=True)
        logs.append(read_log(log)[0])
    assert logs[0] == logs[1]


def test_verls_commands_take_the_arguments_that_the_scripts_give() -> None:
    from verl.model_merger.base_model_merger import parse_args

    given = ["merger", "merge", "--backend", "fsdp", "--local_dir", "a/actor", "--target_dir", "b"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", given)
        parsed = parse_args()
    assert (parsed.operation, parsed.local_dir, parsed.target_dir) == ("merge", "a/actor", "b")
