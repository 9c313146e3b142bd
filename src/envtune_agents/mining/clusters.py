"""Failures without a hint, put together when tool, kind and wording are the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from envtune_agents.types import CallOutcome, FailureKind, Rollout

_READ_CHARS = 500
_QUOTED = re.compile(r"'[^'\n]{1,80}'|\"[^\"\n]{1,80}\"")
_OBJECT = re.compile(r"\{[^{}]*\}")
_CODE = re.compile(r"[\w-]*\d[\w-]*")


@dataclass(frozen=True, slots=True)
class FailureExample:
    """One failure of a cluster, and where it is in the run."""

    rollout_id: str
    task_id: str
    turn: int
    """0-based, as are `step` and `call`."""
    step: int
    call: int
    outcome: CallOutcome

    @property
    def call_text(self) -> str:
        """The failed call as a person types it."""
        args = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in self.outcome.args.items())
        return f"{self.outcome.name}({', '.join(args)})"


@dataclass(slots=True)
class FailureCluster:
    """Failures of one tool, kind and wording."""

    tool: str
    kind: FailureKind
    message: str
    """The wording they share: the agent's own values as `{argument}`, other quoted text as '…', numbers as #."""
    count: int = 0
    tasks: set[str] = field(default_factory=set)
    """Tasks in which it happened."""
    examples: list[FailureExample] = field(default_factory=list)
    """The first few, each of another task where there are such."""


@dataclass(frozen=True, slots=True)
class Mined:
    """What a run's failures hold that the rules did not answer."""

    clusters: tuple[FailureCluster, ...]
    """Most frequent first."""
    failures: int
    """Failed calls in the run."""
    unanswered: int
    """Those in `clusters`."""
    unasked: int
    """Those of rollouts with the dial at 0, where no rule was asked; left out of `clusters` unless asked for."""


def mine_failures(rollouts: Iterable[Rollout], *, unasked: bool = False, examples: int = 3) -> Mined:
    """The failures that no rule answered, clustered; with `unasked` also those for which no rule was asked."""
    found: dict[tuple[str, FailureKind, str], FailureCluster] = {}
    failures = n_unasked = unanswered = 0
    for rollout in rollouts:
        for example in _failures(rollout):
            failures += 1
            n_unasked += rollout.hint_level == 0
            if example.outcome.hint is None and (unasked or rollout.hint_level > 0):
                unanswered += 1
                _add(found, example, examples)
    clusters = sorted(found.values(), key=lambda cluster: (-cluster.count, cluster.tool, cluster.message))
    return Mined(tuple(clusters), failures, unanswered, n_unasked)


def normalised(message: str, args: Mapping[str, Any]) -> str:
    """The wording of a failure without what differs from case to case."""
    text = " ".join(message[:_READ_CHARS].split())
    text = _OBJECT.sub("{…}", text)
    for name, value in sorted(args.items(), key=lambda item: -len(str(item[1]))):
        if len(str(value)) > 1 and isinstance(value, str | int | float):
            own = rf"(?<!\w)['\"]?{re.escape(str(value))}['\"]?(?!\w)"
            text = re.sub(own, "{" + name.replace("\\", "") + "}", text)
    return _CODE.sub("#", _QUOTED.sub("'…'", text))


def _failures(rollout: Rollout) -> Iterator[FailureExample]:
    for turn, played in enumerate(rollout.turns):
        for index, step in enumerate(played.steps):
            for call, outcome in enumerate(step.outcomes):
                if outcome.failure is not None:
                    yield FailureExample(rollout.rollout_id, rollout.task_id, turn, index, call, outcome)


def _add(found: dict[tuple[str, FailureKind, str], FailureCluster], example: FailureExample, keep: int) -> None:
    outcome = example.outcome
    assert outcome.failure is not None
    message = normalised(outcome.failure.message, outcome.args)
    key = (outcome.name, outcome.failure.kind, message)
    cluster = found.setdefault(key, FailureCluster(*key))
    if example.task_id not in cluster.tasks and len(cluster.examples) < keep:
        cluster.examples.append(example)
    cluster.count += 1
    cluster.tasks.add(example.task_id)
