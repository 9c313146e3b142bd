"""`envtune play`: a person in the agent's place."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from envtune_agents.cli.app import app, out, print_json
from envtune_agents.cli.options import HintsOption, choose_tasks, source_of, task_source


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
    source = task_source(tasks or source_of(task_id))
    task = choose_tasks(source.tasks("all"), [task_id], None)[0]
    environment = source.environment(task)
    from envtune_agents.play import play

    if not as_json:
        out.print("[dim]A call a line, such as name(argument=1). An empty line ends the turn, Ctrl-D the game.[/dim]")
    for kind, value in play(environment, lambda: _read_line(quiet=as_json), hints=source.hint_engine(hints)):
        if as_json:
            plain = asdict(value) if hasattr(value, "content") or kind == "score" else value
            print_json({"event": kind, "value": plain})
        else:
            _show_event(kind, value, environment)


def _show_event(kind: str, value: Any, environment: Any) -> None:
    if kind == "user":
        out.print(f"[bold]user[/bold]   {escape(value)}", soft_wrap=True)
        out.print(f"[dim]tools  {escape(', '.join(tool.name for tool in environment.tools()))}[/dim]", soft_wrap=True)
    elif kind == "outcome":
        style = "red" if value.failure else "blue"
        out.print(f"[{style}]tool[/{style}]   {escape(value.content)}", soft_wrap=True)
    elif kind == "score":
        out.print(
            f"[magenta]score[/magenta]  {value.value:.2f} (state {value.state:.2f}, response {value.response:.2f})"
        )
    else:
        out.print(f"[bold]end[/bold]    {value}")


def _read_line(*, quiet: bool) -> str | None:
    try:
        return input("" if quiet or not sys.stdin.isatty() else "> ")
    except EOFError:
        return None
