"""Stands in for `verl.trainer.main_ppo` and `verl.model_merger`: the same arguments, files and log, without a GPU.

`$SCRIPT` is a JSON file: {"1_syntax": {"10": {"acc": 0.5, "grad_norm": null, "fail": "…"}}}. What a step does not say
is 0.5. "fail" is "save" (dies after the checkpoint, before the validation), "die", or text to end with; "cold" makes
every reward 0 until the model is warmed up. It also stands in for `verl.trainer.sft_trainer`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def log_line(step: int, data: dict[str, Any]) -> None:
    if os.environ.get("REAL_LOGGER"):
        LOGGERS[0].log(data, step)
    else:
        with Path(os.environ["VERL_FILE_LOGGER_PATH"]).open("a") as file:
            file.write(json.dumps({"step": step, "data": data}) + "\n")


LOGGERS: list[Any] = []
LOG = "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"


def validation(step: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for category in step.get("categories", ["base", "miss_param"]):
        for suffix, gain in (("", 0.0), (" with hints", 0.25)):
            found[f"val-core/{category}{suffix}/acc/mean@1"] = step.get("acc", 0.5)
            found[f"val-aux/{category}{suffix}/progress/mean@1"] = step.get("acc", 0.5) + gain
    return found


def train(settings: dict[str, str]) -> None:
    stage, last = settings["trainer.experiment_name"], int(settings["trainer.total_training_steps"])
    script = json.loads(Path(os.environ["SCRIPT"]).read_text()).get(stage, {})
    checkpoints = Path(settings["trainer.default_local_dir"])
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    fresh = settings.get("trainer.resume_mode") == "disable"
    start = int(tracker.read_text()) if tracker.exists() and not fresh else 0
    assert Path(settings["data.train_files"]).is_file()
    if settings.get("trainer.val_only") == "True":
        weights = Path(settings["actor_rollout_ref.model.path"])
        log_line(start, validation(script.get(str(start), {"acc": 1.0 if weights.name == "model" else 0.5})))
        return
    earn = earner(settings)
    for number in range(start + 1, last + 1):
        step = script.get(str(number), {})
        if step.get("fail") == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if step.get("fail") not in (None, "save"):
            sys.exit(step["fail"])
        cold = step.get("cold") and "warm_up" not in settings["actor_rollout_ref.model.path"]
        data = {"actor/grad_norm": step.get("grad_norm", 0.5), "critic/score/mean": 0.0 if cold else 0.1}
        data |= {"critic/advantages/max": 0.0, "critic/advantages/min": 0.0 if cold or step.get("equal") else -1.0}
        earn(number, step.get("progress", 0.5))
        if number % int(settings["trainer.save_freq"]) == 0 or number == last:
            (checkpoints / f"global_step_{number}" / "actor").mkdir(parents=True, exist_ok=True)
            tracker.write_text(str(number))
        if step.get("fail") == "save":
            os.kill(os.getpid(), signal.SIGKILL)
        if number == last:
            data |= validation(step)
        log_line(number, data)


def earner(settings: dict[str, str]) -> Callable[[int, float], None]:
    """What leaves a reward for each task of a step, as the agent loop does where adaptive help asks for it."""
    path = settings.get("actor_rollout_ref.rollout.agent.agent_loop_config_path", os.devnull)
    entry = Path(path.strip("'")).read_text().splitlines()
    folder = next((line.split(": ", 1)[1] for line in entry if "rewards: " in line), "null")
    if folder == "null":
        return lambda step, progress: None
    import pyarrow.parquet as parquet

    from envtune_verl.rewards import note_reward  # imported late: most tests start this program many times

    rows = parquet.read_table(settings["data.train_files"]).to_pylist()
    tasks = [row["extra_info"]["task_id"] for row in rows]

    def earn(step: int, progress: float) -> None:
        for task in tasks:
            note_reward(Path(json.loads(folder)), step, task, progress)

    return earn


def imitate(settings: dict[str, str]) -> None:
    import pyarrow.parquet as parquet

    rows = parquet.read_table(settings["data.train_files"]).num_rows
    step = rows // int(settings["data.train_batch_size"])
    checkpoints = Path(settings["trainer.default_local_dir"])
    (checkpoints / f"global_step_{step}").mkdir(parents=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))
    log_line(step, {"train/loss": 0.5})


def merge(arguments: list[str]) -> None:
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert Path(given["--local_dir"]).is_dir(), given
    target = Path(given["--target_dir"])
    target.mkdir()
    (target / "from.txt").write_text(given["--local_dir"])


if __name__ == "__main__":
    if sys.argv[1] == "merge":
        merge(sys.argv[1:])
    elif sys.argv[1].startswith("--nproc_per_node="):
        imitate(dict(argument.split("=", 1) for argument in sys.argv[2:]))
    else:
        given = dict(argument.split("=", 1) for argument in sys.argv[1:])
        os.environ["VERL_FILE_LOGGER_PATH"] = given[LOG].strip("'")
        if os.environ.get("REAL_LOGGER"):
            from verl.utils.tracking import FileLogger

            LOGGERS.append(FileLogger("envtune", "stage"))
        train(given)
