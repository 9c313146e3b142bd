"""`envtune train`: Environment Tuning on one machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from envtune_agents.cli.app import app, err
from envtune_agents.cli.app import out as console
from envtune_agents.cli.options import Precision, TasksOption, split_names
from envtune_agents.errors import TaskError, require

if TYPE_CHECKING:
    from envtune_agents.types import Task

TRL_INSTALL = "pip install -e integrations/trl"


class TrainEngine(StrEnum):
    """What computes the updates."""

    trl = "trl"


@app.command(name="train")
def train_command(
    out: Annotated[Path, typer.Option(help="Folder of the run. The same command goes on where it stopped.")],
    model: Annotated[str, typer.Option(help="A folder, a GGUF file, a hub id, or smollm2.")] = "smollm2",
    tasks: TasksOption = "playground",
    categories: Annotated[str | None, typer.Option(help="Comma-separated categories; all by default.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many training tasks.")] = None,
    engine: Annotated[TrainEngine, typer.Option(help="trl: one machine.")] = TrainEngine.trl,
    stages: Annotated[str, typer.Option(help="four, or a YAML file with stages of your own.")] = "four",
    lora: Annotated[int, typer.Option(min=0, help="Rank of the LoRA adapter; 0 trains all weights.")] = 16,
    precision: Annotated[Precision, typer.Option(help="Weights in memory; 4bit with LoRA is QLoRA.")] = Precision.auto,
    learning_rate: Annotated[float, typer.Option(help="1e-6 is the paper's for all weights; LoRA wants more.")] = 1e-6,
    kl: Annotated[float, typer.Option(min=0, help="Weight of the KL to the stage's first weights.")] = 0.1,
    prompts: Annotated[int | None, typer.Option(min=1, help="Tasks in one step; the stage's own by default.")] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Rollouts of a task; the stage's own by default.")] = None,
    micro_batch: Annotated[int, typer.Option(min=1, help="Rows in one pass; lower it when memory runs out.")] = 4,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Budget of training steps for each stage.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one reply.")] = 1024,
    max_context: Annotated[int | None, typer.Option(min=1, help="Fewer tokens of context, to save memory.")] = None,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between two validations.")] = 10,
    validation_tasks: Annotated[int, typer.Option(min=1, help="Tasks of one validation.")] = 100,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 10,
    concurrency: Annotated[int, typer.Option(min=1, help="Episodes at the same time.")] = 32,
    warm_up: Annotated[Path | None, typer.Option(help="rollouts.jsonl whose good episodes are imitated first.")] = None,
    test_tasks: Annotated[int, typer.Option(min=0, help="Test tasks for the model card; 0 writes none.")] = 100,
    merge: Annotated[bool, typer.Option("--merge", help="Also write the adapter merged into its base.")] = False,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="Choose each task's hint level by its success.")] = False,
    report_to: Annotated[str, typer.Option(help="none, tensorboard, wandb, …")] = "none",
    seed: Annotated[int, typer.Option(help="Same seed, same tasks and samples.")] = 0,
) -> None:
    """Train a model through the stages of a curriculum, with hints and progress rewards.

    Example: envtune train --model Qwen/Qwen3-4B-Instruct-2507 --tasks bfcl --stages four --lora 16 --precision 4bit
    --learning-rate 2e-5 --out runs/x
    """
    from dataclasses import replace

    from envtune_agents.curriculum import load_stages
    from envtune_agents.task_source import find_task_source

    trainer: Any = require("envtune_trl", feature="envtune train --engine trl", install=TRL_INSTALL)
    source = find_task_source(tasks)
    chosen = source.load("train", split_names(categories))[:limit]
    if not chosen:
        raise TaskError("No training task is left; change --categories or --limit.")
    planned = load_stages(stages)
    if max_steps is not None:
        planned = tuple(replace(stage, max_steps=max_steps) for stage in planned)
    settings = trainer.TrainSettings(
        lora=lora,
        precision=precision.value,
        learning_rate=learning_rate,
        kl=kl,
        prompts=prompts,
        samples=samples,
        micro_batch=micro_batch,
        max_tokens=max_tokens,
        max_context=max_context,
        evaluate_every=evaluate_every,
        validation_tasks=validation_tasks,
        save_every=save_every,
        concurrency=concurrency,
        report_to=report_to,
        seed=seed,
    )
    done = trainer.train(
        model,
        source,
        out=out,
        stages=planned,
        settings=settings,
        tasks=chosen,
        warm_up=warm_up,
        test=_spread(source.load("test", split_names(categories)), test_tasks) if test_tasks else None,
        merge=merge,
        adaptive=adaptive,
        table=trainer.Table(err),
    )
    state = "all stages are over" if done.finished else "stopped early; the last good weights are kept"
    console.print(f"{state}: {done.weights}", soft_wrap=True)


def _spread(tasks: list[Task], count: int) -> list[Task]:
    """At most `count` tasks, evenly over the list and so over its categories."""
    step = max(1, len(tasks) // count)
    return tasks[::step][:count]
