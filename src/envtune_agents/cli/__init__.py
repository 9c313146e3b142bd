"""`envtune`: each command a thin call of one public function, one file a command."""

from __future__ import annotations

from envtune_agents.cli import (
    collect,
    doctor,
    evaluate,
    export,
    hints,
    hints_replay,
    hints_write,
    memory,
    play,
    runs,
    serve,
    train,
    view,
)
from envtune_agents.cli.app import app, main

__all__ = [
    "app",
    "collect",
    "doctor",
    "evaluate",
    "export",
    "hints",
    "hints_replay",
    "hints_write",
    "main",
    "memory",
    "play",
    "runs",
    "serve",
    "train",
    "view",
]
