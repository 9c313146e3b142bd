"""Verdicts per second: the official BFCL multi-turn checker beside `envtune_bfcl.replay`, in one process and run.

    python benchmarks/bfcl_verdicts.py [--entries N] [--blocks B] [--oracle FILE.jsonl.gz]

The trajectories are the ground truths of N entries of each category and simple mutations of them, made here; or those
of a file with one JSON object `{"id": …, "traj": [turn][step][call text]}` a line. Both sides judge the same blocks of
trajectories in turn, the official one under a fresh model name for each trajectory because it keeps its instances; the
table gives the medians over the blocks. The official checker stops at the first failing turn, and so does `replay` when
only the verdict is asked for; the row "every turn" also asks for the scores of the turns after it. Our first, cold pass
loads each scenario and works out its ground truth.
Needs the official checker: pip install --no-deps bfcl-eval==2026.3.23, pip install mpmath.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

from envtune_agents.types import Task
from envtune_bfcl import CATEGORIES, load_task, load_tasks, replay

Trajectory = list[list[list[str]]]
Case = tuple[Task, Trajectory]
Judge = Callable[[Task, Trajectory], tuple[bool, str | None]]

_fresh = count()


def official(task: Task, calls: Trajectory) -> tuple[bool, str | None]:
    """BFCL's own verdict, with the length check of its `eval_runner` and without what an earlier run left behind."""
    if len(calls) != len(task.turns):
        return False, "multi_turn:force_terminated"
    entry = {"id": task.task_id, **task.data}
    name = f"benchmark_{next(_fresh)}"
    verdict = multi_turn_checker(calls, task.data["ground_truth"], entry, task.category, name)
    return bool(verdict["valid"]), verdict.get("error_type")


def ours(task: Task, calls: Trajectory) -> tuple[bool, str | None]:
    """Our verdict."""
    result = replay(task, calls)
    return result.valid, result.error_type


def every_turn(task: Task, calls: Trajectory) -> tuple[bool, str | None]:
    """Our verdict, with the scores of all turns."""
    result = replay(task, calls)
    assert len(result.turn_scores) == len(task.turns)
    return result.valid, result.error_type


def forget_instances() -> None:
    """Drop the instances that the official executor keeps, so that no later block carries their weight."""
    kept = [name for name in vars(multi_turn_utils) if name.startswith("benchmark_")]
    for name in kept:
        del vars(multi_turn_utils)[name]


def mutated(task: Task) -> Iterator[Trajectory]:
    """The ground truth, and five trajectories that a model might have made instead."""
    truth = task.data["ground_truth"]
    steps = [[[call] for call in turn] for turn in truth]
    last = max((turn for turn, calls in enumerate(truth) if calls), default=0)
    yield steps
    yield [[list(turn)] if turn else [] for turn in truth]
    yield [turn if number != last else turn[:-1] for number, turn in enumerate(steps)]
    yield [turn if number != last else [*turn, *turn[-1:]] for number, turn in enumerate(steps)]
    yield [[["no_such_tool(x=1)"], *turn] if turn else [] for turn in steps]
    yield [[[call[0].replace("'", "'x", 1)] for call in turn] for turn in steps]


def made_cases(entries: int) -> list[Case]:
    """Six trajectories for each of the first `entries` tasks of each category."""
    tasks = [task for category in CATEGORIES for task in load_tasks("all", category)[:entries]]
    return [(task, calls) for task in tasks for calls in mutated(task)]


def read_cases(file: Path) -> list[Case]:
    """The trajectories of a file."""
    data = file.read_bytes()
    rows = [json.loads(line) for line in (gzip.decompress(data) if file.suffix == ".gz" else data).splitlines()]
    return [(load_task(row["id"]), row["traj"]) for row in rows]


def judge_all(judge: Judge, cases: list[Case]) -> tuple[float, list[tuple[bool, str | None]]]:
    """CPU seconds, which other work on the machine disturbs less than wall seconds, and the verdicts."""
    start = time.process_time()
    verdicts = [judge(task, calls) for task, calls in cases]
    return time.process_time() - start, verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=50, help="entries of each category (default 50, at most 200)")
    parser.add_argument("--blocks", type=int, default=8, help="interleaved blocks (default 8)")
    parser.add_argument("--oracle", type=Path, help="judge the trajectories of this .jsonl or .jsonl.gz file instead")
    options = parser.parse_args()

    cases = read_cases(options.oracle) if options.oracle else made_cases(options.entries)
    blocks = [cases[start :: options.blocks] for start in range(options.blocks)]
    cold_s = sum(judge_all(ours, block)[0] for block in blocks)
    rates: dict[str, list[float]] = {"official": [], "verdict": [], "every turn": []}
    equal = 0
    for block in blocks:
        official_s, expected = judge_all(official, block)
        forget_instances()
        ours_s, found = judge_all(ours, block)
        every_s, again = judge_all(every_turn, block)
        equal += sum(a == b == c for a, b, c in zip(expected, found, again, strict=True))
        rates["official"].append(len(block) / official_s)
        rates["verdict"].append(len(block) / ours_s)
        rates["every turn"].append(len(block) / every_s)

    middle = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{len(cases)} trajectories, {options.blocks} blocks; equal verdicts: {equal}")
    print(f"{'':28}{'per CPU second':>16}{'ratio':>8}")
    print(f"{'official checker':28}{middle['official']:16.0f}{1:8.1f}")
    print(f"{'replay, first pass':28}{len(cases) / cold_s:16.0f}{len(cases) / cold_s / middle['official']:8.1f}")
    for name in ("every turn", "verdict"):
        print(f"{f'replay, {name}':28}{middle[name]:16.0f}{middle[name] / middle['official']:8.1f}")


if __name__ == "__main__":
    main()
