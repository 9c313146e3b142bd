"""`envtune memory`: what a model needs in memory, before it is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from envtune_agents.cli.app import app, out, print_json
from envtune_agents.cli.options import JsonOption


@app.command(name="memory")
def memory_command(
    model: Annotated[str, typer.Argument(help="A folder, a GGUF file, a downloaded hub id, or smollm2.")],
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one conversation; all the model admits by default.")
    ] = None,
    conversations: Annotated[int, typer.Option(min=1, help="Conversations kept at the same time.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Say how much memory a model needs at each precision, from its headers alone.

    Example: envtune memory smollm2 --context 4096 --conversations 8
    """
    from envtune_agents.weights import memory_report

    report = memory_report(model, context=context, conversations=conversations)
    if as_json:
        print_json({**asdict(report), "needs": [{**asdict(need), "total": need.total} for need in report.needs]})
        return
    table = Table(
        title=f"{report.model}: {report.parameters:,} parameters, {report.conversations} x {report.context:,} tokens"
    )
    for heading in ("precision", "weights GB", "cache KB/token", "cache GB", "total GB"):
        table.add_column(heading, justify="left" if heading == "precision" else "right")
    for need in report.needs:
        gigabytes = [f"{size / 1e9:.2f}" for size in (need.weights, need.cache, need.total)]
        table.add_row(need.precision, gigabytes[0], f"{need.cache_per_token / 1e3:.1f}", gigabytes[1], gigabytes[2])
    out.print(table)
