"""BFCL V3 multi-turn for envtune-agents: 800 tasks with a fixed split, live environments, official verdicts.

from envtune_bfcl import BfclEnvironment, load_tasks, replay
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envtune_bfcl.calls import parse_call
    from envtune_bfcl.data import CATEGORIES, checker_hash, data_hash, load_task, load_tasks
    from envtune_bfcl.environment import BfclEnvironment, try_calls
    from envtune_bfcl.labels import BadLabel, bad_labels
    from envtune_bfcl.results import export_results, official_verdict
    from envtune_bfcl.rules import BFCL_RULES
    from envtune_bfcl.verdicts import Replay, replay

_HOME = {
    "BFCL_RULES": "rules",
    "CATEGORIES": "data",
    "BadLabel": "labels",
    "BfclEnvironment": "environment",
    "Replay": "verdicts",
    "bad_labels": "labels",
    "checker_hash": "data",
    "data_hash": "data",
    "export_results": "results",
    "load_task": "data",
    "load_tasks": "data",
    "official_verdict": "results",
    "parse_call": "calls",
    "replay": "verdicts",
    "try_calls": "environment",
}

__all__ = [
    "BFCL_RULES",
    "CATEGORIES",
    "BadLabel",
    "BfclEnvironment",
    "Replay",
    "bad_labels",
    "checker_hash",
    "data_hash",
    "export_results",
    "load_task",
    "load_tasks",
    "official_verdict",
    "parse_call",
    "replay",
    "try_calls",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
