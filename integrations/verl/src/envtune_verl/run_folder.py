"""The folder of a run: for each stage its datasets, its overrides, and the script that trains it.

    run/
      train.json  curriculum.json  agent_loop.yaml
      warm_up/          only with a warm-up: dataset, overrides, scripts, checkpoints and model, as below
      1_syntax/
        train.parquet  validation.parquet  overrides.txt  run.sh  merge.sh
        logs/           one pair of files for each chunk: metrics (.jsonl) and the trainer's output (.txt);
                        with adaptive help a folder (.rewards) of what each rollout earned
        checkpoints/    verl's, with global_step_N: that of the last decision and later ones
        tensorboard/    only where verl is told to report there
        model/          the trained weights, as a checkpoint of transformers

Everything that runs is in the scripts, so a stage can be started by hand or by a cluster's scheduler.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from envtune_agents.curriculum import Stage
from envtune_agents.errors import CurriculumError
from envtune_agents.types import Task
from envtune_verl.dataset import EpisodeTerms, dataset_rows, replace_file
from envtune_verl.overrides import StageFiles, agent_loop_entry, stage_overrides
from envtune_verl.plan import RunPlan
from envtune_verl.settings import VerlSettings

TRAINER = (sys.executable, "-m", "verl.trainer.main_ppo")
"""The command that trains; it takes overrides."""
IMITATOR = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1")
"""The command that starts a process for each GPU of this machine; how many follows."""
IMITATION = ("-m", "verl.trainer.sft_trainer")
"""What each of them runs in a warm-up; it takes overrides."""
MERGER = (sys.executable, "-m", "verl.model_merger")
"""The command that makes a checkpoint of transformers from verl's."""
ADAPTER_MERGER = (sys.executable, "-m", "envtune_verl.adapter")
"""The command that makes one checkpoint of base weights and adapter."""
TEST = "test"
"""The split that test tasks come from."""
TRACKER = "latest_checkpointed_iteration.txt"
"""verl's file in a folder of checkpoints: the step of the newest whole one."""

_RUN = """#!/usr/bin/env bash
# Trains stage {stage} up to step $1 and writes its metrics to $2. What follows are further overrides of verl.
# Goes on from the newest checkpoint; a checkpoint is written at the end. Written by `envtune train --engine verl`.
set -euo pipefail
mapfile -t overrides < {overrides}
log="'${{2//\\'/\\\\\\'}}'"
environment=+ray_kwargs.ray_init.runtime_env.env_vars
{path}exec {trainer} "${{overrides[@]}}" trainer.total_training_steps="$1" \\
  "$environment.VERL_FILE_LOGGER_PATH=$log" "${{@:3}}"
"""
_MERGE = """#!/usr/bin/env bash
# Writes the weights of checkpoint $1 (a folder of sharded weights) to {model}, whole or not at all.
set -euo pipefail
rm -rf {part}
{merger} merge --backend fsdp --local_dir "$1" --target_dir {part}
{adapter}mv {part} {model}
"""


@dataclass(frozen=True, slots=True)
class StageFolder:
    """The folder of one stage."""

    path: Path

    @property
    def script(self) -> Path:
        """Trains: `run.sh STEPS LOG [override …]`."""
        return self.path / "run.sh"

    @property
    def merge_script(self) -> Path:
        """Writes the weights: `merge.sh CHECKPOINT`."""
        return self.path / "merge.sh"

    @property
    def model(self) -> Path:
        """The trained weights, once they are merged."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """verl's checkpoints."""
        return self.path / "checkpoints"

    def logs(self, step: int) -> list[Path]:
        """The metrics of every attempt at the chunk that ends at `step`, oldest first."""
        return sorted((self.path / "logs").glob(f"step_{step:06d}_*.jsonl"))

    def next_log(self, step: int) -> Path:
        """A new path for the next attempt: verl's logger empties a file that is there."""
        used = [int(path.stem.rpartition("_")[2]) for path in (*self.logs(step), *self.rewards(step))]
        return self.path / "logs" / f"step_{step:06d}_{max(used, default=0) + 1:02d}.jsonl"

    def discard_logs(self, step: int) -> None:
        """Sets the metrics of a chunk aside, so that it is trained anew."""
        for path in (*self.logs(step), *self.rewards(step)):
            path.rename(path.with_name(f"{path.name}.broken"))

    def saved(self, at_most: int | None = None) -> int:
        """Step of the newest checkpoint, 0 without one; with `at_most`, of the newest that is not later."""
        tracker = self.checkpoints / TRACKER
        if at_most is None:
            try:
                return int(tracker.read_text())
            except (OSError, ValueError):
                return 0
        return max((step for step in self._saved_steps() if step <= at_most), default=0)

    def go_back(self, step: int) -> None:
        """Makes the next start go on from the checkpoint of `step`; from the stage's first weights for 0."""
        tracker = self.checkpoints / TRACKER
        if step:
            tracker.write_text(str(step))
        else:
            tracker.unlink(missing_ok=True)

    def drop_checkpoints(self, before: int) -> None:
        """Removes the checkpoints of earlier steps once there is one of step `before`.

        verl forgets at the end of each chunk which checkpoints it wrote, so it never removes those of another chunk.
        """
        found = self._saved_steps()
        if before in found and self.saved() == before:
            for step in found:
                if step < before:
                    shutil.rmtree(found[step], ignore_errors=True)  # what cannot be removed costs disk, not the run

    def checkpoint(self, step: int) -> Path:
        """The folder of one checkpoint."""
        return self.checkpoints / f"global_step_{step}" / "actor"

    def rewards(self, step: int) -> list[Path]:
        """Where the rollouts of every attempt at the chunk that ends at `step` left their rewards, oldest first."""
        return sorted((self.path / "logs").glob(f"step_{step:06d}_*.rewards"))

    def _saved_steps(self) -> dict[int, Path]:
        """Each checkpoint's step and folder."""
        named = ((path.name.removeprefix("global_step_"), path) for path in self.checkpoints.glob("global_step_*"))
        return {int(step): path for step, path in named if step.isdecimal()}


