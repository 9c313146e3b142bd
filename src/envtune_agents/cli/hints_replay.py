"""`envtune hints replay`: failed turns played on with the hint and without it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from envtune_agents.cli.app import err, on_interrupt, out, print_json
from envtune_agents.cli.chat_models import ModelOption, find_chat_model, load
from envtune_agents.cli.hints import RunArgument, SourceOption, hints_app, rollouts_of
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
    from envtune_agents.counterfactual import RuleGap


@hints_app.command(name="replay")
def replay_command(
    run: RunArgument,
    model: ModelOption,
    tasks: SourceOption = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of replays.jsonl and pairs.jsonl; RUN/replay by default.")
    ] = None,
    level: Annotated[
        int | None, typer.Option(min=1, max=3, help="Try what the rules say now, on every failure, at this level.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many failures.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Pairs of continuations of each failure.")] = 1,
    precision: PrecisionOption = Precision.auto,
    temperature: TemperatureOption = 0.7,
    max_tokens: MaxTokensOption = 1024,
    seed: Annotated[int, typer.Option(help="Same seed, same continuations.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Failures at the same time.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Play failed turns on from their exact state, with the hint and without it: what is each rule worth?

    Run again to go on. Example: envtune hints replay runs/demo --model smollm2 --limit 4
    """
    rollouts = rollouts_of(run)
    source = task_source(tasks or source_of(rollouts[0].task_id))
    folder = out_folder or (run if run.is_dir() else run.parent) / "replay"
    chat_model = find_chat_model(model, precision=precision.value, temperature=temperature, max_tokens=max_tokens)
    options: Any = _settings_of(run)
    on_interrupt(f"every finished replay is in {folder}, and the same command goes on where this one stopped")
    load(chat_model)
    from envtune_agents.counterfactual import dependence_gaps, preference_pairs, read_replays, replay_run

    made = asyncio.run(
        replay_run(
            rollouts,
            source,
            chat_model,
            out=folder,
            level=level,
            samples=samples,
            limit=limit,
            seed=seed,
            concurrency=concurrency,
            progress=True,
            **options,
        )
    )
    replays = read_replays(folder)
    gaps, pairs = dependence_gaps(replays), list(preference_pairs(replays))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    if as_json:
        print_json({"replays": len(replays), "pairs": len(pairs), "rules": [asdict(gap) for gap in gaps]})
    else:
        _show_gaps(gaps)
        out.print(
            f"{len(made)} failures replayed now, {len(replays)} in all: {folder / 'replays.jsonl'}", soft_wrap=True
        )
        out.print(f"{len(pairs)} preference pairs: {folder / 'pairs.jsonl'}", soft_wrap=True)
    for reason, count in _errors(replay.error for replay in replays):
        err.print(f"[yellow]warning:[/yellow] {count} replays failed: {escape(reason)}", soft_wrap=True)


def _show_gaps(gaps: list[RuleGap]) -> None:
    from rich.table import Table

    if not gaps:
        out.print("no hinted failure was replayed; --level 3 tries what the rules say now on every failure")
        return
    table = Table(box=None, header_style="bold cyan", padding=(0, 1, 0, 0))
    table.add_column("rule", overflow="fold")
    for name in ("pairs", "with", "without", "gap", "95% interval", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    for gap in gaps:
        interval = "–" if gap.low is None else f"{gap.low:+.2f} to {gap.high:+.2f}"
        numbers = (f"{gap.score_with:.2f}", f"{gap.score_without:.2f}", f"{gap.gap:+.2f}", interval)
        table.add_row(escape(gap.rule), f"{gap.replays}", *(numbers if gap.replays else "––––"), f"{gap.errors}")
    out.print(table)


def _errors(errors: Any) -> list[tuple[str, int]]:
    from collections import Counter

    return Counter(error for error in errors if error).most_common(5)


def _settings_of(run: Path) -> dict[str, Any]:
    """The settings of a run that its continuations share, from its manifest."""
    from envtune_agents.rollout import run_settings

    known = run_settings(run)
    names = ("system_prompt", "max_steps", "malformed_ends_turn")
    return {name: known[name] for name in names if known.get(name) is not None}
