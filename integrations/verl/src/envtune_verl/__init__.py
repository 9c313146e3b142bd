"""Environment Tuning on many GPUs: the library's episodes as verl's agent loop, the stages as its runs.

Comes in: tasks and their environment, stages. Goes out: a run folder with datasets, overrides and a script for each
stage, and the decisions that lead from one to the next. verl computes the loss and owns the GPUs. Only
`EnvTuneAgentLoop` imports verl, so a run can be planned on a machine without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envtune_agents.curriculum import Trained
from envtune_verl.dataset import EpisodeTerms, dataset_rows, write_dataset
from envtune_verl.overrides import stage_overrides
from envtune_verl.settings import VerlSettings
from envtune_verl.table import Table
from envtune_verl.training import planned_commands, train

if TYPE_CHECKING:
    from envtune_verl.agent_loop import EnvTuneAgentLoop

__all__ = [
    "EnvTuneAgentLoop",
    "EpisodeTerms",
    "Table",
    "Trained",
    "VerlSettings",
    "dataset_rows",
    "planned_commands",
    "stage_overrides",
    "train",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name != "EnvTuneAgentLoop":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from envtune_verl.agent_loop import EnvTuneAgentLoop

    return EnvTuneAgentLoop
