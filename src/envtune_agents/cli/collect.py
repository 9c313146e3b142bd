"""`envtune collect`: play tasks with a model and write the rollouts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from envtune_agents.cli.app import app, err, on_interrupt, print_json
from envtune_agents.cli.app import out as console
from envtune_agents.cli.chat_models import ModelOption, find_chat_model, load
from envtune_agents.cli.options import (
    CategoriesOption,
    ConcurrencyOption,
    HintsOption,
    JsonOption,
    LimitOption,
    MaxStepsOption,
    MaxTokensOption,
    Precision,
    PrecisionOption,
    RetryErrorsOption,
    SplitOption,
    TaskIdsOption,
    TasksOption,
    TemperatureOption,
    choose_tasks,
    split_names,
    task_source,
)
from envtune_agents.errors import require

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from rich.console import Console

    from envtune_agents.rollout import Collected


RAY_INSTALL = "pip install -e integrations/ray"


class Backend(StrEnum):
    """Where episodes are played."""

    asyncio = "asyncio"
    ray = "ray"


@app.command(name="collect")
def collect_command(
    out: Annotated[Path, typer.Option(help="Folder of the run; rollouts.jsonl is written there. Run again to resume.")],
    tasks: TasksOption = "playground",
    split: SplitOption = "train",
    categories: CategoriesOption = None,
    task_ids: TaskIdsOption = None,
    limit: LimitOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Rollouts of each task.")] = 1,
    model: ModelOption = "smollm2",
    precision: PrecisionOption = Precision.auto,
    temperature: TemperatureOption = 0.7,
    max_tokens: MaxTokensOption = 1024,
    max_steps: MaxStepsOption = 20,
    first_step_calls: Annotated[
        bool, typer.Option("--first-step-calls", help="Decode the first reply of every turn as a tool call.")
    ] = False,
    malformed_ends_turn: Annotated[
        bool,
        typer.Option(
            "--malformed-ends-turn",
            help="End the turn at a reply whose calls cannot be read, as in BFCL's loop, instead of saying so.",
        ),
    ] = False,
    hints: HintsOption = 3,
    stage: Annotated[str, typer.Option(help="Curriculum stage, for the record.")] = "",
    concurrency: ConcurrencyOption = 4,
    seed: Annotated[int, typer.Option(help="Same seed, same rollouts.")] = 0,
    call_timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one tool call.")] = 30.0,
    episode_timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one episode.")] = 1800.0,
    retry_errors: RetryErrorsOption = False,
    zstd: Annotated[bool, typer.Option("--zstd", help="Write rollouts.jsonl.zst.")] = False,
    backend: Annotated[
        Backend, typer.Option(help="asyncio: this process. ray: the workers of a Ray cluster, each with its own model.")
    ] = Backend.asyncio,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray workers; one for each node by default.")] = None,
    worker_gpus: Annotated[float, typer.Option(min=0, help="GPUs of each Ray worker.")] = 0,
    print_rollouts: Annotated[int, typer.Option("--print", min=0, help="Print this many rollouts at the end.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Play tasks with a model and hinted tools, score every turn, and write the rollouts.

    Example: envtune collect --tasks bfcl --split train --categories base --limit 4 --model smollm2 --out runs/first

    Over a cluster: envtune collect --tasks bfcl --backend ray --workers 8 --worker-gpus 1 --concurrency 64 --out runs/b
    """
    source = task_source(tasks)
    chosen = choose_tasks(source.tasks(split, split_names(categories)), split_names(task_ids), limit)
    find = partial(find_chat_model, model, precision=precision.value, temperature=temperature, max_tokens=max_tokens)
    collect_by, chat_model = _over_ray(find, workers, worker_gpus) if backend is Backend.ray else _here(find)
    check_folder(out, zstd=zstd)
    if retry_errors:
        _set_aside(out)
    on_interrupt(f"every finished rollout is in {out}, and the same command goes on where this one stopped")
    if backend is Backend.asyncio:
        load(chat_model)
    done: Collected = asyncio.run(
        collect_by(
            chosen,
            chat_model,
            source.environment,
            out=out,
            samples=samples,
            seed=seed,
            concurrency=concurrency,
            progress=True,
            zstd=zstd,
            call_timeout_s=call_timeout,
            episode_timeout_s=episode_timeout,
            hints=source.hint_engine(hints),
            scorer=source.scorer,
            stage=stage,
            max_steps=max_steps,
            first_step_calls=first_step_calls,
            **({"malformed_ends_turn": True} if malformed_ends_turn else {}),  # else unnamed, so that older runs go on
        )
    )
    _show_rollouts(done.path, print_rollouts, err if as_json else console)
    if as_json:
        print_json(_plain(done))
    else:
        _show(done)
    _warn(done)


