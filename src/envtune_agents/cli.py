"""`envtune`: each command a thin call of one public function.

User errors end with exit code 2 and one sentence that names the next step; `--debug` shows the traceback. Ctrl-C ends
with 130 and loses nothing that was finished.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from envtune_agents.errors import EnvTuneError, TaskError

app = typer.Typer(
    name="envtune",
    help="Environment Tuning for LangChain and LangGraph agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out = Console()
_err = Console(stderr=True)


class Precision(StrEnum):
    """How the weights are held in memory."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    eight_bit = "8bit"
    four_bit = "4bit"


TasksOption = Annotated[
    str, typer.Option(help="Where tasks come from: playground, bfcl, or module:factory of your own.")
]
HintsOption = Annotated[
    int, typer.Option(min=0, max=3, help="0 none, 1 what went wrong, 2 + the constraint, 3 + where to look.")
]


@app.callback()
def _root(debug: Annotated[bool, typer.Option(help="Show the traceback of a user error.")] = False) -> None:
    _root.debug = debug  # type: ignore[attr-defined]


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
    chosen = _choose(source.load(split, _names(categories)), _names(task_ids), limit)
    chat_model = ChatTransformers(
        model=model, precision=precision.value, temperature=temperature, max_tokens=max_tokens
    )
    with RolloutStore(out):
        pass  # a folder that cannot be written is refused before minutes go into loading
    with _err.status(f"loading {model}"):
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
            hints=source.hint_engine(hints),
            stage=stage,
            max_steps=max_steps,
            first_step_calls=first_step_calls,
        )
    )
    for rollout, _ in zip(read_rollouts(done.path), range(print_rollouts), strict=False):
        _out.print(rollout_text(rollout), soft_wrap=True)
        _out.print()
    _out.print(summary_table(read_rollouts(done.path)))
    _out.print(f"{done.written} rollouts written, {done.skipped} were there already: {done.path}", soft_wrap=True)


@app.command(name="play")
def play_command(
    task_id: Annotated[str, typer.Argument(help="The task to play, such as multi_turn_base_0.")],
    tasks: Annotated[str | None, typer.Option(help="Its source; guessed from the id by default.")] = None,
    hints: HintsOption = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for scripts.")] = False,
) -> None:
    """Take the agent's place: type calls such as cd(folder="a"), see what the agent would see.

    An empty line ends the turn, Ctrl-D the game. Example: envtune play playground_base_0_0 --hints 3
    """
    from envtune_agents.play import play
    from envtune_agents.task_source import find_task_source

    name = tasks or ("playground" if task_id.startswith("playground") else "bfcl")
    source = find_task_source(name)
    task = _choose(source.load("all", None), [task_id], None)[0]
    environment = source.environment(task)
    if not as_json:
        _out.print("[dim]A call a line, such as name(argument=1). An empty line ends the turn, Ctrl-D the game.[/dim]")
    for kind, value in play(environment, lambda: _read_line(quiet=as_json), hints=source.hint_engine(hints)):
        if as_json:
            print(
                json.dumps(
                    {"event": kind, "value": asdict(value) if hasattr(value, "content") or kind == "score" else value}
                )
            )
        else:
            _show_event(kind, value, environment)


def _show_event(kind: str, value: Any, environment: Any) -> None:
    if kind == "user":
        _out.print(f"[bold]user[/bold]   {escape(value)}", soft_wrap=True)
        _out.print(f"[dim]tools  {escape(', '.join(tool.name for tool in environment.tools()))}[/dim]", soft_wrap=True)
    elif kind == "outcome":
        style = "red" if value.failure else "blue"
        _out.print(f"[{style}]tool[/{style}]   {escape(value.content)}", soft_wrap=True)
    elif kind == "score":
        _out.print(
            f"[magenta]score[/magenta]  {value.value:.2f} (state {value.state:.2f}, response {value.response:.2f})"
        )
    else:
        _out.print(f"[bold]end[/bold]    {value}")


def _read_line(*, quiet: bool) -> str | None:
    try:
        return input("" if quiet or not sys.stdin.isatty() else "> ")
    except EOFError:
        return None


def _choose(tasks: list[Any], ids: list[str] | None, limit: int | None) -> list[Any]:
    from difflib import get_close_matches

    if ids:
        by_id = {task.task_id: task for task in tasks}
        for wanted in ids:
            if wanted not in by_id:
                near = ", ".join(get_close_matches(wanted, by_id, n=3)) or ", ".join(list(by_id)[:3])
                raise TaskError(f"Unknown task id {wanted!r} in this split ({len(by_id)} tasks). Near: {near}.")
        tasks = [by_id[wanted] for wanted in ids]
    return tasks[:limit]


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text else None


def main() -> None:
    """The `envtune` command."""
    try:
        app()
    except EnvTuneError as error:
        if getattr(_root, "debug", False):
            raise
        _err.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        _err.print("stopped; every finished rollout is on disk, run the same command again to go on")
        sys.exit(130)
