"""A short supervised warm-up before GRPO, by verl's own trainer: rollouts -> a folder with a dataset and scripts.

A model that cannot call tools yet earns 0 in every rollout, and GRPO learns nothing from that. Examples are a rollout
file of yours, or the solutions of training tasks where the source knows them.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from envtune_agents.chat_model.template import template_for
from envtune_agents.curriculum import Silence, Stage
from envtune_agents.errors import CurriculumError
from envtune_agents.export.sft import messages_of
from envtune_agents.rollout import ModelPrint, collect_with, read_rollouts, run_episode
from envtune_agents.task_source import TaskSource, find_task_source
from envtune_agents.testing import ScriptedChatModel
from envtune_agents.types import Environment, Rollout, Task
from envtune_agents.weights import Weights, tokenizer_only
from envtune_verl.dataset import replace_file
from envtune_verl.overrides import hydra_lines
from envtune_verl.plan import RunPlan
from envtune_verl.run_folder import Commands, StageFolder, merge_text
from envtune_verl.settings import VerlSettings

FOLDER = "warm_up"
"""Folder of the warm-up in a run's folder; made as a stage's is."""
MOST_LESSONS = 96
"""Tasks whose solutions are imitated (ours)."""
LORA_RATE, FULL_RATE = 5e-4, 1e-5
"""Learning rates of the warm-up, with LoRA and for all weights (ours)."""
_ROWS_PER_STEP = 4

AUTO = "auto"
"""The `warm_up` that is made when the first stage cannot begin."""
_COLD = "cold.json"
_SYSTEM, _END = "<|im_start|>system\n", "<|im_end|>"

_RUN = """#!/usr/bin/env bash
# Imitates the rollouts of train.parquet, once through, on this machine's GPUs. Its metrics go to $1.
# Written by `envtune train --engine verl`.
set -euo pipefail
mapfile -t overrides < {overrides}
export VERL_FILE_LOGGER_PATH="$1" TENSORBOARD_DIR={tensorboard}
exec {trainer} "${{overrides[@]}}" "${{@:2}}"
"""


@dataclass(frozen=True, slots=True)
class WarmUpFolder:
    """Where the warm-up of a run is."""

    run: Path

    @property
    def stage(self) -> StageFolder:
        """Its dataset, scripts, checkpoints and weights, as a stage has them."""
        return StageFolder(self.run / FOLDER)

    @property
    def rollouts(self) -> Path:
        """The solutions that an automatic warm-up imitates, as a run."""
        return self.run / FOLDER / "solutions"

    @property
    def origin(self) -> str:
        """What is imitated, in words."""
        return "the solutions of training tasks" if self.because() else "good rollouts"

    def note(self, silence: Silence) -> None:
        """Writes down why a warm-up is made by itself; from here on the run begins again, whatever happens."""
        self.stage.path.mkdir(parents=True, exist_ok=True)
        (self.stage.path / _COLD).write_text(json.dumps([silence.step, str(silence)]) + "\n", encoding="utf-8")

    def because(self) -> tuple[int, str] | None:
        """The step and the words that `note` was given; None without an automatic warm-up."""
        path = self.stage.path / _COLD
        if not path.exists():
            return None
        step, why = json.loads(path.read_text(encoding="utf-8"))
        return int(step), str(why)


def solutions(plan: RunPlan, stage: Stage, folder: Path) -> Path:
    """A run in `folder` in which training tasks of the stage are played by their own solutions."""
    source = find_task_source(plan.source)
    tasks = stage.tasks(plan.tasks, seed=plan.settings.seed)
    chosen = Random(plan.settings.seed).sample(tasks, k=min(len(tasks), MOST_LESSONS))
    asyncio.run(collect_with(_Solver(source), chosen, out=folder))
    return folder


@dataclass(frozen=True, slots=True)
class _Solver:
    """Plays each task by its own solution."""

    source: TaskSource

    async def model_print(self) -> ModelPrint:
        return ModelPrint("solution", "records")

    async def play(self, task: Task, sample: int) -> Rollout:
        model = ScriptedChatModel(script=self.source.solution_replies(task), model_name="solution")
        return await run_episode(
            model,
            self.source.environment(task),
            sample=sample,
            scorer=self.source.scorer,
            malformed_ends_turn=self.source.malformed_ends_turn,
        )


def write_warm_up(folder: StageFolder, plan: RunPlan, rollouts: Path, commands: Commands) -> int:
    """Writes dataset and scripts of the warm-up; gives the training steps that it takes.

    Raises `CurriculumError` when the good rollouts are fewer than one step takes.
    """
    longest = plan.stages[0].max_prompt_tokens + plan.stages[0].max_response_tokens
    (folder.path / "logs").mkdir(parents=True, exist_ok=True)
    rows, batch = list(_rows(plan, rollouts)), _batch(plan.settings)
    if len(rows) < batch:
        raise CurriculumError(
            f"A warm-up on {plan.settings.gpus} GPUs takes {batch} rollouts in one step, and {rollouts} has "
            f"{len(rows)} with a reward, of this run's tasks. Collect more, or use fewer GPUs."
        )
    replace_file(folder.path / "train.parquet", rows)
    overrides = folder.path / "overrides.txt"
    overrides.write_text("\n".join(warm_up_overrides(plan, folder, longest)) + "\n", encoding="utf-8")
    trainer = (*commands.imitator, f"--nproc_per_node={plan.settings.gpus}", *commands.imitation)
    run = _RUN.format(
        overrides=shlex.quote(str(overrides)),
        tensorboard=shlex.quote(str(folder.path / "tensorboard")),
        trainer=shlex.join(trainer),
    )
    folder.script.write_text(run, encoding="utf-8")
    folder.merge_script.write_text(merge_text(folder, plan.settings, commands), encoding="utf-8")
    return len(rows) // batch


def warm_up_overrides(plan: RunPlan, folder: StageFolder, longest: int) -> list[str]:
    """The overrides of verl's `sft_trainer_engine` for the warm-up; conversations longer than `longest` are cut."""
    settings = plan.settings
    values: dict[str, object] = {
        "data.train_files": folder.path / "train.parquet",
        "data.train_batch_size": _batch(settings),
        "data.micro_batch_size_per_gpu": 1,
        "data.max_length": longest,
        "data.max_token_len_per_gpu": longest,
        "data.truncation": "right",
        # verl renders message by message, and a Qwen template writes the results of several calls into one user turn
        "data.ignore_input_ids_mismatch": True,
        "data.num_workers": 0,
        "model.path": plan.model,
        "model.enable_gradient_checkpointing": True,
        "model.lora_rank": settings.lora,
        "model.lora_alpha": 2 * settings.lora,
        "optim.lr": LORA_RATE if settings.lora else FULL_RATE,
        "engine.param_offload": settings.offload,
        "engine.optimizer_offload": settings.offload,
        "trainer.project_name": "envtune",
        "trainer.experiment_name": FOLDER,
        "trainer.logger": [*settings.loggers, "file"],
        "trainer.total_epochs": 1,
        "trainer.n_gpus_per_node": settings.gpus,
        "trainer.nnodes": 1,
        "trainer.seed": settings.seed,
        "trainer.default_local_dir": folder.checkpoints,
        "hydra.run.dir": folder.path / "hydra",
    }
    return hydra_lines(values)


