"""`envtune collect`: play tasks with a model and write the rollouts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from envtune_agents.cli.app import app, err
from envtune_agents.cli.app import out as console
from envtune_agents.cli.options import HintsOption, Precision, TasksOption, choose_tasks, split_names

if TYPE_CHECKING:
    from envtune_agents.rollout import Collected


@app.command(name="collect")
def collect_command(
    out: Annotated[Path, typer.Option(help="Folder of the run; rollouts.jsonl is written there. Run again to resume.")],
    tasks: TasksOption = "playground",
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "train",
    categories: Annotated[str | None, typer.Option(help="Comma-separated categories; all by default.")] = None,
    task_ids: Annotated[str | None, typer.Option(help="Comma-separated task ids of the split; all by default.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many tasks.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Rollouts of each task.")] = 1,
    model: Annotated[str, typer.Option(help="A folder, a GGUF file, a hub id, or smollm2.")] = "smollm2",
    precision: Annotated[Precision, typer.Option(help="Weights in memory.")] = Precision.auto,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one reply.")] = 1024,
    max_steps: Annotated[int, typer.Option(min=1, help="Model calls in one turn; one more ends the episode.")] = 20,
    first_step_calls: Annotated[
        bool, typer.Option("--first-step-calls", help="Decode the first reply of every turn as a tool call.")
    ] = False,
    hints: HintsOption = 3,
    stage: Annotated[str, typer.Option(help="Curriculum stage, for the record.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Episodes at the same time.")] = 4,
    seed: Annotated[int, typer.Option(help="Same seed, same rollouts.")] = 0,
    call_timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one tool call.")] = 30.0,
    episode_timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one episode.")] = 1800.0,
    zstd: Annotated[bool, typer.Option("--zstd", help="Write rollouts.jsonl.zst.")] = False,
    print_rollouts: Annotated[int, typer.Option("--print", min=0, help="Print this many rollouts at the end.")] = 0,
) -> None:
    """Play tasks with a model and hinted tools, score every turn, and write the rollouts.

    Example: envtune collect --tasks bfcl --split train --categories base --limit 4 --model smollm2 --out runs/first
    """
    from envtune_agents.chat_model import ChatTransformers
    from envtune_agents.rollout import RolloutStore, collect, read_rollouts
    from envtune_agents.summary import rollout_text, summary_table
    from envtune_agents.task_source import find_task_source

    source = find_task_source(tasks)
    chosen = choose_tasks(source.load(split, split_names(categories)), split_names(task_ids), limit)
    chat_model = ChatTransformers(
        model=model, precision=precision.value, temperature=temperature, max_tokens=max_tokens
    )
    with RolloutStore(out, zstd=zstd):
        pass  # a folder that cannot be written is refused before minutes go into loading
    with err.status(f"loading {model}"):
        _ = chat_model.engine.weights
    done = asyncio.run(
        collect(
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
        )
    )
    for rollout, _ in zip(read_rollouts(done.path), range(print_rollouts), strict=False):
        console.print(rollout_text(rollout), soft_wrap=True)
        console.print()
    console.print(summary_table(read_rollouts(done.path)))
    console.print(f"{done.written} rollouts written, {done.skipped} were there already: {done.path}", soft_wrap=True)
    _report(done)


def _report(done: Collected) -> None:
    """What a user must know beyond the table: what took long, and what cannot be trained on."""
    for slow in done.stragglers[:5]:
        err.print(f"straggler: {slow.rollout_id} took {slow.seconds:.0f} s, the median is {slow.median_s:.1f} s")
    if done.drifted:
        err.print(f"{done.drifted} prompts did not go on from the sampled tokens and opened new branches")
    if done.untrainable:
        err.print(f"{done.untrainable} rollouts hold no on-policy token; their tape.note says why")
