"""`envtune`: each command a thin call of one public function, one file a command."""

from __future__ import annotations

from envtune_agents.cli import collect, play
from envtune_agents.cli.app import app, main

__all__ = ["app", "collect", "main", "play"]
