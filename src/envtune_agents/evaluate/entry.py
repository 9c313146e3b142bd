"""One line of a report: what one episode came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from envtune_agents.summary import outcomes_of
from envtune_agents.task_source import TaskSource, Verdict
from envtune_agents.types import Rollout, StopReason, Task, TurnScore

NOT_PLAYED = "not_played"
"""`Entry.ended` of an episode that an interrupted run did not reach."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One episode of an evaluation. Whatever befell it, it is one of the total."""

    task_id: str
    category: str
    sample: int
    """0-based index among the episodes of this task."""
    solved: bool
    error_type: str | None
    """Why it counts as unsolved, in the benchmark's own words where it has any; None when solved."""
    ended: str
    """A `StopReason`, or "not_played"."""
    error: str | None = None
    """What was raised, in one line."""
    turns_solved: int = 0
    """Turns that scored 1."""
    n_turns: int = 1
    """Turns of the task, played or not; where the environment ended the conversation early, the turns it had."""
    steps: int = 0
    """Model calls."""
    calls: int = 0
    """Tool calls."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Calls that did not do their job, by `FailureKind`."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Part of `input_tokens` read from a prefix cache."""
    total_s: float = 0.0
    """Wall seconds of the episode."""
    model_s: float = 0.0
    """Wall seconds inside model calls."""


def entry_of(task: Task, rollout: Rollout, source: TaskSource) -> Entry:
    """What one rollout came to, by the source's verdict."""
    verdict = verdict_on(task, rollout, source)
    failures: dict[str, int] = {}
    outcomes = list(outcomes_of(rollout))
    for outcome in outcomes:
        if outcome.failure:
            failures[outcome.failure.kind.value] = failures.get(outcome.failure.kind.value, 0) + 1
    return Entry(
        task_id=task.task_id,
        category=task.category,
        sample=rollout.sample,
        solved=verdict.solved,
        error_type=verdict.error_type,
        ended=rollout.stop_reason.value,
        error=rollout.error,
        turns_solved=sum(turn.score is not None and turn.score.value == 1.0 for turn in rollout.turns),
        n_turns=len(rollout.turns) if rollout.stop_reason is StopReason.DONE else rollout.n_turns,
        steps=sum(len(turn.steps) for turn in rollout.turns),
        calls=len(outcomes),
        failures=failures,
        input_tokens=rollout.usage.input_tokens,
        output_tokens=rollout.usage.output_tokens,
        cached_tokens=rollout.usage.cached_tokens,
        total_s=rollout.timings.total_s,
        model_s=rollout.timings.model_s,
    )


def missing_entry(task: Task, sample: int) -> Entry:
    """The entry of an episode that was asked for and not played: unsolved, and counted."""
    return Entry(task.task_id, task.category, sample, False, NOT_PLAYED, NOT_PLAYED, n_turns=len(task.turns))


def verdict_on(task: Task, rollout: Rollout, source: TaskSource) -> Verdict:
    """The source's own verdict, or "every turn was played and scored 1" where it has none.

    An episode with an error is unsolved whatever it called: its error type is the exception's name.
    """
    if rollout.error is not None:
        return Verdict(False, f"{StopReason.ERROR.value}: {rollout.error.partition(':')[0]}")
    if source.judge is not None:
        return source.judge(task, rollout)
    if rollout.solved:
        return Verdict(True)
    if rollout.stop_reason is not StopReason.DONE:
        return Verdict(False, rollout.stop_reason.value)
    return Verdict(False, next((_fault(turn.score) for turn in rollout.turns if _fault(turn.score)), "turn_not_solved"))


def _fault(score: TurnScore | None) -> str | None:
    if score is None or score.value == 1.0:
        return None
    if score.state < 1:
        return "state_mismatch"
    return "response_mismatch" if score.response < 1 else "turn_not_solved"
