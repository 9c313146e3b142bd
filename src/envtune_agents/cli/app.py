"""The command line itself: one typer app, one console each for results and for progress, how errors end.

User errors end with exit code 2 and one sentence that names the next step; `--debug` shows the traceback. Ctrl-C ends
with 130 and loses nothing that was finished. Commands print results on stdout and everything else on stderr.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from envtune_agents.errors import EnvTuneError

app = typer.Typer(
    name="envtune",
    help="Environment Tuning for LangChain and LangGraph agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERRUPTED = 130
out = Console()
err = Console(stderr=True)


@app.callback()
def _root(debug: Annotated[bool, typer.Option(help="Show the traceback of a user error.")] = False) -> None:
    _root.debug = debug  # type: ignore[attr-defined]


def main() -> None:
    """The `envtune` command."""
    try:
        app()
    except EnvTuneError as error:
        if getattr(_root, "debug", False):
            raise
        err.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:  # typer turns Ctrl-C into this exit code without a word
        if end.code == INTERRUPTED:
            err.print("stopped; every finished rollout is on disk, run the same command again to go on")
        raise
