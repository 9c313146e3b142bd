"""One kind of failure as a writer may see it: the call, the answer, the visible tools, what the episode had shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from envtune_agents.counterfactual import Fork, restore
from envtune_agents.hints import tool_schemas
from envtune_agents.mining import FailureCluster
from envtune_agents.types import CallOutcome, Environment, Rollout, Task

_TRUTH_KEYS = ("ground_truth", "solution", "answer")


@dataclass(frozen=True, slots=True)
class HintCase:
    """A cluster of failures, with the state of the episode at its first example."""

    cluster: FailureCluster
    outcome: CallOutcome
    """The failed call of the example."""
    tools: Mapping[str, Mapping[str, Any]]
    """The tools visible at that point, as `tool_schemas` gives them."""
    users: tuple[str, ...]
    """User messages up to that point."""
    history: tuple[CallOutcome, ...]
    """Outcomes up to that point, oldest first, without the failed one."""

    def seen(self) -> str:
        """All text that the agent had before it: whatever a hint says must come from here."""
        answers = (f"{json.dumps(dict(outcome.args), default=str)} {outcome.raw_content}" for outcome in self.history)
        own = json.dumps(dict(self.outcome.args), default=str)
        docs = json.dumps(self.tools, ensure_ascii=False, default=str)
        return "\n".join((*self.users, *answers, own, self.outcome.raw_content, docs))


def case_of(cluster: FailureCluster, rollout: Rollout, environment: Environment) -> HintCase:
    """The case of a cluster's first example, from its rollout and a fresh environment of its task.

    Raises EnvironmentStateError when the state cannot be restored.
    """
    example = cluster.examples[0]
    fork = Fork(rollout, example.turn, example.step, example.call)
    point = restore(environment, rollout, fork.turn, fork.step)
    return HintCase(
        cluster=cluster,
        outcome=fork.outcome,
        tools=tool_schemas(point.environment.tools()),
        users=tuple(turn.user for turn in rollout.turns[: fork.turn + 1]),
        history=tuple(_before(fork)),
    )


def truth_of(task: Task) -> Any:
    """The ground truth of a task: what its data holds under "ground_truth", "solution" or "answer"; None without."""
    return next((task.data[key] for key in _TRUTH_KEYS if key in task.data), None)


def _before(fork: Fork) -> Iterator[CallOutcome]:
    for turn, played in enumerate(fork.rollout.turns[: fork.turn + 1]):
        for step, made in enumerate(played.steps):
            for call, outcome in enumerate(made.outcomes):
                if (turn, step, call) >= (fork.turn, fork.step, fork.call):
                    return
                yield outcome
