"""`envtune doctor`: what is installed, what works, what to install for what you want."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from envtune_agents.cli.app import app, err, out, print_json
from envtune_agents.cli.options import JsonOption
from envtune_agents.errors import RequestError

if TYPE_CHECKING:
    from envtune_agents.doctor import Diagnosis, Feature

_COLOURS = {"ready": "green", "missing": "yellow", "broken": "red"}


@app.command(name="doctor")
def doctor_command(
    model: Annotated[
        str | None, typer.Option(help="Estimate the memory of this model: a folder, a GGUF file, a hub id, or smollm2.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one conversation for that estimate; all it admits by default.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Run a tiny check of each backend; imports torch where it is installed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, whether it fits together, and what to install for what you want.

    Ends with exit code 1 when something is broken; what is merely not installed is fine. Example: envtune doctor
    --probe --model smollm2
    """
    from envtune_agents.doctor import diagnose

    if context is not None and model is None:
        raise RequestError("--context belongs to the estimate of a model; name one, such as --model smollm2.")
    if probe:
        with err.status("trying each backend"):
            found = diagnose(model=model, context=context, probe=True)
    else:
        found = diagnose(model=model, context=context)
    if as_json:
        print_json(found.to_plain())
    else:
        _show(found)
    if not found.healthy:
        raise typer.Exit(1)


def _show(found: Diagnosis) -> None:
    _show_machine(found)
    out.print(_feature_table(found))
    _show_missing([feature for feature in found.features if feature.state == "missing"])
    if found.probes is not None:
        _show_probes(found)
    if found.memory is not None:
        out.print(_memory_table(found))
    for problem in found.problems:
        out.print(f"[red]broken[/red]  {escape(problem.what)}", soft_wrap=True)
        out.print(f"        {escape(problem.next_step)}", soft_wrap=True, highlight=False)
    if found.healthy:
        tried = "" if found.probes is not None else "; nothing was run, --probe tries each backend"
        out.print(f"[green]nothing is broken[/green]{tried}")


def _show_machine(found: Diagnosis) -> None:
    machine = found.machine
    memory = f"{machine.memory_bytes / 1e9:.1f} GB memory" if machine.memory_bytes else "memory unknown"
    gpus = ", ".join(f"{gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB)" for gpu in machine.gpus) or "no NVIDIA GPU"
    facts = [f"envtune-agents {found.version}", f"Python {machine.python}", machine.system, f"{machine.cpus} CPUs"]
    out.print(", ".join([*facts, memory, gpus]), soft_wrap=True, markup=False, highlight=False)


def _feature_table(found: Diagnosis) -> Table:
    table = Table("feature", "state", "packages")
    for feature in found.features:
        colour = _COLOURS[feature.state]
        table.add_row(escape(feature.name), f"[{colour}]{feature.state}[/{colour}]", escape(_versions(feature)))
    return table


def _versions(feature: Feature) -> str:
    words = []
    for package in feature.packages:
        named = f"{package.name} {package.found}" if package.found else f"{package.name} –"
        words.append(named if package.fits or not package.found else f"{named} (wanted {package.wanted})")
    return ", ".join(words)


def _show_missing(missing: list[Feature]) -> None:
    for feature in missing:
        out.print(f"{escape(feature.name)}: {escape(feature.offers)}", soft_wrap=True, highlight=False)
        out.print(f"    {escape(feature.install)}", soft_wrap=True, highlight=False)


def _show_probes(found: Diagnosis) -> None:
    words = {True: "[green]works[/green]", False: "[red]fails[/red]", None: "[dim]not tried[/dim]"}
    table = Table("tried", "result", "seen")
    for probe in found.probes or ():
        table.add_row(probe.name, words[probe.works], escape(probe.says))
    out.print(table)


def _memory_table(found: Diagnosis) -> Table:
    memory = found.memory
    assert memory is not None
    title = f"{escape(memory.model)}: {memory.parameters:,} parameters, one conversation of {memory.context:,} tokens"
    table = Table("precision", title=title)
    for heading in ("weights GB", "cache GB", "total GB"):
        table.add_column(heading, justify="right")
    table.add_column("fits into")
    for need in memory.needs:
        sizes = [f"{size / 1e9:.2f}" for size in (need.weights, need.cache, need.total)]
        table.add_row(need.precision, *sizes, found.fits(need))
    return table