def _batch(settings: VerlSettings) -> int:
    """Rows of one step: as many for each GPU, four at least."""
    return settings.gpus * -(-_ROWS_PER_STEP // settings.gpus)


def _rows(plan: RunPlan, rollouts: Path) -> Iterator[dict[str, Any]]:
    """One conversation for each good rollout of the run's tasks, with the tools in its system message.

    verl renders message by message and would take the tools from a column, but in a table tools of unlike parameters
    become records of all of them.
    """
    source, weights = find_task_source(plan.source), tokenizer_only(plan.model)
    tasks = {task.task_id: task for task in plan.tasks}
    good = (one for one in read_rollouts(rollouts) if one.error is None and one.reward and one.task_id in tasks)
    for rollout in good:
        messages = [{"role": part["role"], "content": part["content"]} for part in messages_of(rollout.turns)]
        system = _system_text(weights, source.environment(tasks[rollout.task_id]))
        yield {"messages": [{"role": "system", "content": system}, *messages]}


def _system_text(weights: Weights, world: Environment) -> str:
    """What the model's template writes into the system message when it offers these tools."""
    messages = [{"role": "user", "content": world.open_turn() or ""}]
    tools = [convert_to_openai_tool(tool) for tool in world.tools()]
    text = template_for(weights, "auto", messages, tools, None).render(messages, tools)
    if not text.startswith(_SYSTEM) or _END not in text:
        raise CurriculumError(
            f"The chat template of '{weights.name}' does not offer tools in a system message, so verl cannot be shown "
            "them in a warm-up. Fine-tune the model yourself and give the result as --model."
        )
    return text.removeprefix(_SYSTEM).partition(_END)[0]