@dataclass(frozen=True, slots=True)
class Commands:
    """verl's commands; tests put others in their place."""

    trainer: tuple[str, ...] = TRAINER
    merger: tuple[str, ...] = MERGER
    imitator: tuple[str, ...] = IMITATOR
    imitation: tuple[str, ...] = IMITATION
    adapter_merger: tuple[str, ...] = ADAPTER_MERGER


@dataclass(frozen=True, slots=True)
class Help:
    """Hint levels that follow need, instead of the stage's own."""

    levels: Callable[[Task], int]
    rewards: Path
    """Folder in which the rollouts of the next chunk leave their rewards."""


def write_stage(
    folder: StageFolder,
    plan: RunPlan,
    index: int,
    model: Path | str,
    tokens: Callable[[Task], int],
    commands: Commands,
    help_: Help | None = None,
) -> list[str]:
    """Writes the files of stage `index`; gives the ids of the tasks whose first prompt is too long: they are left out.

    `model` are the weights that the stage begins with; `tokens` counts those of a task's first prompt. Raises
    `CurriculumError` when fewer tasks are left than one training step takes.
    """
    stage = plan.stages[index]
    chosen = stage.tasks(plan.tasks, seed=plan.settings.seed)
    kept = [task for task in chosen if tokens(task) <= stage.max_prompt_tokens]
    if len(kept) < stage.prompts:
        raise CurriculumError(
            f"Stage {stage.name!r} takes {stage.prompts} tasks in one step and has {len(kept)}; "
            f"{len(chosen) - len(kept)} more were left out for the length of their first prompt. Lower prompts, or add "
            "tasks."
        )
    (folder.path / "logs").mkdir(parents=True, exist_ok=True)
    files = StageFiles(
        model,
        folder.path / "train.parquet",
        folder.path / "validation.parquet",
        folder.path.parent / "agent_loop.yaml",
        folder.checkpoints,
    )
    entry = agent_loop_entry(plan.settings, help_.rewards if help_ else None)
    files.agent_loop.write_text(entry, encoding="utf-8")
    _write_datasets(files, plan, stage, kept, help_.levels if help_ else None)
    overrides = folder.path / "overrides.txt"
    overrides.write_text("\n".join(stage_overrides(stage, plan.settings, files)) + "\n", encoding="utf-8")
    _write_scripts(folder, plan, overrides, commands)
    return [task.task_id for task in chosen if task not in kept]


def merge_text(folder: StageFolder, settings: VerlSettings, commands: Commands) -> str:
    """The script that writes the weights of a checkpoint to the folder's `model`."""
    part = shlex.quote(str(folder.model.with_name("model.part")))
    adapter = f"{shlex.join(commands.adapter_merger)} {part}\n" if settings.lora else ""
    return _MERGE.format(
        model=shlex.quote(str(folder.model)), part=part, merger=shlex.join(commands.merger), adapter=adapter
    )


def write_test(folder: Path, plan: RunPlan, tasks: Sequence[Task]) -> Path:
    """The dataset of the test tasks, played without hints."""
    rows = dataset_rows(tasks, plan.source, TEST, EpisodeTerms("test", validation=True))
    replace_file(folder / "test.parquet", rows)
    return folder / "test.parquet"


def _write_datasets(
    files: StageFiles, plan: RunPlan, stage: Stage, tasks: Sequence[Task], levels: Callable[[Task], int] | None
) -> None:
    """Training rows as the stage wants them; validation rows without hints and, in an augmented stage, again with."""
    about = EpisodeTerms(stage.name, stage.hint_level, stage.reward)
    replace_file(files.train, dataset_rows(tasks, plan.source, "train", about, levels))
    rows = []
    for level in sorted({0, stage.hint_level}):
        terms = EpisodeTerms(stage.name, level, stage.reward, validation=True)
        rows += dataset_rows(plan.validation, plan.source, plan.validation_split, terms)
    replace_file(files.validation, rows)


def _write_scripts(folder: StageFolder, plan: RunPlan, overrides: Path, commands: Commands) -> None:
    importable = (
        f"export PYTHONPATH={shlex.quote(str(Path.cwd()))}${{PYTHONPATH:+:$PYTHONPATH}}\n"  # also Ray's workers
    )
    run = _RUN.format(
        stage=folder.path.name,
        overrides=shlex.quote(str(overrides)),
        path=importable if ":" in plan.source else "",  # a factory of the user's own
        trainer=shlex.join(commands.trainer),
    )
    folder.script.write_text(run, encoding="utf-8")
    folder.merge_script.write_text(merge_text(folder, plan.settings, commands), encoding="utf-8")
