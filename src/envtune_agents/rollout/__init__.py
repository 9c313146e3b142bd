"""Run one episode, run many, write and read records, resume.

`episode` plays one task, `record` turns its conversation into a `Rollout`, `store` is the file, `collect` runs many at
once. A failed episode is data, never an exception: only the folder can stop a collection.
"""

from envtune_agents.rollout.collect import Collected, collect
from envtune_agents.rollout.episode import EpisodeOptions, run_episode
from envtune_agents.rollout.store import RolloutStore, from_line, read_rollouts, record_schema, to_line

__all__ = [
    "Collected",
    "EpisodeOptions",
    "RolloutStore",
    "collect",
    "from_line",
    "read_rollouts",
    "record_schema",
    "run_episode",
    "to_line",
]
