"""TRL's trainer for one stage: its configuration, its checkpoints, and what to do when memory runs out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from envtune_agents.errors import CurriculumError
from envtune_agents.types import Task
from envtune_trl.progress import StageProgress
from envtune_trl.rollouts import EpisodeRollouts, reward_from_rollouts, task_dataset
from envtune_trl.settings import TrainSettings
from envtune_trl.weights import Policy


def trainer_of(
    policy: Policy, rollouts: EpisodeRollouts, progress: StageProgress, folder: Path, tasks: Sequence[Task]
) -> Any:
    """TRL's trainer for one stage."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    trl: Any = import_module("trl")  # exports its names lazily
    transformers: Any = import_module("transformers")
    options = rollouts.settings.grpo_options(rollouts.stage, folder, progress.steps, rollouts.processes.count)
    trainer = trl.GRPOTrainer(
        model=policy.model,
        reward_funcs=reward_from_rollouts,
        args=_config(options, policy.weights.precision),
        train_dataset=task_dataset(tasks),
        processing_class=policy.weights.tokenizer,
        rollout_func=rollouts,
        callbacks=[progress.callback()],
    )
    if (seen := trainer.accelerator.num_processes) != rollouts.processes.count:
        raise CurriculumError(
            f"The trainer was started in {seen} processes, and {rollouts.processes.count} of them are known here. "
            "Start them with torchrun or accelerate launch on one machine, or train in one process."
        )
    trainer.remove_callback(transformers.PrinterCallback)  # the table says it better
    progress.report = partial(transformers.Trainer.log, trainer)  # without TRL's own metrics, which are of training
    return trainer


def _config(options: dict[str, Any], precision: str) -> Any:
    """TRL's config for this machine."""
    import torch

    trl: Any = import_module("trl")
    checkpointing = options.pop("gradient_checkpointing")
    renamed = (
        "activation_checkpointing" in trl.GRPOConfig.__dataclass_fields__
    )  # transformers 5.2x gave it another name
    options["activation_checkpointing" if renamed else "gradient_checkpointing"] = checkpointing
    config = trl.GRPOConfig(**options, bf16=precision not in ("fp32", "fp16"), use_cpu=not torch.cuda.is_available())
    config._n_gpu = min(config.n_gpu, 1)  # of several GPUs the Trainer would make copies, which the engine does not see
    return config


def check_report_to(report_to: str) -> None:
    """Raises `CurriculumError` where transformers knows no such place for metrics, or its package is missing."""
    if report_to in ("none", "all"):
        return
    integrations: Any = import_module("transformers.integrations")  # has no types
    try:
        for callback in integrations.get_reporting_integration_callbacks([report_to]):
            callback()
    except (ValueError, RuntimeError) as error:
        raise CurriculumError(f"Metrics cannot go to {report_to!r}. {error} Or leave report_to out.") from error


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; one that a crash cut off is passed over."""
    found = [
        (step_of(path), path)
        for path in folder.glob("checkpoint-*")
        if (path / "trainer_state.json").is_file() and (path / "optimizer.pt").is_file()
    ]
    return str(max(found)[1]) if found else None


def step_of(checkpoint: str | Path) -> int:
    """The training step that a checkpoint was written at."""
    return int(Path(checkpoint).name.rpartition("-")[2])


@contextmanager
def memory_advice(settings: TrainSettings) -> Iterator[None]:
    """Turns an out-of-memory error into one that names the knobs, largest effect first."""
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        advice = [
            f"micro_batch (now {settings.micro_batch})",
            f"max_context (now {settings.max_context or 'that of the checkpoint'})",
            "" if settings.gradient_checkpointing else "gradient_checkpointing",
            ""
            if settings.precision == "4bit"
            else f"in a new folder precision 4bit with a LoRA rank (now {settings.precision})",
            f"concurrency (now {settings.concurrency})",
        ]
        knobs = ", then ".join(knob for knob in advice if knob)
        raise CurriculumError(
            f"Memory ran out while training. Lower or set, in this order: {knobs}. The same command then goes on from "
            "the last checkpoint."
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    name = type(error).__name__
    return name == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in str(error)
