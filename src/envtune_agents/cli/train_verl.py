"""`envtune train --engine verl`: the options that many GPUs have, checked, and one call of `envtune_verl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envtune_agents.cli.app import err, on_interrupt
from envtune_agents.cli.app import out as console
from envtune_agents.errors import TaskError, require

if TYPE_CHECKING:
    import typer

    from envtune_agents.curriculum import AdvanceRule, Stage
    from envtune_agents.types import Task

VERL_INSTALL = "pip install -e 'integrations/verl[vllm]', in an environment of its own"
ONLY_TRL = ("precision", "micro_batch", "max_context", "concurrency", "merge")
"""Options that `--engine verl` does not have."""
ONLY_VERL = ("gpus", "nodes", "override", "dry_run")
"""Options that `--engine trl` does not have."""

GOES_ON = "{out} holds what was saved so far, and the same command goes on from the last checkpoint"
"""What Ctrl-C says."""


def refuse_options(context: typer.Context, names: Sequence[str], engine: str) -> None:
    """Raises `TaskError` when an option that an engine does not have was given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise TaskError(f"{shown}: --engine {engine} has no such option. Leave it out, or choose the other engine.")


def train_on_many(
    model: str,
    source: str,
    *,
    out: Path,
    stages: Sequence[Stage],
    rule: AdvanceRule,
    tasks: Sequence[Task],
    settings: Mapping[str, Any],
    warm_up: str | None,
    adaptive: bool,
    test: Sequence[Task],
    report_to: str,
    dry_run: bool,
) -> Any:
    """What `envtune_verl.train` gives; with `dry_run` the commands are printed instead, and the result is None."""
    verl: Any = require("envtune_verl", feature="envtune train --engine verl", install=VERL_INSTALL)
    loggers = ("console",) if report_to == "none" else ("console", report_to)
    values = verl.VerlSettings(**settings, loggers=loggers)
    chosen: dict[str, Any] = {
        "out": out,
        "stages": stages,
        "settings": values,
        "tasks": tasks,
        "warm_up": warm_up,
        "adaptive": adaptive,
    }
    if dry_run:
        for command in verl.planned_commands(model, source, **chosen, table=verl.Table(err)):
            console.print(command, soft_wrap=True, markup=False, highlight=False)
        return None
    on_interrupt(GOES_ON.format(out=out))
    return verl.train(model, source, **chosen, rule=rule, test=test, table=verl.Table(err))
