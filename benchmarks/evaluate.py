"""What an evaluation costs beside the model: the 400 BFCL test entries with a model that answers at once.

    python benchmarks/evaluate.py [--entries N] [--concurrency C] [--model smollm2 --tasks N] [--profile FILE]

The instant model plays every entry by its ground truth, so the table it earns is known: everything is solved. The rows
are the evaluation itself (graph, tools, official verdicts, records, report), the recomputation of all verdicts from the
stored rollouts, and, with --model, how much of the wall time a real checkpoint spends in model calls on a few entries.
Needs BFCL's data: pip install --no-deps bfcl-eval==2026.3.23, pip install mpmath.
"""

from __future__ import annotations

import argparse
import cProfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from envtune_agents import ChatTransformers, Report, Task, evaluate
from envtune_agents.evaluate import verify
from envtune_agents.task_source import TaskSource, find_task_source
from envtune_agents.testing import ScriptedChatModel
from envtune_bfcl import parse_call


def marked(task: Task) -> Task:
    """The task with its id before the first message, by which the instant model knows it."""
    return replace(task, turns=(f"{task.task_id}: {task.turns[0]}", *task.turns[1:]))


def truth_model(tasks: Sequence[Task]) -> ScriptedChatModel:
    """A model that makes all ground-truth calls of a turn in one reply and then falls silent."""
    truths = {task.task_id: task.data["ground_truth"] for task in tasks}

    def reply(messages: list[BaseMessage]) -> AIMessage:
        if not isinstance(messages[-1], HumanMessage):
            return AIMessage("Done.")
        said = [str(message.text) for message in messages if isinstance(message, HumanMessage)]
        calls = [parse_call(text) for text in truths[said[0].partition(":")[0]][len(said) - 1]]
        return AIMessage(
            "",
            tool_calls=[
                {"name": call.name, "args": dict(call.args), "id": f"call_{len(messages)}_{index}"}
                for index, call in enumerate(calls)
            ],
        )

    return ScriptedChatModel(script=reply, model_name="ground truth")


class Clock:
    """Wall and CPU seconds since it was made; other work on the machine disturbs the second less."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Wall seconds, CPU seconds."""
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def row(name: str, report: Report, clock: Clock) -> float:
    """Prints one line of the table and gives the wall seconds."""
    wall_s, cpu_s = clock.read()
    steps = sum(entry.steps for entry in report.entries)
    score = report.score
    print(f"{name:26}{score.correct:>6} of {score.total:<5}{wall_s:>8.1f}{cpu_s:>8.1f}{1000 * cpu_s / steps:>15.2f}")
    return wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=400, help="test entries for the instant model (default 400)")
    parser.add_argument("--concurrency", type=int, default=4, help="episodes at the same time (default 4)")
    parser.add_argument("--model", help="also measure this checkpoint, such as smollm2")
    parser.add_argument("--tasks", type=int, default=2, help="entries for the checkpoint (default 2)")
    parser.add_argument("--profile", help="write a cProfile file of the instant evaluation")
    options = parser.parse_args()

    source = find_task_source("bfcl")
    tasks = [marked(task) for task in source.load("test", None)[:: max(1, 400 // options.entries)]]
    print(f"{'':26}{'solved':>14}{'wall s':>8}{'CPU s':>8}{'CPU ms a step':>15}")
    with tempfile.TemporaryDirectory() as folder:
        chosen: TaskSource = replace(source, load=lambda split, categories: tasks)
        profile = cProfile.Profile() if options.profile else None
        clock = Clock()
        with profile or nullcontext():
            report = evaluate(truth_model(tasks), chosen, out=folder, concurrency=options.concurrency)
        row("instant model", report, clock)
        if profile:
            profile.dump_stats(options.profile)
        clock = Clock()
        verification = verify(report, chosen)
        row("verdicts recomputed", report, clock)
        assert verification.holds, verification
    if options.model:
        few = tasks[:: max(1, len(tasks) // options.tasks)][: options.tasks]
        model = ChatTransformers(model=options.model, temperature=0, max_tokens=64)
        _ = model.engine.weights
        clock = Clock()
        report = evaluate(model, replace(source, load=lambda split, categories: few), concurrency=1, max_steps=3)
        wall_s = row(f"{options.model}, one at a time", report, clock)
        model_s = sum(entry.model_s for entry in report.entries)
        print(f"of its wall time {model_s / wall_s:.1%} went into model calls")


if __name__ == "__main__":
    main()
