"""`envtune serve`: a checkpoint behind OpenAI's protocol, with our engine, vLLM or SGLang."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from envtune_agents.cli.app import app, err, on_interrupt, out
from envtune_agents.cli.options import Precision, PrecisionOption
from envtune_agents.errors import TaskError

if TYPE_CHECKING:
    from envtune_agents.serve import ServePlan

KEY_VARIABLE = "ENVTUNE_API_KEY"


class Backend(StrEnum):
    """Who runs the model."""

    transformers = "transformers"
    vllm = "vllm"
    sglang = "sglang"


@app.command(name="serve", context_settings={"allow_extra_args": True})
def serve_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder or hub id; for transformers also a GGUF file or smollm2.")],
    backend: Annotated[Backend, typer.Option(help="Who runs the model.")] = Backend.transformers,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one (transformers).")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; by default the hub id or the folder's name.")
    ] = None,
    precision: PrecisionOption = Precision.auto,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of prompt and reply; what the model has by default.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a reply whose request names no number (transformers).")
    ] = 1024,
    adapter: Annotated[list[str] | None, typer.Option(help="A LoRA adapter, NAME=FOLDER; may be repeated.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at the same time (transformers).")] = 64,
    python: Annotated[
        str,
        typer.Option(
            show_default=False, help="Interpreter of the environment that has vllm or sglang; this one by default."
        ),
    ] = sys.executable,
    wait: Annotated[float, typer.Option(min=1, help="Seconds that vllm or sglang may take to start.")] = 1800.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the exact command and start nothing.")] = False,
) -> None:
    """Serve a model behind OpenAI's protocol, and say how to talk to it.

    The environment variable ENVTUNE_API_KEY holds the key that clients must send; without it, none. What follows `--`
    goes to vllm or sglang as it is.

    Example: envtune serve Qwen/Qwen3-4B-Instruct-2507 --backend vllm --dry-run
    """
    from envtune_agents.cli.chat_models import find_checkpoint
    from envtune_agents.serve import ServePlan, serve, server_command
    from envtune_agents.serve.plan import shell_line

    plan = ServePlan(
        model=model,
        backend=backend.value,
        host=host,
        port=port,
        name=name,
        precision=precision.value,
        max_context=max_context,
        adapters=_adapters(adapter or []),
        python=python,
        extra=_extra(context.args, backend),
    )
    if dry_run:
        out.print(shell_line(server_command(plan)), soft_wrap=True, markup=False, highlight=False)
        return
    find_checkpoint(model)
    if backend is not Backend.transformers:
        err.print(shell_line(server_command(plan)), soft_wrap=True, markup=False, highlight=False)
    on_interrupt("no server is running")
    code = serve(
        plan,
        ready=_show,
        api_key=os.environ.get(KEY_VARIABLE) or None,
        concurrency=concurrency,
        max_tokens=max_tokens,
        start_s=wait,
    )
    raise typer.Exit(code)


def _show(plan: ServePlan) -> None:
    from envtune_agents.serve import client_lines

    out.print(f"[green]ready[/green]: {escape(plan.served_name)} at {plan.url}", soft_wrap=True, highlight=False)
    for line in client_lines(plan):
        out.print(f"    {line}", soft_wrap=True, markup=False, highlight=False)


def _adapters(named: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in named]
    for name, _, path in pairs:
        if not name or not path:
            raise TaskError(f"--adapter {name or path!r} is not NAME=FOLDER, such as --adapter tuned=runs/adapter.")
    return {name: path for name, _, path in pairs}


def _extra(args: list[str], backend: Backend) -> list[str]:
    if args and backend is Backend.transformers:
        raise TaskError(f"Unknown arguments: {' '.join(args)}. Only vllm and sglang take more, after `--`.")
    return args
