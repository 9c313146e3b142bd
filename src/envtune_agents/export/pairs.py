"""Rollouts -> preference pairs: the reply at which a better and a worse rollout of one task part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

from envtune_agents.export.groups import grouped
from envtune_agents.export.sft import ToolsOf, messages_of, origin
from envtune_agents.types import Rollout

Message = dict[str, str]


def to_preference_pairs(
    rollouts: Iterable[Rollout], *, hints: str = "keep", tools: ToolsOf | None = None, margin: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Pairs of rollouts of one task whose rewards differ by more than `margin`: `prompt`, `chosen`, `rejected`.

    `prompt` is the conversation that both share word for word, tool results included. `chosen` is the reply that the
    better rollout went on with, `rejected` the worse one's: one message each, so that every token with loss was said by
    the model. A pair whose conversations part elsewhere (in a user message or a tool result) is left out, and of pairs
    that part at the same two replies only the first is kept. `hints` and `tools` are those of `to_sft_rows`.
    """
    for group in grouped(rollouts):
        scored = sorted(
            ((rollout.reward, rollout) for rollout in group if rollout.reward is not None),
            key=lambda pair: (-pair[0], pair[1].rollout_id),
        )
        seen: set[str] = set()
        for (high, better), (low, worse) in combinations(scored, 2):
            pair = _pair(better, worse, stripped=hints == "strip") if high - low > margin else None
            key = json.dumps(pair)
            if pair is None or key in seen:
                continue
            seen.add(key)
            if tools is not None:
                pair["tools"] = json.dumps(list(tools(better)))
            names = {"chosen_id": better.rollout_id, "rejected_id": worse.rollout_id}
            rewards = {"chosen_reward": high, "rejected_reward": low}
            about = {key: value for key, value in origin(better).items() if key not in ("rollout_id", "reward")}
            yield {**pair, **about, **names, **rewards}


def _pair(better: Rollout, worse: Rollout, *, stripped: bool) -> dict[str, Any] | None:
    left, right = (messages_of(rollout.turns, stripped=stripped) for rollout in (better, worse))
    for index, (chosen, rejected) in enumerate(zip(left, right, strict=False)):
        if chosen != rejected:
            if chosen["role"] == rejected["role"] == "assistant":
                return {"prompt": left[:index], "chosen": [chosen], "rejected": [rejected]}
            return None
    return None
