"""Environment Tuning on one machine: GRPO through the stages of a curriculum, with TRL's trainer.

Comes in: a checkpoint, tasks and their environment, stages. Goes out: a run folder with checkpoints, curves, decisions
and the trained weights. Episodes are the library's LangGraph ones; TRL computes the loss and steps the optimizer.
"""

from envtune_agents.curriculum import Trained
from envtune_trl.processes import speaks
from envtune_trl.rollouts import EpisodeRollouts, task_dataset
from envtune_trl.settings import TrainSettings
from envtune_trl.table import Table
from envtune_trl.training import train

__all__ = ["EpisodeRollouts", "Table", "TrainSettings", "Trained", "speaks", "task_dataset", "train"]
