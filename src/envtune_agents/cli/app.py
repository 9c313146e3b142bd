"""The command line itself: one typer app, one console each for results and for progress, how a command ends.

Commands print results on stdout and everything else on stderr. A user error ends with exit code 2 and one sentence that
names the next step; `--debug` shows the traceback. Ctrl-C ends with 130 and says what is kept. A reader that went away
(`| head`) ends the command without a word, as it does with any other program.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import envtune_agents
from envtune_agents.errors import EnvTuneError

USER_ERROR = 2
INTERRUPTED = 130
READER_GONE = 141
"""What a shell reports of a program that SIGPIPE ended."""
_NO_PLACE = (errno.EPIPE, errno.ENOSPC, errno.EIO)


@dataclass(slots=True)
class _Invocation:
    """What is known about the command under way."""

    debug: bool = False
    kept: str = "nothing was written"
    """What Ctrl-C leaves behind."""


_now = _Invocation()


class _Results(Console):
    """stdout: without a reader there is nothing left to do."""

    def on_broken_pipe(self) -> None:
        _drop_stdout()
        raise SystemExit(READER_GONE)


class _Notes(Console):
    """stderr: without a reader the work goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


app = typer.Typer(
    name="envtune",
    help="Environment Tuning for LangChain and LangGraph agents.",
    epilog="Example: envtune collect --tasks playground --limit 4 --out runs/first",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = _Results()
err = _Notes(stderr=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"envtune-agents {envtune_agents.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a user error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    _now.debug = debug
    _now.kept = _Invocation().kept


def on_interrupt(kept: str) -> None:
    """From here on Ctrl-C says `stopped; <kept>`; until a command calls this, nothing was written."""
    _now.kept = kept


def print_json(value: Any) -> None:
    """One JSON object in one line on stdout; paths and enumerations as their text."""
    out.out(json.dumps(value, default=str), highlight=False)


def main() -> None:
    """The `envtune` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign shows a question mark
    code = _run()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        code = _stdout_failed(error)
    sys.exit(code)


def _run() -> int | str | None:
    """The exit code of the command."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer turns Ctrl-C into this exit code without a word
            _say_stopped()
        return end.code
    except KeyboardInterrupt:  # a second one, while the first was ending the command
        _say_stopped()
        return INTERRUPTED
    except EnvTuneError as error:
        if _now.debug:
            raise
        _say_error(str(error))
    except OSError as error:
        if _now.debug:
            raise
        if error.errno in _NO_PLACE and error.filename is None:
            return _stdout_failed(error)
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _say_error(f"{what}. With `envtune --debug …` the traceback shows where.")
    return USER_ERROR


def _stdout_failed(error: OSError) -> int:
    """The exit code when results cannot be written to stdout."""
    _drop_stdout()
    if isinstance(error, BrokenPipeError):
        return READER_GONE
    _say_error(f"Cannot write the results: {error.strerror or error}. Send stdout to another place.")
    return USER_ERROR


def _drop_stdout() -> None:
    """Let what is still buffered go nowhere: the interpreter flushes it once more as it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stdout may be closed, or none at all
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _say_error(text: str) -> None:
    with contextlib.suppress(OSError):
        err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)


def _say_stopped() -> None:
    with contextlib.suppress(OSError):
        err.print(f"stopped; {escape(_now.kept)}", soft_wrap=True)
