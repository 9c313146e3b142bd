"""`envtune evaluate`: the table of a model, as on its card, and whether a stored one still holds."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from envtune_agents.cli.app import app, err, on_interrupt, print_json
from envtune_agents.cli.app import out as console
from envtune_agents.cli.chat_models import ModelOption, find_chat_model, load
from envtune_agents.cli.collect import check_folder
from envtune_agents.cli.options import (
    CategoriesOption,
    ConcurrencyOption,
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
    look_here,
    split_names,
    task_source,
)
from envtune_agents.errors import TaskError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from envtune_agents.evaluate import Comparison, Report
    from envtune_agents.task_source import TaskSource


@app.command(name="evaluate")
def evaluate_command(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the evaluation: rollouts and report. Run again to resume.")
    ] = None,
    tasks: TasksOption = "playground",
    split: SplitOption = "test",
    categories: CategoriesOption = None,
    task_ids: TaskIdsOption = None,
    limit: LimitOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Episodes of each task, for pass@k and pass^k.")] = 1,
    model: ModelOption = "smollm2",
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server, http://host:8000/v1; --model is the name there.")
    ] = None,
    precision: PrecisionOption = Precision.auto,
    temperature: TemperatureOption = 0.0,
    max_tokens: MaxTokensOption = 1024,
    max_steps: MaxStepsOption = 20,
    concurrency: ConcurrencyOption = 4,
    seed: Annotated[int, typer.Option(help="Same seed, same samples.")] = 0,
    retry_errors: RetryErrorsOption = False,
    compare: Annotated[Path | None, typer.Option(help="Another evaluation's folder, to compare with.")] = None,
    export_bfcl: Annotated[
        Path | None, typer.Option(help="Also write the results in bfcl-eval's own format to this folder.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Recompute the verdicts of a stored report instead; needs no model.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Play tasks without hints in the deployment graph and print success per category, with intervals.

    Example: envtune evaluate --tasks bfcl --split test --model smollm2 --out runs/smollm2-test
    """
    if verify is not None:
        return _verify(verify, as_json=as_json)
    if out is None:
        raise TaskError("Where should the evaluation go? Give a folder: --out runs/first (or --verify a report).")
    source = task_source(tasks)
    chosen = choose_tasks(source.tasks(split, split_names(categories)), split_names(task_ids), limit)
    if export_bfcl is not None and source.export is None:
        raise TaskError(f"The task source {tasks!r} has no result format of its own; --export-bfcl needs --tasks bfcl.")
    other = _report_at(compare) if compare is not None else None
    agent = _model(model, endpoint, precision.value, temperature, max_tokens)
    check_folder(out)
    on_interrupt(f"{out}/report.md says what was played, and the same command goes on where this one stopped")
    load(agent)
    from envtune_agents.evaluate import evaluate

    report = evaluate(
        agent,
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
    if export_bfcl is not None:
        _export(source, report, export_bfcl)
    comparison = report.compare(other) if other is not None else None
    if as_json:
        return print_json(_plain(report, comparison))
    _show(report)
    if comparison is not None:
        console.print(f"against {escape(str(compare))}: {escape(str(comparison))}", soft_wrap=True)
    return None


def _report_at(path: Path) -> Report:
    from envtune_agents.evaluate import read_report

    return read_report(path)


def _plain(report: Report, comparison: Comparison | None) -> dict[str, Any]:
    """The numbers of `report.json`, where it is, and how they compare."""
    from envtune_agents.evaluate.files import summary_fields

    compared = None
    if comparison is not None:
        sizes = {name: getattr(comparison, name) for name in ("tasks", "difference", "better", "worse", "p_value")}
        compared = {**sizes, "interval": list(comparison.interval)}
    return {**summary_fields(report), "folder": report.folder, "compared": compared}


def _show(report: Report) -> None:
    from envtune_agents.evaluate.grids import notes
    from envtune_agents.evaluate.pages import rich_tables

    for table in rich_tables(report):
        console.print(table)
        console.print()
    for note in notes(report):
        console.print(escape(note), soft_wrap=True)
    console.print(f"report: {escape(str(report.folder))}/report.json, report.md, report.html", soft_wrap=True)


def _verify(path: Path, *, as_json: bool) -> None:
    from envtune_agents.evaluate import verify

    look_here()  # the report may name tasks of yours
    with err.status("playing the rollouts again"):
        verification = verify(path)
    if as_json:
        print_json({"holds": verification.holds, **asdict(verification)})
    else:
        console.print(escape(str(verification)), soft_wrap=True)
    if not verification.holds:
        raise typer.Exit(1)


def _export(source: TaskSource, report: Report, folder: Path) -> None:
    from envtune_agents.rollout import read_rollouts

    assert source.export is not None
    assert report.folder is not None
    wanted = {entry.task_id for entry in report.entries}
    rollouts = (rollout for rollout in read_rollouts(report.folder) if rollout.task_id in wanted)
    source.export(rollouts, folder)
    err.print(f"exported: {escape(str(folder))}", soft_wrap=True)


def _model(name: str, endpoint: str | None, precision: str, temperature: float, max_tokens: int) -> BaseChatModel:
    if endpoint is None:
        return find_chat_model(name, precision=precision, temperature=temperature, max_tokens=max_tokens)
    from envtune_agents.evaluate import served_model

    return served_model(endpoint, name, temperature=temperature, max_tokens=max_tokens)
