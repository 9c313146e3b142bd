"""What collecting and storing rollouts costs, beside the bare LangGraph loop on the same tasks in the same process.

    python benchmarks/rollouts.py [--tasks 40] [--rounds 5] [--episodes 2048] [--records 10000] [--gib 0]

The model answers at once (the ground truth's calls, scripted), so everything that is measured is overhead. Tables: a
step of `collect`, through the graph and directly, beside a step of the same graph without records; many episodes at the
same time; writing and reading records, plain and compressed, with the memory that reading takes; and, with `--gib`, a
file of that size.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import Runnable

from envtune_agents.graph import build_agent_graph
from envtune_agents.rollout import Play, RolloutStore, collect, read_rollouts, run_directly, run_episode, to_line
from envtune_agents.testing import ScriptedChatModel, calls_message
from envtune_agents.types import Rollout, Task
from envtune_bfcl import BfclEnvironment, load_tasks, parse_call

_NO_LIMIT = {"recursion_limit": 1_000_000}


class AtOnce(ScriptedChatModel):
    """A model that costs nothing: it answers in the event loop (LangChain would send a script that is a function to a
    thread) and leaves its tools as they are."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=tools, **kwargs)

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return self._generate(messages)


def solution_model(tasks: Sequence[Task]) -> ScriptedChatModel:
    """Plays each task by its ground truth, one call a step; conversations are told apart by their first message."""
    scripts: dict[str, list[AIMessage]] = {}
    for task in tasks:
        script = scripts.setdefault(task.turns[0], [])
        if script:
            continue
        for texts in task.data["ground_truth"]:
            for text in texts:
                call = parse_call(text)
                script.append(calls_message((call.name, dict(call.args)), position=len(script)))
            script.append(AIMessage("Done."))

    def reply(messages: list[BaseMessage]) -> AIMessage:
        script = scripts[str(messages[0].text)]
        position = sum(isinstance(message, AIMessage) for message in messages)
        return script[position] if position < len(script) else AIMessage("")

    return AtOnce(script=reply, model_name="solution")


def distinct(tasks: Sequence[Task], count: int) -> list[Task]:
    """The first `count` tasks whose first messages differ."""
    return list({task.turns[0]: task for task in reversed(tasks)}.values())[::-1][:count]


async def bare_loop(tasks: Sequence[Task], model: ScriptedChatModel) -> tuple[float, int]:
    """CPU seconds and steps of the same graph, without records."""
    started, steps = time.process_time(), 0
    for task in tasks:
        state = await build_agent_graph(model, BfclEnvironment(task), hints=0).ainvoke({}, _NO_LIMIT)
        steps += sum(isinstance(message, AIMessage) for message in state["messages"])
    return time.process_time() - started, steps


