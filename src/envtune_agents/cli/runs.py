"""`envtune runs`: the runs in a folder beside each other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from envtune_agents.cli.app import app, err, print_json
from envtune_agents.cli.app import out as console
from envtune_agents.cli.options import JsonOption


@app.command(name="runs")
def runs_command(
    folders: Annotated[list[Path] | None, typer.Argument(help="Runs, or folders that hold runs.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List runs with what they were made with and what came out, and say in what they differ.

    Example: envtune runs runs
    """
    from envtune_agents.rollout.runs import differences, find_runs, runs_table

    runs = find_runs(folders or [Path("runs")])
    if as_json:
        print_json({"runs": [asdict(run) for run in runs], "differences": differences(runs)})
    else:
        console.print(runs_table(runs))
        _show_differences(differences(runs))
    for run in runs:
        if run.problem:
            err.print(f"{run.folder}: {run.problem}", markup=False, soft_wrap=True)


def _show_differences(found: dict[str, dict[str, str]]) -> None:
    for name, values in found.items():
        console.print(f"[bold]{name}[/bold]")
        for folder, value in values.items():
            console.print(f"  {folder}: {value}", markup=False, highlight=False, soft_wrap=True)
