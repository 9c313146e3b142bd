"""Values that a hint brought into the episode and that the agent then used: what a leak would look like."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from envtune_agents.types import CallOutcome, Rollout

_MIN_CHARS = 3


def values_from_hints(rollout: Rollout, turn: int, step: int, call: int) -> tuple[str, ...]:
    """The argument values of the next successful call of the failed call's tool that its hint holds and that the record
    had not shown before.

    A value is a text of at least three characters or a number of at least two digits. What counts as shown are the user
    messages, the replies and the tools' own answers so far; tools' descriptions are not recorded, so an allowed value
    that a rule repeats from there is found as well.
    """
    failed = rollout.turns[turn].steps[step].outcomes[call]
    used = _next_success(rollout, failed, turn, step)
    if failed.hint is None or used is None:
        return ()
    shown = "\n".join(_shown(rollout, turn, step))
    told = failed.hint.text
    return tuple(value for value in _values(dict(used.args)) if _holds(told, value) and not _holds(shown, value))


def _next_success(rollout: Rollout, failed: CallOutcome, turn: int, step: int) -> CallOutcome | None:
    later = [*rollout.turns[turn].steps[step + 1 :], *(s for t in rollout.turns[turn + 1 :] for s in t.steps)]
    outcomes = (outcome for made in later for outcome in made.outcomes)
    return next((outcome for outcome in outcomes if outcome.name == failed.name and outcome.failure is None), None)


def _shown(rollout: Rollout, turn: int, step: int) -> Iterator[str]:
    for index, played in enumerate(rollout.turns[: turn + 1]):
        yield played.user
        for made in played.steps if index < turn else played.steps[: step + 1]:
            yield made.reply
            for outcome in made.outcomes:
                yield json.dumps(dict(outcome.args), ensure_ascii=False, default=str)
                yield outcome.raw_content


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _values(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _values(part)
    elif isinstance(value, str) and len(value.strip()) >= _MIN_CHARS:
        yield value.strip()
    elif isinstance(value, int | float) and not isinstance(value, bool) and len(str(value)) > 1:
        yield str(value)


def _holds(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None
