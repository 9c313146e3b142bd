"""A report on disk: `report.json`, its manifest alone, and the same for people as Markdown and HTML."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import envtune_agents
from envtune_agents.errors import RecordError
from envtune_agents.evaluate.entry import Entry
from envtune_agents.evaluate.manifest import Manifest, plain
from envtune_agents.evaluate.report import Report

REPORT_VERSION = 1
REPORT_NAME = "report.json"
MANIFEST_NAME = "evaluation.json"
"""The manifest alone, written before the first episode."""


def write_report(report: Report, folder: Path) -> Path:
    """Writes the four files, each whole or not at all; gives the path of `report.json`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(report.manifest, folder)
        _replace(folder / REPORT_NAME, json.dumps(report_fields(report), indent=1) + "\n")
        _replace(folder / "report.md", report.markdown())
        _replace(folder / "report.html", report.html())
    except OSError as error:
        raise RecordError(f"Cannot write the report to {folder}: {error.strerror}. Choose another folder.") from error
    return folder / REPORT_NAME


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes `evaluation.json`, before the first episode, so that even a killed run says what it was."""
    _replace(folder / MANIFEST_NAME, json.dumps(plain(manifest), indent=1, sort_keys=True) + "\n")


def resumed(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest of a run that goes on in `folder`; `RecordError` when what lies there was made with something else.

    Other versions of packages are allowed and noted in `earlier_versions`; other samples or more tasks are no change.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return manifest
    try:
        before = _manifests().validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RecordError(f"Cannot read {path}: {_brief(error)}. Choose another folder.") from error
    known, now = _identity(before), _identity(manifest)
    changed = [f"{name} was {known[name]!r}, is {now[name]!r}" for name in known if known[name] != now[name]]
    other = [task for task, digest in manifest.task_hashes.items() if before.task_hashes.get(task, digest) != digest]
    if other:
        changed.append(f"the data of {len(other)} tasks, such as {other[0]!r}, is not the same")
    if changed:
        raise RecordError(f"{folder} holds another evaluation: {'; '.join(changed)}. Choose another folder.")
    other_versions = () if before.versions == manifest.versions else (before.versions,)
    return replace(manifest, earlier_versions=(*before.earlier_versions, *other_versions))


def _identity(manifest: Manifest) -> dict[str, Any]:
    model = plain(manifest)["model"]
    return {**{f"model {key}": value for key, value in model.items()}, "seed": manifest.seed, "source": manifest.source}


def report_fields(report: Report) -> dict[str, Any]:
    """The report as JSON: the numbers first, for people and scripts, then what they follow from."""
    return {
        "report_version": REPORT_VERSION,
        "written_by": f"envtune-agents {envtune_agents.__version__}",
        "summary": summary_fields(report),
        "flagged": dict(report.flagged),
        "manifest": plain(report.manifest),
        "entries": [asdict(entry) for entry in report.entries],
    }


def summary_fields(report: Report) -> dict[str, Any]:
    """The numbers of a report as JSON."""
    samples = ks(report.manifest.samples)
    return {
        "categories": {name: _score_fields(score) for name, score in report.categories.items()},
        "OVERALL": _score_fields(report.score),
        "category_mean": report.category_mean,
        "pass_at_k": {str(k): report.pass_at(k) for k in samples},
        "pass_hat_k": {str(k): report.pass_hat(k) for k in samples},
        "complete": report.complete,
    }


def read_report(path: str | Path) -> Report:
    """The report at `path`, a file or its folder; `RecordError` for anything else or another version."""
    path = Path(path)
    file = path / REPORT_NAME if path.is_dir() else path
    if not file.is_file():
        folder = file.parent if file.suffix else file
        raise RecordError(f"No report at {file}. A run writes one: envtune evaluate --out {folder}")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        version = fields["report_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordError(f"{file} is not a report of `envtune evaluate`: {_brief(error)}.") from error
    if version != REPORT_VERSION:
        writer = fields.get("written_by", "an unknown writer")
        raise RecordError(
            f"{file} has report version {version!r}, written by {writer}; envtune-agents "
            f"{envtune_agents.__version__} reads version {REPORT_VERSION}. Run the same `envtune evaluate … --out "
            f"{file.parent}` again: finished rollouts are kept and only the report is written anew."
        )
    try:
        manifest = _manifests().validate_python(fields["manifest"])
        entries = _entries().validate_python(fields["entries"])
        flagged = {str(key): str(value) for key, value in fields["flagged"].items()}
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise RecordError(f"{file} is damaged: {_brief(error)}.") from error
    return Report(manifest, entries, flagged, file.parent)


def ks(samples: int) -> list[int]:
    """The k for which pass@k and pass^k are shown: the powers of two up to `samples`, and `samples` itself."""
    return sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})


def _score_fields(score: Any) -> dict[str, Any]:
    return {
        "correct": score.correct,
        "total": score.total,
        "accuracy": float(score),
        "interval": [score.low, score.high],
    }


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(path.suffix + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@cache
def _entries() -> TypeAdapter[list[Entry]]:
    return TypeAdapter(list[Entry])


@cache
def _manifests() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
