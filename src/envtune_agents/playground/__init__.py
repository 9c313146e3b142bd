"""A dependency-free environment with generated tasks in BFCL's four categories, short enough to train on a CPU.

`files`, `mail` and `travel` are for training, `stock` is held out; `domains` fills these worlds and says
what can be asked there, `tasks` makes tasks of it, `renaming` shows the same tasks under other tool names.
"""

from envtune_agents.playground.domains import HELD_OUT_DOMAIN, TRAINING_DOMAINS
from envtune_agents.playground.environment import Playground
from envtune_agents.playground.rules import PLAYGROUND_RULES
from envtune_agents.playground.tasks import CATEGORIES, generated_tasks, playground_tasks

__all__ = [
    "CATEGORIES",
    "HELD_OUT_DOMAIN",
    "PLAYGROUND_RULES",
    "TRAINING_DOMAINS",
    "Playground",
    "generated_tasks",
    "playground_tasks",
]
