"""One HTML file with everything in it: a light list at once, the rollouts compressed and opened when looked at."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from envtune_agents.errors import RecordError
from envtune_agents.export.where import parse_where
from envtune_agents.rollout import read_manifest, read_rollouts
from envtune_agents.rollout.replacing import replacing
from envtune_agents.view.data import Decode, listed, whole

CHUNK_ROLLOUTS = 20
"""Rollouts that are unpacked together when one of them is opened."""


@dataclass(frozen=True, slots=True)
class Viewed:
    """A page that was written."""

    path: Path
    rollouts: int
    megabytes: float
    """Size of the file."""


def write_report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    where: str | None = None,
    limit: int | None = None,
    decode: Decode | None = None,
) -> Viewed:
    """Writes one HTML page about the rollouts of one or more runs, and gives its path and size.

    `where` is a filter (`export.parse_where`), `limit` the most rollouts to show, `decode` the model's detokenizer, so
    that tokens are shown as text and not as numbers. Rollouts are read as a stream; the page holds them compressed.
    Raises `RecordError` when a run cannot be read, holds nothing to show, or the file cannot be written.
    """
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    keeps = parse_where(where) if where else None
    index: list[dict[str, Any]] = []
    chunks: list[str] = []
    pending: list[dict[str, Any]] = []
    for number, folder in enumerate(folders):
        for rollout in read_rollouts(folder):
            if limit is not None and len(index) >= limit:
                break
            if keeps is None or keeps(rollout):
                index.append(listed(rollout, number))
                pending.append(whole(rollout, decode))
            if len(pending) == CHUNK_ROLLOUTS:
                chunks.append(_packed(pending))
                pending = []
    if not index:
        raise RecordError(
            f"Nothing to show in {', '.join(map(str, folders))}: no rollout is there or passes the filter."
        )
    if pending:
        chunks.append(_packed(pending))
    head = {
        "runs": [{"name": str(folder), "made": _made_with(folder)} for folder in folders],
        "chunk": CHUNK_ROLLOUTS,
        "rollouts": index,
    }
    return _write(Path(out), _page(head, chunks), len(index))


def _write(path: Path, page: bytes, rollouts: int) -> Viewed:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_bytes(page)
    except OSError as error:
        raise RecordError(f"Cannot write {path}: {error.strerror or error}. Choose another --out.") from error
    return Viewed(path, rollouts, len(page) / 2**20)


def _page(head: dict[str, Any], chunks: Iterable[str]) -> bytes:
    asset = files(__package__).joinpath
    style, script = (asset(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    blocks = "\n".join(
        f'<script type="application/octet-stream" id="chunk-{number}">{chunk}</script>'
        for number, chunk in enumerate(chunks)
    )
    policy = f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; base-uri 'none'"
    parts = {
        "POLICY": policy,
        "STYLE": style,
        "HEAD": f'<script type="application/octet-stream" id="head">{_packed(head)}</script>',
        "CHUNKS": blocks,
        "SCRIPT": script,
    }
    page = asset("page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"{{{{{name}}}}}", text, 1)
    return page.encode()


def _packed(value: Any) -> str:
    """JSON, compressed, in letters that mean nothing in HTML."""
    plain = json.dumps(value, separators=(",", ":"), default=str).encode()
    return base64.b64encode(gzip.compress(plain, 6, mtime=0)).decode()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _made_with(run: Path) -> dict[str, Any]:
    manifest = read_manifest(run if run.is_dir() else run.parent)
    if manifest is None:
        return {}
    return {
        "started": manifest.started,
        "command": manifest.command,
        "model": manifest.model.name,
        "weights": manifest.model.sha256,
        "template": manifest.model.template_hash,
        "tasks": manifest.n_tasks,
        "data": manifest.data_sha256,
        "decoding": dict(manifest.model.decoding),
        "versions": dict(manifest.versions),
        "settings": dict(manifest.settings),
    }
