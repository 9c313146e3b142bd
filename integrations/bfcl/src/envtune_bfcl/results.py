"""Finished rollouts -> the official verdict, and bfcl-eval's own result files.

In: rollouts of BFCL tasks. Out: verdicts worked out from the recorded calls alone, and files on which
`bfcl evaluate` comes to the same verdicts, entry by entry. The files have the form that its Qwen handler reads, so
the folder is named after a model of that handler.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envtune_agents.errors import TaskError
from envtune_agents.types import FailureKind, Rollout, RolloutStep, StopReason, Task
from envtune_bfcl.calls import call_text
from envtune_bfcl.data import CATEGORIES, load_task
from envtune_bfcl.verdicts import replay

if TYPE_CHECKING:
    from envtune_agents.task_source import Verdict

INFERENCE_ERROR = "multi_turn:inference_error"
"""BFCL's error type of an entry without a list of replies, such as one whose model raised."""
MODEL = "Qwen/Qwen3-4B-Instruct-2507-FC"
"""A name in bfcl-eval's model registry; it says which handler reads the replies."""

_PLAYED = (StopReason.DONE, StopReason.STEP_LIMIT)
_TOOL_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
"""What bfcl-eval's `QwenFCHandler` takes for a call."""


def calls_of(rollout: Rollout) -> list[list[list[str]]]:
    """The call texts that a rollout made, `[turn][step][i]`, as `replay` takes them.

    A malformed call was never made and is left out; a reply in words is a step without a call.
    """
    return [[_calls(step) for step in turn.steps] for turn in rollout.turns]


def official_verdict(task: Task, rollout: Rollout) -> Verdict:
    """What BFCL says about a rollout, from its calls alone.

    A force-quit in the last turn leaves a reply for every turn, so that the official checker judges it like any other.
    An episode that ended by an error, a timeout or a full context has no list of replies: an inference error.
    """
    from envtune_agents.task_source import Verdict

    if rollout.stop_reason not in _PLAYED:
        return Verdict(False, INFERENCE_ERROR)
    result = replay(task, calls_of(rollout))
    return Verdict(result.valid, result.error_type)


def export_results(rollouts: Iterable[Rollout], folder: str | Path, *, model: str = MODEL) -> list[Path]:
    """Write rollouts as a result folder of bfcl-eval; gives the files, one for each category that is there.

    `model` is the registry name to file them under, of a model that `QwenFCHandler` reads. The first sample of each
    task goes to `folder`, each further one to a result folder of its own, `folder/sample_1` and so on. Then:

        bfcl evaluate --model Qwen/Qwen3-4B-Instruct-2507-FC --test-category multi_turn --result-dir FOLDER

    with `--partial-eval` when entries are missing. Raises TaskError for a rollout that is not of a BFCL task, and for
    two of one task and sample.
    """
    files: dict[Path, dict[str, Any]] = {}
    for rollout in rollouts:
        if rollout.category not in CATEGORIES or rollout.n_turns != len(load_task(rollout.task_id).turns):
            raise TaskError(f"Rollout {rollout.rollout_id!r} is not of a BFCL task; export those of --tasks bfcl.")
        rows = files.setdefault(_file(Path(folder), rollout, model), {})
        if rollout.task_id in rows:
            raise TaskError(f"Two rollouts of {rollout.task_id!r}, sample {rollout.sample}: export one evaluation.")
        rows[rollout.task_id] = {"id": rollout.task_id, "result": _result(rollout)}
    for path, rows in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        ordered = sorted(rows.values(), key=lambda row: int(row["id"].rpartition("_")[2]))
        partial = path.with_suffix(".part")
        partial.write_text("".join(f"{json.dumps(row)}\n" for row in ordered), encoding="ascii")
        os.replace(partial, path)
    return sorted(files)


def _file(folder: Path, rollout: Rollout, model: str) -> Path:
    base = folder / f"sample_{rollout.sample}" if rollout.sample else folder
    return base / model.replace("/", "_") / "multi_turn" / f"BFCL_v4_{rollout.category}_result.json"


def _result(rollout: Rollout) -> list[list[str]] | str:
    if rollout.stop_reason not in _PLAYED:
        return f"Error during inference: {rollout.error or rollout.stop_reason.value}"
    return [[_reply(step) for step in turn.steps] for turn in rollout.turns]


def _reply(step: RolloutStep) -> str:
    """The model's own words where the official handler reads the calls from them that were made, else the calls."""
    made = [outcome.call for outcome in step.outcomes if _was_made(outcome.failure)]
    if _read(step.reply) == _calls(step):
        return step.reply
    if not made:
        return step.reply.replace("<tool_call>", "<tool_call >")  # what was not run must not count
    blocks = [json.dumps({"name": call.name, "arguments": dict(call.args)}) for call in made]
    return "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)


def _calls(step: RolloutStep) -> list[str]:
    return [call_text(outcome.call) for outcome in step.outcomes if _was_made(outcome.failure)]


def _was_made(failure: Any) -> bool:
    return failure is None or failure.kind is not FailureKind.MALFORMED_CALL


def _read(reply: str) -> list[str] | None:
    """The call texts that `QwenFCHandler.decode_execute` gives; None where it raises."""
    texts = []
    for block in _TOOL_CALL.findall(reply):
        try:
            call = json.loads(block)
        except ValueError:
            continue
        try:
            args = json.loads(call["arguments"]) if isinstance(call["arguments"], str) else call["arguments"]
            texts.append(f"{call['name']}({','.join(f'{name}={value!r}' for name, value in args.items())})")
        except Exception:
            return None
    return texts
