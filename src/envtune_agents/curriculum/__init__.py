"""The four stages as values, and the rule that moves between them.

In: what was measured. Out: which stage to train, with which hints and reward, and every decision in words. Nothing
here trains: a trainer asks.
"""

from envtune_agents.curriculum.curriculum import Curriculum
from envtune_agents.curriculum.decide import AdvanceRule, Decision, Evaluation, Move
from envtune_agents.curriculum.difficulty import DifficultyController
from envtune_agents.curriculum.stages import FOUR_STAGES, Stage, load_stages
from envtune_agents.curriculum.training_run import (
    check_unchanged,
    checkpoint_digest,
    split_tasks,
    task_digest,
    with_budget,
)

__all__ = [
    "FOUR_STAGES",
    "AdvanceRule",
    "Curriculum",
    "Decision",
    "DifficultyController",
    "Evaluation",
    "Move",
    "Stage",
    "check_unchanged",
    "checkpoint_digest",
    "load_stages",
    "split_tasks",
    "task_digest",
    "with_budget",
]