def _here(find: Callable[[], BaseChatModel]) -> tuple[Callable[..., Any], BaseChatModel]:
    from envtune_agents.rollout import collect

    return collect, find()


def _over_ray(find: Callable[[], BaseChatModel], workers: int | None, gpus: float) -> tuple[Callable[..., Any], Any]:
    """Collecting over a cluster; each worker finds its own model, whose files may be on its node only."""
    cluster: Any = require("envtune_ray", feature="envtune collect --backend ray", install=RAY_INSTALL)
    return partial(cluster.collect, workers=workers, actor_options={"num_gpus": gpus}), find


def check_folder(folder: Path, *, zstd: bool = False) -> None:
    """Refuses a folder that is not writable, full or held by another process, before minutes go into loading."""
    from envtune_agents.rollout import RolloutStore

    with RolloutStore(folder, zstd=zstd):
        pass


def _set_aside(folder: Path) -> None:
    """Takes the rollouts that ended with an error out of a run, so that they are played again."""
    from envtune_agents.rollout import set_aside_errors

    err.print(f"{set_aside_errors(folder)} rollouts that ended with an error are played again")


def _show_rollouts(path: Path, count: int, place: Console) -> None:
    from envtune_agents.rollout import read_rollouts
    from envtune_agents.summary import rollout_text

    for rollout in islice(read_rollouts(path), count):
        place.print(rollout_text(rollout), soft_wrap=True)
        place.print()


def _show(done: Collected) -> None:
    from envtune_agents.rollout import read_rollouts
    from envtune_agents.summary import summary_table

    console.print(summary_table(read_rollouts(done.path)))
    text = f"{done.written} rollouts written, {done.skipped} were there already: {done.path}"
    console.print(text, soft_wrap=True, markup=False)


def _plain(done: Collected) -> dict[str, Any]:
    """What was done now, and what the whole run adds up to for each category."""
    from envtune_agents.rollout import read_rollouts
    from envtune_agents.summary import totals_by_category

    totals = totals_by_category(read_rollouts(done.path))
    return {**asdict(done), "categories": {category: asdict(row) for category, row in totals.items()}}


def _warn(done: Collected) -> None:
    """What a user must know beyond the table: what failed, what took long, and what cannot be trained on."""
    if done.errors:
        from envtune_agents.rollout import read_rollouts

        last = [rollout.error for rollout in read_rollouts(done.path) if rollout.error][-1]
        said = f"{done.errors} of {done.written} rollouts ended with an error, the last with {last}."
        err.print(f"{said} --retry-errors plays them again.", markup=False, soft_wrap=True)
    for slow in done.stragglers[:5]:
        err.print(f"straggler: {slow.rollout_id} took {slow.seconds:.0f} s, the median is {slow.median_s:.1f} s")
    if done.drifted:
        err.print(f"{done.drifted} prompts did not go on from the sampled tokens and opened new branches")
    if done.untrainable:
        err.print(f"{done.untrainable} rollouts hold no on-policy token; their tape.note says why")
