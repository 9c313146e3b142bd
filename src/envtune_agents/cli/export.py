"""`envtune export`: rollouts as rows for a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from envtune_agents.cli.app import app, err, print_json
from envtune_agents.cli.app import out as console
from envtune_agents.cli.options import JsonOption, task_source

if TYPE_CHECKING:
    from envtune_agents.export import ToolsOf


class Form(StrEnum):
    """What a trainer opens."""

    sft = "sft"
    grpo = "grpo"
    dpo = "dpo"
    trl = "trl"
    verl = "verl"
    hf = "hf"
    parquet = "parquet"


class Hints(StrEnum):
    """What happens to hints."""

    KEEP = "keep"
    STRIP = "strip"
    MASK = "mask"


@app.command(name="export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Folder or file of a run.")],
    to: Annotated[
        Form,
        typer.Option(
            help="sft and dpo: conversations as JSON lines. trl: token rows as JSON lines. grpo: groups with exact "
            "tokens. verl and parquet: Parquet. hf: a dataset folder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write; for hf a new folder.")],
    where: Annotated[str | None, typer.Option(help="Such as 'reward > 0 and hints == 0'.")] = None,
    best_of: Annotated[int | None, typer.Option(min=1, help="Only the n best rollouts of each task.")] = None,
    hints: Annotated[
        Hints,
        typer.Option(help="strip: as if no hint had been shown. mask (trl): hint tokens in a column of their own."),
    ] = Hints.KEEP,
    tokenizer: Annotated[
        str | None, typer.Option(help="The model's checkpoint; strip and mask of token rows need its tokenizer.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Task source; adds the tools offered in the first turn as a column `tools`.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn rollouts into rows for SFT, group RL or preference training.

    Example: envtune export runs/first --to trl --where "reward > 0 and hints == 0" --best-of 1 --out sft.jsonl
    """
    from envtune_agents.export import export_rollouts

    with err.status("exporting"):
        done = export_rollouts(
            run,
            to.value,
            out,
            where=where,
            best_of=best_of,
            hints=hints.value,
            tokenizer=_Tokenizer(tokenizer) if tokenizer else None,
            tools=_tools_of(tasks) if tasks else None,
        )
    if as_json:
        print_json(asdict(done))
    else:
        text = f"{done.rows} rows from {done.kept} of {done.read} rollouts: {done.path}"
        console.print(text, soft_wrap=True, markup=False)
    if done.broken:
        err.print(f"{done.broken} rollouts were left out because their token tape is broken")


class _Tokenizer:
    """A tokenizer as the export wants it: special tokens are read and written as they are."""

    def __init__(self, model: str) -> None:
        from envtune_agents.weights import load_tokenizer

        self._tokenizer = load_tokenizer(model).backend_tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))


def _tools_of(name: str) -> ToolsOf:
    """The tools that a source's environment shows in the first turn of a rollout's task."""
    from langchain_core.utils.function_calling import convert_to_openai_tool

    from envtune_agents.errors import TaskError

    source = task_source(name)
    tasks = {task.task_id: task for task in source.tasks("all")}

    @cache
    def menu(task_id: str) -> list[dict[str, Any]]:
        if task_id not in tasks:
            raise TaskError(f"The source {name!r} has no task {task_id!r}. Name the one this run was played with.")
        environment = source.environment(tasks[task_id])
        environment.open_turn()
        return [convert_to_openai_tool(tool) for tool in environment.tools()]

    return lambda rollout: menu(rollout.task_id)
