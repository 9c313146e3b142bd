"""What a report was made with: the model's, the template's and the tasks' hashes, decoding, versions, command line.

The parts are those of every run's manifest (`rollout.manifest`); a report adds where its tasks came from and a hash of
each, so that two reports can be compared and an old one verified.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from envtune_agents.rollout.manifest import ModelPrint
from envtune_agents.task_source import TaskSource


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that decides the numbers of a report, and what they were made with."""

    model: ModelPrint
    source: str
    """What `--tasks` named; "" when tasks were given in Python."""
    split: str
    samples: int
    """Episodes of each task."""
    seed: int
    data_sha256: str
    """Over all tasks, in order."""
    task_hashes: Mapping[str, str] = field(repr=False)
    """Task id -> the first 16 digits of the hash of its messages and data."""
    settings: Mapping[str, Any]
    """Of the turn loop: hint level 0, the step limit, what a malformed reply does, the scorer."""
    fingerprint: Mapping[str, str]
    """What the task source says decides verdicts beside the tasks."""
    versions: Mapping[str, str]
    """Of this library, Python and the packages that matter."""
    command: str
    """The command line, passwords in addresses taken out; "" when called from Python."""
    earlier_versions: tuple[Mapping[str, str], ...] = ()
    """Versions that earlier parts of a resumed run were played with, where they differ."""
    started: str = ""
    """UTC, ISO 8601."""
    finished: str = ""
    wall_s: float = 0.0
    """Wall seconds of this run; a resumed one counts only its own part."""
    played: int = 0
    """Episodes that this run added."""


def settings_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the turn loop as plain JSON."""
    scorer = options["scorer"]
    known = {key: value for key, value in options.items() if isinstance(value, str | int | float | bool | None)}
    return {**known, "hints": 0, "scorer": getattr(scorer, "__name__", type(scorer).__name__)}


def fingerprint_of(source: TaskSource) -> dict[str, str]:
    """What the source says decides verdicts beside its tasks, as text."""
    return {str(name): str(value) for name, value in (source.fingerprint() if source.fingerprint else {}).items()}


def plain(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON keeps it."""
    return json.loads(json.dumps(asdict(manifest), default=str))  # type: ignore[no-any-return]
