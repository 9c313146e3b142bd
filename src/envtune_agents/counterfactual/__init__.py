"""What would have happened without the hint? Failed turns played on from their exact state, with it and without it.

In: a run, its tasks, a chat model. Out: for each failure two continuations of its turn and their scores; from these the
dependence gap of each rule, and preference pairs. The recorded calls are made again in a fresh environment and must
answer as they did; a state that cannot be restored is a recorded failure, never a guess.

`restore` leads an environment to a point of a rollout, `branch` plays one turn on from there, `replay` does both for
many failures and writes them down, `gaps` adds up, `pairs` exports.
"""

from envtune_agents.counterfactual.branch import Branch, play_branch
from envtune_agents.counterfactual.gaps import RuleGap, dependence_gaps
from envtune_agents.counterfactual.pairs import preference_pairs
from envtune_agents.counterfactual.replay import ReplayOptions, replay_run
from envtune_agents.counterfactual.restore import Fork, RestoredPoint, forks_in, restore
from envtune_agents.counterfactual.store import Replay, ReplayStore, read_replays

__all__ = [
    "Branch",
    "Fork",
    "Replay",
    "ReplayOptions",
    "ReplayStore",
    "RestoredPoint",
    "RuleGap",
    "dependence_gaps",
    "forks_in",
    "play_branch",
    "preference_pairs",
    "read_replays",
    "replay_run",
    "restore",
]
