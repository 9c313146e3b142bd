"""`envtune train`: Environment Tuning on one machine, or on many GPUs."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from envtune_agents.cli.app import app, err, on_interrupt, print_json
from envtune_agents.cli.app import out as console
from envtune_agents.cli.chat_models import find_checkpoint
from envtune_agents.cli.options import (
    CategoriesOption,
    ConcurrencyOption,
    JsonOption,
    MaxTokensOption,
    Precision,
    TasksOption,
    split_names,
    task_source,
)
from envtune_agents.cli.train_verl import ONLY_TRL, ONLY_VERL, refuse_options, train_on_many
from envtune_agents.errors import RecordError, TaskError, require

if TYPE_CHECKING:
    from envtune_agents.types import Task

TRL_INSTALL = "pip install -e integrations/trl"


class TrainEngine(StrEnum):
    """What computes the updates."""

    trl = "trl"
    verl = "verl"


@app.command(name="train")
def train_command(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the run. The same command goes on where it stopped.")],
    model: Annotated[str, typer.Option(help="A folder, a GGUF file, a hub id, or smollm2.")] = "smollm2",
    tasks: TasksOption = "playground",
    categories: CategoriesOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many training tasks.")] = None,
    engine: Annotated[TrainEngine, typer.Option(help="trl: one machine. verl: many GPUs.")] = TrainEngine.trl,
    stages: Annotated[str, typer.Option(help="four, or a YAML file with stages of your own.")] = "four",
    lora: Annotated[int, typer.Option(min=0, help="Rank of the LoRA adapter; 0 trains all weights.")] = 16,
    precision: Annotated[Precision, typer.Option(help="Weights in memory; 4bit with LoRA is QLoRA.")] = Precision.auto,
    learning_rate: Annotated[float, typer.Option(help="1e-6 is the paper's for all weights; LoRA wants more.")] = 1e-6,
    kl: Annotated[float, typer.Option(min=0, help="Weight of the KL to the stage's first weights.")] = 0.1,
    prompts: Annotated[int | None, typer.Option(min=1, help="Tasks in one step; the stage's own by default.")] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Rollouts of a task; the stage's own by default.")] = None,
    micro_batch: Annotated[int, typer.Option(min=1, help="Rows in one pass; lower it when memory runs out.")] = 4,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Budget of training steps for each stage.")] = None,
    max_tokens: MaxTokensOption = 1024,
    max_context: Annotated[int | None, typer.Option(min=1, help="Fewer tokens of context, to save memory.")] = None,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between two validations.")] = 10,
    validation_tasks: Annotated[int, typer.Option(min=1, help="Tasks of one validation.")] = 100,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 10,
    concurrency: ConcurrencyOption = 32,
    warm_up: Annotated[Path | None, typer.Option(help="rollouts.jsonl whose good episodes are imitated first.")] = None,
    test_tasks: Annotated[int, typer.Option(min=0, help="Test tasks for the model card; 0 writes none.")] = 100,
    merge: Annotated[bool, typer.Option("--merge", help="Also write the adapter merged into its base.")] = False,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="Choose each task's hint level by its success.")] = False,
    report_to: Annotated[str, typer.Option(help="none, tensorboard, wandb, …")] = "none",
    seed: Annotated[int, typer.Option(help="Same seed, same tasks and samples.")] = 0,
    gpus: Annotated[int, typer.Option(min=1, help="verl: GPUs of each node.")] = 8,
    nodes: Annotated[int, typer.Option(min=1, help="verl: machines of the Ray cluster.")] = 1,
    override: Annotated[list[str] | None, typer.Option(help="verl: a Hydra override; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="verl: write the run folder, print the commands.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model through the stages of a curriculum, with hints and progress rewards.

    Example: envtune train --model Qwen/Qwen3-4B-Instruct-2507 --tasks bfcl --stages four --lora 16 --precision 4bit
    --learning-rate 2e-5 --out runs/x
    """
    refuse_options(context, ONLY_TRL if engine is TrainEngine.verl else ONLY_VERL, engine.value)
    from envtune_agents.curriculum import load_stages

    source = task_source(tasks)
    chosen = source.load("train", split_names(categories))[:limit]
    if not chosen:
        raise TaskError("No training task is left; change --categories or --limit.")
    planned = load_stages(stages)
    if max_steps is not None:
        planned = tuple(replace(stage, max_steps=max_steps) for stage in planned)
    _check_places(out, warm_up)
    find_checkpoint(model)
    shared: dict[str, Any] = {
        "learning_rate": learning_rate,
        "kl": kl,
        "prompts": prompts,
        "samples": samples,
        "max_tokens": max_tokens,
        "evaluate_every": evaluate_every,
        "validation_tasks": validation_tasks,
        "save_every": save_every,
        "seed": seed,
    }
    if engine is TrainEngine.verl:
        own = {"gpus": gpus, "nodes": nodes, "overrides": tuple(override or ())}
        done = train_on_many(
            model,
            tasks,
            out=out,
            stages=planned,
            tasks=chosen,
            settings={**shared, **own},
            report_to=report_to,
            dry_run=dry_run,
        )
        return _report(done, as_json) if done is not None else None
    trainer: Any = require("envtune_trl", feature="envtune train --engine trl", install=TRL_INSTALL)
    on_interrupt(f"{out} holds what was saved so far, and the same command goes on from there")
    settings = trainer.TrainSettings(
        **shared,
        lora=lora,
        precision=precision.value,
        micro_batch=micro_batch,
        max_context=max_context,
        concurrency=concurrency,
        report_to=report_to,
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
    return _report(done, as_json)


def _report(done: Any, as_json: bool) -> None:
    """What a run left behind."""
    if as_json:
        decisions = [asdict(decision) for decision in done.curriculum.decisions]
        print_json({"finished": done.finished, "weights": done.weights, "decisions": decisions})
        return
    state = "all stages are over" if done.finished else "stopped early; the last good weights are kept"
    console.print(f"{state}: {done.weights}", soft_wrap=True, markup=False)


def _check_places(out: Path, warm_up: Path | None) -> None:
    """Refuses an `out` that cannot be made, and a `warm_up` without rollouts, before anything heavy is imported."""
    from envtune_agents.rollout import read_rollouts

    there = next((place for place in (out, *out.absolute().parents) if place.exists()), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise RecordError(
            f"Cannot write to {out}: {there} is not a folder that you may write to. Choose another --out."
        )
    if warm_up is not None and not any(True for _ in read_rollouts(warm_up)):
        raise RecordError(f"{warm_up} holds no rollouts. Collect some first: envtune collect --out {warm_up}")


def _spread(tasks: list[Task], count: int) -> list[Task]:
    """At most `count` tasks, evenly over the list and so over its categories."""
    step = max(1, len(tasks) // count)
    return tasks[::step][:count]
