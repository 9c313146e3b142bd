"""`envtune view`: look at rollouts, in a browser or in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from envtune_agents.cli.app import app, err
from envtune_agents.cli.app import out as console


@app.command(name="view")
def view_command(
    runs: Annotated[list[Path], typer.Argument(help="One or more runs: their folders or files.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    text: Annotated[bool, typer.Option("--text", help="Print the essential here instead.")] = False,
    where: Annotated[str | None, typer.Option(help="Such as 'reward == 0 and hints > 0'.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rollouts; 3 with --text.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Checkpoint whose tokenizer shows tokens as text; by default the run's model.")
    ] = None,
) -> None:
    """Look at rollouts: what was said and returned, which hint was added, why a score is what it is, every token.

    Writes one HTML page that needs no network. Example: envtune view runs/first --out report.html
    """
    from envtune_agents.view import run_text, write_report

    if text:
        for run in runs:
            console.print(run_text(run, where=where, limit=limit or 3), soft_wrap=True)
        return
    with err.status("reading"):
        done = write_report(runs, out, where=where, limit=limit, decode=_decoder(tokenizer, runs[0]))
    console.print(f"{done.rollouts} rollouts, {done.megabytes:.1f} MiB: {done.path}", soft_wrap=True)


def _decoder(named: str | None, run: Path) -> Callable[[Sequence[int]], str] | None:
    """The detokenizer of the named checkpoint, or of the run's own model if that is on this disk."""
    from envtune_agents.errors import EnvTuneError
    from envtune_agents.rollout import read_manifest
    from envtune_agents.weights import checkpoint_files, load_tokenizer

    manifest = read_manifest(run if run.is_dir() else run.parent)
    local = manifest is not None and manifest.model.kind == "ChatTransformers"
    model = named or (manifest.model.name if manifest and local else None)
    try:
        if model is None or (named is None and not checkpoint_files(model)):
            return None
        backend = load_tokenizer(model).backend_tokenizer
    except EnvTuneError:
        if named is not None:
            raise
        return None
    return lambda token_ids: str(backend.decode(list(token_ids), skip_special_tokens=False))
