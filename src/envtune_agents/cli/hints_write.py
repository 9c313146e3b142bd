"""`envtune hints write`: a chat model drafts rules for unanswered failures, another judges them."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from envtune_agents.cli.app import err, out, print_json
from envtune_agents.cli.chat_models import MODEL_HELP, ModelOption, find_chat_model, load
from envtune_agents.cli.hints import RunArgument, SourceOption, hints_app, rollouts_of, write_new
from envtune_agents.cli.options import (
    JsonOption,
    MaxTokensOption,
    Precision,
    PrecisionOption,
    TemperatureOption,
    source_of,
    task_source,
)

if TYPE_CHECKING:
    from envtune_agents.hint_writer import WrittenHint


@hints_app.command(name="write")
def write_command(
    run: RunArgument,
    model: ModelOption,
    out_file: Annotated[Path, typer.Option("--out", help="The YAML file of drafts; it must not be there yet.")],
    judge: Annotated[str | None, typer.Option(help=f"Who judges; the writer itself by default. {MODEL_HELP}")] = None,
    tasks: SourceOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many kinds of failure.")] = None,
    unasked: Annotated[
        bool, typer.Option("--all", help="Also failures of rollouts at level 0, where no rule was asked.")
    ] = False,
    precision: PrecisionOption = Precision.auto,
    temperature: TemperatureOption = 0.7,
    max_tokens: MaxTokensOption = 512,
    as_json: JsonOption = False,
) -> None:
    """Have a chat model write hint rules for the failures that no rule answered, and another judge them.

    What is accepted is written to a file for you to review; nothing goes live.
    Example: envtune hints write runs/demo --model my_models:big --judge my_models:strict --out drafts.yaml
    """
    rollouts = rollouts_of(run)
    source = task_source(tasks or source_of(rollouts[0].task_id))
    settings = {"precision": precision.value, "temperature": temperature, "max_tokens": max_tokens}
    writer = find_chat_model(model, **settings)
    judging = find_chat_model(judge, **settings) if judge else writer
    write_new(out_file, "")  # refused before minutes go into loading and writing
    out_file.unlink()
    load(writer)
    load(judging)
    from envtune_agents.hint_writer import Fate, write_hints, written_rules
    from envtune_agents.rollout.episode import model_name

    hints = asyncio.run(
        write_hints(rollouts, source, writer, judging, limit=limit, unasked=unasked, on_fate=_show_fate)
    )
    accepted = [hint for hint in hints if hint.fate is Fate.ACCEPTED]
    if accepted:
        write_new(out_file, written_rules(accepted, model_name(writer), model_name(judging)))
    tally = Counter(hint.fate.value for hint in hints)
    if as_json:
        path = out_file if accepted else None
        print_json({"failures": len(hints), "fates": tally, "accepted": len(accepted), "path": path})
        return
    counts = ", ".join(f"{count} {fate}" for fate, count in tally.most_common()) or "nothing to write about"
    out.print(f"{len(hints)} kinds of failure: {counts}", soft_wrap=True)
    if accepted:
        rules = "1 rule" if len(accepted) == 1 else f"{len(accepted)} rules"
        out.print(f"{rules} to review: {escape(str(out_file))}", soft_wrap=True)
    elif hints:
        out.print(
            f"Nothing was accepted, so {escape(str(out_file))} was not written. Try a stronger --model, or write the "
            "rules yourself: envtune hints mine drafts them.",
            soft_wrap=True,
        )


def _show_fate(hint: WrittenHint) -> None:
    tool = hint.cluster.tool or "(no tool)"
    note = f" ({hint.note})" if hint.note else ""
    err.print(escape(f"{tool}, {hint.cluster.message[:80]}: {hint.fate.value}{note}"), soft_wrap=True)
