"""Is the token tape exact? Every BFCL entry × every reply style, through the real prompt path.

    python benchmarks/token_tape.py [--every N] [--first K] [--tokenizer smollm2] [--styles compact,think]

The tool calls are the ground truth's. Only the sampling is scripted (`TokenScript`): tokenizer, chat template, prompt
building, parsing, tools and the episode's graph are those of a real run. Half the episodes "sample" tokens that the
tokenizer would not choose for their text. Prints one line for each style: `drifted` and `errors` must be 0 everywhere,
and `branches` is entries + reveals.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from envtune_agents.rollout import run_episode
from envtune_agents.tape import tape_facts, tape_of
from envtune_agents.testing.token_script import TokenScript, scripted_logprob, tokenizer_only
from envtune_agents.types import Rollout, Task, ToolCall

Calls = Sequence[ToolCall]
COLUMNS = ("steps", "branches", "revealed", "drifted")


def _block(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def _canonical(call: ToolCall) -> str:
    return _block(json.dumps({"name": call.name, "arguments": dict(call.args)}, ensure_ascii=False))


def _compact(call: ToolCall) -> str:
    return _block(json.dumps({"name": call.name, "arguments": dict(call.args)}, separators=(",", ":")))


def _arguments_first(call: ToolCall) -> str:
    return _block(json.dumps({"arguments": dict(call.args), "name": call.name}, ensure_ascii=False))


def _one_by_one(say: Callable[[ToolCall], str]) -> Callable[[Calls], list[str]]:
    return lambda calls: [say(call) for call in calls]


def _text_between(calls: Calls) -> list[str]:
    parts = [f"Step {index + 1}: {call.name} – das hier.\n{_canonical(call)}" for index, call in enumerate(calls)]
    return ["\nand then:\n\n".join(parts) + "\nThat is all. 🙂"]


def _think(calls: Calls) -> list[str]:
    return [f"<think>\nThe user wants {call.name}; naïve?\n</think>\n\n{_canonical(call)}" for call in calls]


STYLES: dict[str, Callable[[Calls], list[str]]] = {
    "canonical": _one_by_one(_canonical),
    "compact": _one_by_one(_compact),
    "arguments_first": _one_by_one(_arguments_first),
    "text_between": _text_between,
    "think": _think,
    "several": lambda calls: ["\n".join(_canonical(call) for call in calls)],
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one episode showed."""

    steps: int
    branches: int
    revealed: int
    """Turns that reveal tools: their prompt begins with another list of tools, so it cannot go on from before."""
    drifted: int
    """Other calls whose prompt was not the exact continuation of the one before."""
    errors: tuple[str, ...]
    """What is wrong with the tape; none is the claim."""


def script_of(task: Task, style: str) -> list[str]:
    """The replies of an episode: the ground truth's calls in a style, and a closing word for each turn."""
    from envtune_bfcl import parse_call

    replies: list[str] = []
    for texts in task.data["ground_truth"]:
        replies += STYLES[style]([parse_call(text) for text in texts]) if texts else []
        replies.append("Done: alles gut.")
    return replies


async def judge(task: Task, style: str, weights: Any, *, template: str, split_seed: int | None) -> Verdict:
    """Plays one episode and compares its tape with the script."""
    from envtune_bfcl import BfclEnvironment

    script = script_of(task, style)
    model = TokenScript(
        model="scripted", script=script, scripted_weights=weights, split_seed=split_seed, chat_template=template
    )
    rollout = await run_episode(model, BfclEnvironment(task), hints=0, max_steps=60)
    tape, revealed = tape_of(rollout), len(task.data.get("missed_function", {}))
    return Verdict(
        steps=sum(len(turn.steps) for turn in rollout.turns),
        branches=len(tape.branches),
        revealed=revealed,
        drifted=tape.drifted - revealed,
        errors=tuple(_errors(rollout, script, weights)),
    )


def _errors(rollout: Rollout, script: Sequence[str], weights: Any) -> Iterator[str]:
    facts = tape_facts(rollout, decode=weights.decode)
    if rollout.error or facts.broken or facts.note:
        yield f"{rollout.rollout_id}: {rollout.error or facts.note}"
    said = [step.reply for turn in rollout.turns for step in turn.steps]
    if said != list(script):
        yield f"{rollout.rollout_id}: {len(said)} replies, {len(script)} in the script, or other words"
    for branch in tape_of(rollout).branches:
        for span in branch.spans:
            reply = rollout.turns[span.turn].steps[span.step].reply
            if weights.decode(branch.said(span)[:-1]) != reply:
                yield f"{rollout.rollout_id}: the mask of turn {span.turn}, step {span.step} decodes to other words"
        for token, mask, logprob in zip(branch.completion_ids, branch.loss_mask, branch.logprobs, strict=True):
            if logprob != (scripted_logprob(token) if mask else 0.0):
                yield f"{rollout.rollout_id}: a log-probability belongs to another token"
                break


def _share_of(arguments: tuple[str, str, str, slice, int, int]) -> list[Verdict]:
    from envtune_bfcl import load_tasks

    tokenizer, template, style, places, part, parts = arguments
    weights = tokenizer_only(tokenizer)
    tasks = load_tasks("all")[places][part::parts]

    async def run() -> list[Verdict]:
        seeds = [index if index % 2 else None for index in range(len(tasks))]
        return [
            await judge(task, style, weights, template=template, split_seed=seed)
            for task, seed in zip(tasks, seeds, strict=True)
        ]

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="every n-th of the 800 entries")
    parser.add_argument("--first", type=int, default=0, help="begin at this entry")
    parser.add_argument("--tokenizer", default="smollm2", help="checkpoint whose tokenizer is used")
    parser.add_argument("--template", default="qwen", help="'qwen', 'auto' or Jinja text")
    parser.add_argument("--styles", default=",".join(STYLES), help="comma-separated; all by default: %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="that share the entries (default 2)")
    options = parser.parse_args()
    places = slice(options.first, None, options.every)
    names = ("entries", "calls", "branches", "reveals", "drifted", "seconds", "errors")
    print(f"{'style':16} " + " ".join(f"{name:>8}" for name in names))
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for style in options.styles.split(","):
            started, parts = time.perf_counter(), options.processes
            jobs = [(options.tokenizer, options.template, style, places, part, parts) for part in range(parts)]
            verdicts = [verdict for share in pool.map(_share_of, jobs) for verdict in share]
            errors = [error for verdict in verdicts for error in verdict.errors]
            total = {name: sum(getattr(verdict, name) for verdict in verdicts) for name in COLUMNS}
            numbers = (len(verdicts), *(total[name] for name in COLUMNS), time.perf_counter() - started, len(errors))
            print(f"{style:16} " + " ".join(f"{number:8.0f}" for number in numbers), flush=True)
            for error in errors[:5]:
                print(f"  {error}")


if __name__ == "__main__":
    main()
