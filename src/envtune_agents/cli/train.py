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
from envtune_agents.cli.options import Precision, split_names, task_source
from envtune_agents.cli.train_verl import GOES_ON, ONLY_TRL, ONLY_VERL, refuse_options, train_on_many
from envtune_agents.errors import RecordError, require

if TYPE_CHECKING:
    from envtune_agents.task_source import TaskSource
    from envtune_agents.types import Task

TRL_INSTALL = "pip install -e integrations/trl"


class TrainEngine(StrEnum):
    """What computes the updates."""

    trl = "trl"
    verl = "verl"


_TASKS, _LEARNING, _RESULTS = "What it trains on", "How it learns", "What it reports and keeps"
_MACHINE, _MANY = "Memory and speed, on one machine", "Many GPUs: --engine verl"
_option = typer.Option


@app.command(name="train")
def train_command(
    context: typer.Context,
    out: Annotated[Path, _option(help="Folder of the run. The same command goes on where it stopped.")],
    model: Annotated[str, _option(help="A folder, a GGUF file, a hub id, or smollm2.")] = "smollm2",
    engine: Annotated[TrainEngine, _option(help="trl: one machine. verl: many GPUs.")] = TrainEngine.trl,
    tasks: Annotated[
        str, _option(help="playground, bfcl, or module:factory of your own.", rich_help_panel=_TASKS)
    ] = "playground",
    categories: Annotated[
        str | None, _option(help="Comma-separated categories; all by default.", rich_help_panel=_TASKS)
    ] = None,
    limit: Annotated[
        int | None, _option(min=1, help="At most this many training tasks.", rich_help_panel=_TASKS)
    ] = None,
    stages: Annotated[
        str, _option(help="four, or a YAML file with stages and a rule of your own.", rich_help_panel=_TASKS)
    ] = "four",
    adaptive: Annotated[
        bool,
        _option("--adaptive", help="Each task's hint level follows its success.", rich_help_panel=_TASKS),
    ] = False,
    warm_up: Annotated[
        str | None,
        _option(
            help="auto: when no first step earns a reward, imitate solutions for a moment and begin again; or a "
            "rollouts.jsonl to imitate first.",
            rich_help_panel=_TASKS,
        ),
    ] = None,
    learning_rate: Annotated[
        float, _option(help="1e-6 is the paper's for all weights; LoRA wants 1e-5 to 1e-4.", rich_help_panel=_LEARNING)
    ] = 1e-6,
    lora: Annotated[
        int | None,
        _option(
            min=0,
            help="Rank of the LoRA adapter; 0 trains all weights. 16 with trl and 0 with verl by default.",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    kl: Annotated[
        float, _option(min=0, help="Weight of the KL to the stage's first weights.", rich_help_panel=_LEARNING)
    ] = 0.1,
    prompts: Annotated[
        int | None, _option(min=1, help="Tasks in one step; the stage's own by default.", rich_help_panel=_LEARNING)
    ] = None,
    samples: Annotated[
        int | None, _option(min=2, help="Rollouts of a task; the stage's own by default.", rich_help_panel=_LEARNING)
    ] = None,
    max_steps: Annotated[
        int | None, _option(min=1, help="Budget of training steps for each stage.", rich_help_panel=_LEARNING)
    ] = None,
    max_tokens: Annotated[int, _option(min=1, help="Tokens of one reply.", rich_help_panel=_LEARNING)] = 1024,
    seed: Annotated[int, _option(help="Same seed, same tasks and samples.", rich_help_panel=_LEARNING)] = 0,
    evaluate_every: Annotated[
        int, _option(min=1, help="Steps between two validations, which decide.", rich_help_panel=_RESULTS)
    ] = 10,
    validation_tasks: Annotated[int, _option(min=1, help="Tasks of one validation.", rich_help_panel=_RESULTS)] = 100,
    test_tasks: Annotated[
        int, _option(min=0, help="Test tasks for the model card; 0 writes none.", rich_help_panel=_RESULTS)
    ] = 100,
    save_every: Annotated[int, _option(min=1, help="Steps between two checkpoints.", rich_help_panel=_RESULTS)] = 10,
    report_to: Annotated[str, _option(help="none, tensorboard, wandb, …", rich_help_panel=_RESULTS)] = "none",
    merge: Annotated[
        bool, _option("--merge", help="trl: also write the adapter merged into its base.", rich_help_panel=_RESULTS)
    ] = False,
    as_json: Annotated[
        bool, _option("--json", help="One JSON object on stdout, for scripts.", rich_help_panel=_RESULTS)
    ] = False,
    precision: Annotated[
        Precision, _option(help="Weights in memory; 4bit with LoRA is QLoRA.", rich_help_panel=_MACHINE)
    ] = Precision.auto,
    micro_batch: Annotated[
        int, _option(min=1, help="Rows in one pass; lower it when memory runs out.", rich_help_panel=_MACHINE)
    ] = 4,
    max_context: Annotated[
        int | None, _option(min=1, help="Fewer tokens of context, to save memory.", rich_help_panel=_MACHINE)
    ] = None,
    concurrency: Annotated[int, _option(min=1, help="Episodes at the same time.", rich_help_panel=_MACHINE)] = 32,
    gpus: Annotated[int, _option(min=1, help="GPUs of each node.", rich_help_panel=_MANY)] = 8,
    nodes: Annotated[int, _option(min=1, help="Machines of the Ray cluster.", rich_help_panel=_MANY)] = 1,
    override: Annotated[
        list[str] | None, _option(help="A Hydra override; may be repeated.", rich_help_panel=_MANY)
    ] = None,
    dry_run: Annotated[
        bool, _option("--dry-run", help="Write the run folder, print the commands.", rich_help_panel=_MANY)
    ] = False,
) -> None:
    """Train a model through the stages of a curriculum, with hints and progress rewards.

    Each stage plays tasks, rewards what worked and updates the weights. Validation without hints decides when the
    next one begins, and says why. Ctrl-C and kill lose nothing: the same command goes on from the last checkpoint.

    Example: envtune train --model Qwen/Qwen3-4B-Instruct-2507 --tasks bfcl --stages four --lora 16 --precision 4bit
    --learning-rate 2e-5 --out runs/x

    In minutes, on a CPU: envtune train --warm-up auto --lora 8 --learning-rate 1e-4 --prompts 2 --samples 4
    --max-steps 2 --max-tokens 48 --validation-tasks 4 --test-tasks 0 --evaluate-every 1 --out runs/first

    On two GPUs of one machine, the model whole on each: torchrun --nproc_per_node 2 --no-python envtune train …

    On eight GPUs: envtune train --engine verl --model qwen3-4b --tasks bfcl --gpus 8 --out runs/y
    """
    refuse_options(context, ONLY_TRL if engine is TrainEngine.verl else ONLY_VERL, engine.value)
    from envtune_agents.curriculum import load_rule, load_stages

    source = task_source(tasks)
    chosen = source.tasks("train", split_names(categories))[:limit]
    planned, rule = load_stages(stages), load_rule(stages)
    if max_steps is not None:
        planned = tuple(replace(stage, max_steps=max_steps) for stage in planned)
    _check_places(out, warm_up)
    source.environment_of(chosen[0])  # before anything heavy is imported
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
    test = _test_tasks(source, split_names(categories), test_tasks)
    if engine is TrainEngine.verl:
        own = {"lora": lora or 0, "gpus": gpus, "nodes": nodes, "overrides": tuple(override or ())}
        done = train_on_many(
            model,
            tasks,
            out=out,
            stages=planned,
            rule=rule,
            tasks=chosen,
            settings={**shared, **own},
            warm_up=warm_up,
            adaptive=adaptive,
            test=test,
            report_to=report_to,
            dry_run=dry_run,
        )
        return _report(done, as_json) if done is not None else None
    trainer: Any = require("envtune_trl", feature="envtune train --engine trl", install=TRL_INSTALL)
    on_interrupt(GOES_ON.format(out=out))
    settings = trainer.TrainSettings(
        **shared,
        lora=16 if lora is None else lora,
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
        rule=rule,
        settings=settings,
        tasks=chosen,
        warm_up=warm_up,
        test=test,
        merge=merge,
        adaptive=adaptive,
        table=trainer.Table(err),
    )
    return _report(done, as_json) if trainer.speaks() else None


def _report(done: Any, as_json: bool) -> None:
    """What a run left behind."""
    if as_json:
        decisions = [asdict(decision) for decision in done.curriculum.decisions]
        print_json({"finished": done.finished, "weights": done.weights, "decisions": decisions})
        return
    state = "all stages are over" if done.finished else "stopped early; the last good weights are kept"
    console.print(f"{state}: {done.weights}", soft_wrap=True, markup=False)


def _check_places(out: Path, warm_up: str | None) -> None:
    """Refuses an `out` that cannot be made, and a `warm_up` without rollouts, before anything heavy is imported."""
    from envtune_agents.rollout import read_rollouts

    there = next((place for place in (out, *out.absolute().parents) if place.exists()), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise RecordError(
            f"Cannot write to {out}: {there} is not a folder that you may write to. Choose another --out."
        )
    if warm_up not in (None, "auto") and not any(True for _ in read_rollouts(warm_up)):
        raise RecordError(f"{warm_up} holds no rollouts. Collect some first: envtune collect --out {warm_up}")


def _test_tasks(source: TaskSource, categories: list[str] | None, count: int) -> list[Task]:
    """At most `count` test tasks, evenly over all categories; none when the source has no split "test"."""
    if not count:
        return []
    tasks = source.tasks_if_any("test", categories)
    if tasks is None:
        err.print('The task source has no split "test", so there will be no model card.', soft_wrap=True)
        return []
    return tasks[:: max(1, len(tasks) // count)][:count]
