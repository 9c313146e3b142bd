"""The four stages as values, and the rule that moves between them.

In: what was measured. Out: which stage to train, with which hints and reward, and every decision in words. Nothing
here trains: a trainer asks.
"""

from envtune_agents.curriculum.card import CARD, Solved, solved_by_category, write_card
from envtune_agents.curriculum.curriculum import Curriculum
from envtune_agents.curriculum.decide import AdvanceRule, Decision, Evaluation, Move
from envtune_agents.curriculum.difficulty import DifficultyController
from envtune_agents.curriculum.settings import LearningSettings
from envtune_agents.curriculum.signal import LearningSignal, Silence
from envtune_agents.curriculum.stage_file import load_rule, load_stages
from envtune_agents.curriculum.stages import FOUR_STAGES, Stage
from envtune_agents.curriculum.training_run import (
    Trained,
    check_unchanged,
    check_version,
    checkpoint_digest,
    run_identity,
    split_tasks,
    task_digest,
    with_budget,
)

__all__ = [
    "CARD",
    "FOUR_STAGES",
    "AdvanceRule",
    "Curriculum",
    "Decision",
    "DifficultyController",
    "Evaluation",
    "LearningSettings",
    "LearningSignal",
    "Move",
    "Silence",
    "Solved",
    "Stage",
    "Trained",
    "check_unchanged",
    "check_version",
    "checkpoint_digest",
    "load_rule",
    "load_stages",
    "run_identity",
    "solved_by_category",
    "split_tasks",
    "task_digest",
    "with_budget",
    "write_card",
]
