"""`envtune evaluate`: the table of a model, as on its card, and whether a stored one still holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from envtune_agents.cli.app import app, err
from envtune_agents.cli.app import out as console
from envtune_agents.cli.chat_models import MODEL_HELP, find_chat_model
from envtune_agents.cli.options import Precision, TasksOption, choose_tasks, split_names
from envtune_agents.errors import TaskError

if TYPE_CHECKING:
    from envtune_agents.task_source import TaskSource


@app.command(name="evaluate")
def evaluate_command(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the evaluation: rollouts and report. Run again to resume.")
    ] = None,
    tasks: TasksOption = "playground",
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    categories: Annotated[str | None, typer.Option(help="Comma-separated categories; all by default.")] = None,
    task_ids: Annotated[str | None, typer.Option(help="Comma-separated task ids of the split; all by default.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many tasks.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Episodes of each task, for pass@k and pass^k.")] = 1,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "smollm2",
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server, http://host:8000/v1; --model is the name there.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Weights in memory.")] = Precision.auto,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one reply.")] = 1024,
    max_steps: Annotated[int, typer.Option(min=1, help="Model calls in one turn; one more ends the episode.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, help="Episodes at the same time.")] = 4,
    seed: Annotated[int, typer.Option(help="Same seed, same samples.")] = 0,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Play the episodes again that ended with an error.")
    ] = False,
    compare: Annotated[Path | None, typer.Option(help="Another evaluation's folder, to compare with.")] = None,
    export_bfcl: Annotated[
        Path | None, typer.Option(help="Also write the results in bfcl-eval's own format to this folder.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Recompute the verdicts of a stored report instead; needs no model.")
    ] = None,
) -> None:
    """Play tasks without hints in the deployment graph and print success per category, with intervals.

    Example: envtune evaluate --tasks bfcl --split test --model smollm2 --out runs/smollm2-test
    """
    if verify is not None:
        return _verify(verify)
    if out is None:
        raise TaskError("Where should the evaluation go? Give a folder: --out runs/first (or --verify a report).")
    from envtune_agents.evaluate import evaluate, read_report
    from envtune_agents.task_source import find_task_source

    source = find_task_source(tasks)
    chosen = choose_tasks(source.load(split, split_names(categories)), split_names(task_ids), limit)
    if export_bfcl is not None and source.export is None:
        raise TaskError(f"The task source {tasks!r} has no result format of its own; --export-bfcl needs --tasks bfcl.")
    other = read_report(compare) if compare is not None else None
    try:
        report = evaluate(
            _model(model, endpoint, precision.value, temperature, max_tokens),
            replace(source, load=lambda split, categories: chosen),
            out=out,
            name=tasks,
            split=split,
            samples=samples,
            seed=seed,
            concurrency=concurrency,
            max_steps=max_steps,
            retry_errors=retry_errors,
            progress=True,
        )
    except KeyboardInterrupt:
        err.print(f"stopped; {escape(str(out))}/report.md says what was played; run the same command again to go on")
        raise
    _show(report)
    if other is not None:
        console.print(f"against {escape(str(compare))}: {escape(str(report.compare(other)))}", soft_wrap=True)
    if export_bfcl is not None:
        _export(source, report, export_bfcl)
    return None


def _show(report: Any) -> None:
    from envtune_agents.evaluate.grids import notes
    from envtune_agents.evaluate.pages import rich_tables

    for table in rich_tables(report):
        console.print(table)
        console.print()
    for note in notes(report):
        console.print(escape(note), soft_wrap=True)
    console.print(f"report: {escape(str(report.folder))}/report.json, report.md, report.html", soft_wrap=True)


def _verify(path: Path) -> None:
    from envtune_agents.evaluate import verify

    with err.status("playing the rollouts again"):
        verification = verify(path)
    console.print(escape(str(verification)), soft_wrap=True)
    if not verification.holds:
        raise typer.Exit(1)


def _export(source: TaskSource, report: Any, folder: Path) -> None:
    from envtune_agents.rollout import read_rollouts

    wanted = {entry.task_id for entry in report.entries}
    rollouts = (rollout for rollout in read_rollouts(report.folder) if rollout.task_id in wanted)
    assert source.export is not None
    source.export(rollouts, folder)
    console.print(f"exported: {escape(str(folder))}", soft_wrap=True)


def _model(name: str, endpoint: str | None, precision: str, temperature: float, max_tokens: int) -> Any:
    if endpoint is None:
        return find_chat_model(name, precision=precision, temperature=temperature, max_tokens=max_tokens)
    from envtune_agents.evaluate import served_model

    return served_model(endpoint, name, temperature=temperature, max_tokens=max_tokens)
