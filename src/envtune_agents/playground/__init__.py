"""A dependency-free environment with generated tasks in BFCL's four categories, short enough to train on a CPU."""

from envtune_agents.playground.environment import Playground
from envtune_agents.playground.tasks import CATEGORIES, playground_tasks

__all__ = ["CATEGORIES", "Playground", "playground_tasks"]
