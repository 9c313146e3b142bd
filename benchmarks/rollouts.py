"""What collecting and storing rollouts costs, beside the bare LangGraph loop on the same tasks in the same process.

    python benchmarks/rollouts.py [--tasks 40] [--rounds 5] [--episodes 2048] [--records 10000]

The model answers at once (the ground truth's calls, scripted), so everything that is measured is overhead. Four tables:
a step of `collect` beside a step of the same graph without records; many episodes at the same time; writing and reading
records, plain and compressed; memory while reading.
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

from langchain_core.messages import AIMessage, BaseMessage

from envtune_agents.graph import build_agent_graph
from envtune_agents.rollout import RolloutStore, collect, read_rollouts, run_episode
from envtune_agents.testing import ScriptedChatModel, calls_message
from envtune_agents.types import Rollout, Task
from envtune_bfcl import BfclEnvironment, load_tasks, parse_call

_NO_LIMIT = {"recursion_limit": 1_000_000}


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

    return ScriptedChatModel(script=reply, model_name="solution")


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


async def collected(tasks: Sequence[Task], model: ScriptedChatModel, folder: Path) -> float:
    started = time.process_time()
    await collect(tasks, model, BfclEnvironment, out=folder, concurrency=1, hints=0)
    return time.process_time() - started


def overhead(tasks: Sequence[Task], rounds: int) -> None:
    """CPU time, in interleaved rounds: a busy machine slows both alike."""
    model = solution_model(tasks)
    asyncio.run(bare_loop(tasks, model))
    ratios, bare_ms = [], []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            first = number % 2
            took = asyncio.run(collected(tasks, model, Path(folder))) if first else 0.0
            bare, steps = asyncio.run(bare_loop(tasks, model))
            took = took or asyncio.run(collected(tasks, model, Path(folder)))
        ratios.append(took / bare)
        bare_ms.append(1000 * bare / steps)
    about = f"{len(tasks)} BFCL episodes, {steps} steps, {rounds} rounds, median"
    print(f"\n{'a step':24} {'CPU ms':>8} {'ratio':>8}   ({about})")
    print(f"{'bare LangGraph loop':24} {median(bare_ms):8.2f} {1:8.2f}")
    print(f"{'collect':24} {median(bare_ms) * median(ratios):8.2f} {median(ratios):8.2f}")


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


def with_tokens(rollout: Rollout) -> Rollout:
    """The rollout with made-up tokens: each prompt goes on from the step before."""
    prompt, turns = tuple(range(4_000)), []
    for turn in rollout.turns:
        steps = []
        for step in turn.steps:
            said = tuple(range(40))
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
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=2048)
    parser.add_argument("--records", type=int, default=10_000)
    options = parser.parse_args()
    tasks = distinct(load_tasks("all"), options.tasks)
    overhead(tasks, options.rounds)
    records(tasks[0], options.records)
    many_at_once(distinct(load_tasks("all", "base"), 128), options.episodes)


if __name__ == "__main__":
    main()