async def collected(tasks: Sequence[Task], model: ScriptedChatModel, play: Play) -> float:
    """CPU seconds of the same episodes with records on disk."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        await collect(tasks, model, BfclEnvironment, out=folder, concurrency=1, hints=0, play=play)
        return time.process_time() - started


def overhead(tasks: Sequence[Task], rounds: int) -> None:
    """CPU time, in interleaved rounds: a busy machine slows all alike."""
    model, took = solution_model(tasks), {"bare": [], "graph": [], "direct": []}
    steps = asyncio.run(bare_loop(tasks, model))[1]
    runs = {
        "bare": lambda: asyncio.run(bare_loop(tasks, model))[0],
        "graph": lambda: asyncio.run(collected(tasks, model, run_episode)),
        "direct": lambda: asyncio.run(collected(tasks, model, run_directly)),
    }
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            took[name].append(runs[name]())
    about = f"{len(tasks)} BFCL episodes, {steps} steps, {rounds} rounds, median"
    print(f"\n{'a step':34} {'CPU ms':>8} {'/ bare':>8} {'/ direct':>9}   ({about})")
    for name, title in TITLES.items():
        ms = 1000 * median(took[name]) / steps
        ratios = [
            median(one / other for one, other in zip(took[name], took[peer], strict=True))
            for peer in ("bare", "direct")
        ]
        print(f"{title:34} {ms:8.2f} {ratios[0]:8.2f} {ratios[1]:9.2f}")


TITLES = {
    "bare": "bare LangGraph loop, no records",
    "graph": "collect, through the graph",
    "direct": "collect(play=run_directly)",
}


def many_at_once(tasks: Sequence[Task], episodes: int) -> None:
    model = solution_model(tasks)
    samples = -(-episodes // len(tasks))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = asyncio.run(
            collect(tasks, model, BfclEnvironment, out=folder, samples=samples, concurrency=episodes, hints=0)
        )
        took = time.perf_counter() - started
        rewards = [rollout.reward for rollout in read_rollouts(folder)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{'at the same time':24} {'written':>8} {'errors':>8} {'seconds':>8} {'peak GiB':>9} {'reward 1':>9}")
    print(
        f"{min(episodes, samples * len(tasks)):<24} {done.written:8} {done.errors:8} {took:8.1f} {peak:9.2f} "
        f"{sum(reward == 1 for reward in rewards):9}"
    )


def records(task: Task, count: int) -> None:
    """A real episode with 4,000 prompt tokens and 40 sampled tokens a step, written `count` times; CPU seconds."""
    rollout = with_tokens(asyncio.run(run_episode(solution_model([task]), BfclEnvironment(task), hints=0)))
    print(f"\n{'records':24} {'write s':>8} {'read s':>8} {'MiB':>8} {'growth MiB':>11}   ({count} of them)")
    for zstd in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            with RolloutStore(folder, zstd=zstd) as store:
                for number in range(count):
                    store.append(dataclasses.replace(rollout, rollout_id=f"{task.task_id}/0/{number}", sample=number))
            wrote, size = time.process_time() - started, store.path.stat().st_size / 2**20
            started = time.process_time()
            assert sum(1 for _ in read_rollouts(folder)) == count
            read = time.process_time() - started
            print(f"{store.path.name:24} {wrote:8.1f} {read:8.1f} {size:8.0f} {growth(Path(folder)):11.2f}")


def large_file(task: Task, gib: float) -> None:
    """A file of long replies (2,000 tokens a step), read to its end: resident memory after a tenth of it and then."""
    rollout = with_tokens(asyncio.run(run_episode(solution_model([task]), BfclEnvironment(task), hints=0)), 2_000)
    line = to_line(rollout)
    count = int(gib * 2**30 / len(line))
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "rollouts.jsonl").open("wb") as file:
            for _ in range(count):
                file.write(line)
        started, seen, early = time.perf_counter(), 0, 0.0
        for seen, _ in enumerate(read_rollouts(folder), start=1):
            early = resident_mib() if seen == count // 10 else early
        took, late = time.perf_counter() - started, resident_mib()
    print(f"\n{'a large file':24} {'GiB':>6} {'records':>9} {'seconds':>8} {'MiB at 10%':>11} {'MiB at end':>11}")
    print(f"{'read_rollouts':24} {gib:6.1f} {seen:9} {took:8.0f} {early:11.0f} {late:11.0f}")


def resident_mib() -> float:
    """Memory of this process now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def growth(folder: Path) -> float:
    """How much more memory the last nine tenths of a file take than the first tenth, in MiB."""
    rollouts = read_rollouts(folder)
    tracemalloc.start()
    for _, _ in zip(range(100), rollouts, strict=False):
        pass
    early = tracemalloc.get_traced_memory()[1]
    for _, _ in zip(range(900), rollouts, strict=False):
        pass
    late = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (late - early) / 2**20


def with_tokens(rollout: Rollout, sampled: int = 40) -> Rollout:
    """The rollout with made-up tokens: each prompt goes on from the step before, `sampled` tokens are said."""
    prompt, turns = tuple(range(4_000)), []
    for turn in rollout.turns:
        steps = []
        for step in turn.steps:
            said = tuple(range(sampled))
            steps.append(
                dataclasses.replace(
                    step,
                    prompt_token_ids=prompt,
                    completion_token_ids=said,
                    logprobs=tuple(-0.01 * token for token in said),
                )
            )
            prompt = prompt + said + tuple(range(60))
        turns.append(dataclasses.replace(turn, steps=tuple(steps)))
    return dataclasses.replace(rollout, turns=tuple(turns), tape=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=40, help="BFCL entries in the first table (default 40)")
    parser.add_argument("--rounds", type=int, default=5, help="of the first table; 0 leaves it out (default 5)")
    parser.add_argument("--episodes", type=int, default=2048, help="at the same time; 0: none (default 2048)")
    parser.add_argument("--records", type=int, default=10_000, help="to write and read; 0: none (default 10000)")
    parser.add_argument("--gib", type=float, default=0, help="size of a file to write and read; 0 leaves it out")
    options = parser.parse_args()
    tasks = distinct(load_tasks("all"), options.tasks)
    if options.rounds:
        overhead(tasks, options.rounds)
    if options.records:
        records(tasks[0], options.records)
    if options.gib:
        large_file(tasks[0], options.gib)
    if options.episodes:
        many_at_once(distinct(load_tasks("all", "base"), 128), options.episodes)


if __name__ == "__main__":
    main()
