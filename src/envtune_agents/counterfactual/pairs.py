"""Replays -> preference pairs: the reply that led to the better end of a turn beside the one that led to the worse."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from envtune_agents.counterfactual.branch import Branch
from envtune_agents.counterfactual.store import Replay


def preference_pairs(replays: Iterable[Replay]) -> Iterator[dict[str, Any]]:
    """One row for each replay whose two continuations score differently, in TRL's conversational preference form.

    `prompt` is the conversation up to where the continuations part, `chosen` and `rejected` are the replies there, one
    message each, so that every token with loss was said by the model; `chosen_continuation` and
    `rejected_continuation` go on to the end of the turn. Messages are in OpenAI's form; `tools` is JSON text. No row
    holds a hint: a reply that the hint made better teaches to do so without it. A pair that parts nowhere is left out.
    """
    for replay in replays:
        if not replay.gap or replay.with_hint is None or replay.without_hint is None:
            continue
        better, worse = replay.with_hint, replay.without_hint
        if replay.gap < 0:
            better, worse = worse, better
        parting = _parting(better, worse)
        if parting is None:
            continue
        yield {
            "prompt": [*replay.prompt, *better.messages[:parting]],
            "chosen": [better.messages[parting]],
            "rejected": [worse.messages[parting]],
            "chosen_continuation": list(better.messages[parting:]),
            "rejected_continuation": list(worse.messages[parting:]),
            "tools": json.dumps(list(replay.tools)),
            "chosen_score": better.score,
            "rejected_score": worse.score,
            "chosen_saw_hint": better is replay.with_hint,
            "rule": replay.rule,
            "level": replay.level,
            "hint": replay.hint,
            "task_id": replay.task_id,
            "replay_id": replay.replay_id,
        }


def _parting(better: Branch, worse: Branch) -> int | None:
    """Index of the first message that differs, if it is a reply in both."""
    for index, (left, right) in enumerate(zip(better.messages, worse.messages, strict=False)):
        if _said(left) != _said(right):
            return index if left["role"] == right["role"] == "assistant" else None
    return None


def _said(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without the ids that a model makes up anew each time."""
    calls = [call.get("function") for call in message.get("tool_calls") or ()]
    return {**{key: value for key, value in message.items() if key != "tool_call_id"}, "tool_calls": calls}
