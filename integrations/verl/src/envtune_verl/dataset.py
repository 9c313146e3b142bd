"""Tasks -> the Parquet file that verl's `RLHFDataset` reads: a row for each task, and how its episode is played.

A row names its task; the environment's data stay with the task source, which every worker loads for itself. The user
messages are written down, so that a source that changed since is noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from envtune_agents.errors import RecordError, TaskError, require
from envtune_agents.progress import PROGRESS_REWARD, RewardMix
from envtune_agents.task_source import TaskSource, find_task_source
from envtune_agents.types import Task

AGENT_NAME = "envtune"
"""Name of the agent loop, in the column `agent_name` and in the agent loop file."""
HINTED = " with hints"
"""What follows the category in `data_source` of validation rows that are played with hints."""


@dataclass(frozen=True, slots=True)
class EpisodeTerms:
    """How episodes are played and what they are worth."""

    stage: str = ""
    """Curriculum stage, for the record."""
    hint_level: int = 0
    reward: RewardMix = PROGRESS_REWARD
    """What a training episode is worth; validation reports progress and the verdict."""
    validation: bool = False
    """Validation is greedy, and a failed episode counts as 0 instead of being dropped."""


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """How the episode of one row is played: what the agent loop is told of it."""

    source: str
    """The task source by name, as for `find_task_source`."""
    split: str
    """Split of the source that holds the task."""
    task_id: str
    turns: tuple[str, ...]
    """The user messages when the row was written."""
    terms: EpisodeTerms = EpisodeTerms()

    def to_json(self) -> str:
        """The plan as text; Parquet gets nested values as JSON, because verl's collation wants flat ones."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: Any) -> EpisodePlan:
        """The plan that `to_json` wrote; `RecordError` for anything else."""
        try:
            plain = json.loads(text)
            terms = {**plain["terms"], "reward": RewardMix(**plain["terms"]["reward"])}
            return cls(**{**plain, "turns": tuple(plain["turns"]), "terms": EpisodeTerms(**terms)})
        except (ValueError, TypeError, KeyError) as error:
            raise RecordError(
                f"A dataset row does not say how to play its episode ({type(error).__name__}: {error}). Write the "
                "dataset with envtune_verl.write_dataset."
            ) from error

    def task(self) -> tuple[TaskSource, Task]:
        """The source and the task; `TaskError` when the source no longer has the task as it was."""
        source, tasks = _loaded(self.source, self.split)
        task = tasks.get(self.task_id)
        if task is None or task.turns != self.turns:
            now = "has other user messages" if task else "is unknown"
            raise TaskError(
                f"The task {self.task_id!r} {now} in {self.source!r}, split {self.split!r}: the dataset comes from "
                "other tasks. Write it anew, from that split."
            )
        return source, task


@lru_cache(maxsize=8)
def _loaded(source: str, split: str) -> tuple[TaskSource, Mapping[str, Task]]:
    found = find_task_source(source)
    return found, {task.task_id: task for task in found.load(split, None)}


def dataset_rows(
    tasks: Sequence[Task],
    source: str,
    split: str,
    terms: EpisodeTerms | None = None,
    levels: Callable[[Task], int] | None = None,
) -> list[dict[str, Any]]:
    """The rows of these tasks: `data_source` is the category, so that verl reports validation by category.

    `levels` gives each task a hint level of its own. Raises `TaskError` for a task that the source's split does not
    have.
    """
    terms, rows = terms or EpisodeTerms(), []
    for index, task in enumerate(tasks):
        own = replace(terms, hint_level=levels(task)) if levels else terms
        plan = EpisodePlan(source, split, task.task_id, task.turns, own)
        plan.task()
        rows.append(
            {
                "data_source": task.category + (HINTED if terms.validation and terms.hint_level else ""),
                "agent_name": AGENT_NAME,
                "prompt": [{"role": "user", "content": task.turns[0] or " "}],
                "ability": "tool_use",
                "reward_model": {"style": "rule", "ground_truth": ""},
                "extra_info": {"index": index, "task_id": task.task_id, "episode": plan.to_json()},
            }
        )
    return rows


def write_dataset(
    path: str | Path,
    source: str,
    split: str = "train",
    terms: EpisodeTerms | None = None,
    *,
    tasks: Sequence[Task] | None = None,
) -> int:
    """Writes the tasks of a source for verl, whole or not at all; gives the number of rows.

    `source` is "bfcl", "playground" or "module:factory"; `tasks` are some of its split's, all by default. Raises
    `TaskError` when there is none.

        write_dataset("train.parquet", "playground", "train", EpisodeTerms("2_basic", hint_level=3))
    """
    chosen = list(tasks) if tasks is not None else find_task_source(source).load(split, None)
    rows = dataset_rows(chosen, source, split, terms)
    replace_file(Path(path), rows)
    return len(rows)


def replace_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows to a Parquet file; the file before stays when that fails."""
    if not rows:
        raise TaskError(f"There is no task to write to {path.name}; choose another split or other categories.")
    install = "pip install pyarrow"
    arrow: Any = require("pyarrow", feature="Writing a dataset for verl", install=install)
    parquet: Any = require("pyarrow.parquet", feature="Writing a dataset for verl", install=install)
    draft = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist([dict(row) for row in rows]), draft)
        os.replace(draft, path)
    except OSError as error:
        raise RecordError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):  # the first error counts
            draft.unlink()
