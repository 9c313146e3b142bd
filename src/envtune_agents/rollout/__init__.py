"""Run one episode, run many, write and read records, resume.

`episode` plays one task (`direct` without a graph), `record` turns its conversation into a `Rollout`, `lines` a rollout
into a line, `files` and `store` read and write the file, `manifest` says what a run was made with, `collect` runs many
at once, `player` plays them. A failed episode is data, never an exception: only the folder, or a lack of workers, stops
a collection.
"""

from envtune_agents.rollout.aside import set_aside_errors
from envtune_agents.rollout.collect import Collected, collect, collect_with
from envtune_agents.rollout.direct import run_directly
from envtune_agents.rollout.episode import EpisodeOptions, failed_rollout, run_episode
from envtune_agents.rollout.files import read_rollouts
from envtune_agents.rollout.lines import from_line, record_schema, to_line
from envtune_agents.rollout.manifest import ModelPrint, RunManifest, read_manifest, run_manifest, run_settings
from envtune_agents.rollout.pace import Straggler
from envtune_agents.rollout.player import LocalPlayer, Play, Player
from envtune_agents.rollout.recorder import TapeRecorder
from envtune_agents.rollout.retry import patient, transient
from envtune_agents.rollout.store import RolloutStore

__all__ = [
    "Collected",
    "EpisodeOptions",
    "LocalPlayer",
    "ModelPrint",
    "Play",
    "Player",
    "RolloutStore",
    "RunManifest",
    "Straggler",
    "TapeRecorder",
    "collect",
    "collect_with",
    "failed_rollout",
    "from_line",
    "patient",
    "read_manifest",
    "read_rollouts",
    "record_schema",
    "run_directly",
    "run_episode",
    "run_manifest",
    "run_settings",
    "set_aside_errors",
    "to_line",
    "transient",
]
