"""Each failed call of a rollout: the hint it got, and what the agent did once it had seen the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from envtune_agents.ledger.leaks import values_from_hints
from envtune_agents.ledger.tokens import ESTIMATE, TokenCounter
from envtune_agents.summary import follows_up, next_call_worked
from envtune_agents.types import CallOutcome, FailureKind, Hint, Rollout, RolloutStep


@dataclass(frozen=True, slots=True)
class FailureEvent:
    """One failed call and what followed it."""

    rollout_id: str
    task_id: str
    turn: int
    """0-based index of the turn."""
    step: int
    """0-based index of the model call within the turn."""
    call: int
    """0-based index of the call within the step."""
    tool: str
    """Name as the model wrote it; "" when it could not be read."""
    kind: FailureKind
    hint: Hint | None
    """The hint that was shown; None when no rule answered or the dial was at 0."""
    tokens: int
    """Tokens of the hint's text, as the counter given to `failure_events` has it; 0 without a hint."""
    next_call_succeeded: bool | None
    """Whether the agent's next call of that tool did its job; see `summary.next_call_worked`."""
    steps_to_success: int | None
    """Model calls from the failed one to the first success of that tool in the same turn, at least 1; None when there
    was none before the turn ended."""
    suspects: tuple[str, ...]
    """Values that the next success of that tool used and that nothing but the hint had shown: a leak, or an allowed
    value from a tool's description; see `values_from_hints`."""

    @property
    def event_id(self) -> str:
        """Unique name in a run: rollout, turn, step and call."""
        return f"{self.rollout_id}#{self.turn}.{self.step}.{self.call}"


def failure_events(rollout: Rollout, counter: TokenCounter = ESTIMATE) -> Iterator[FailureEvent]:
    """The failed calls of a rollout, oldest first, hinted or not."""
    for turn, played in enumerate(rollout.turns):
        later_turns = [step for later in rollout.turns[turn + 1 :] for step in later.steps]
        for index, step in enumerate(played.steps):
            rest = played.steps[index + 1 :]
            for call, outcome in enumerate(step.outcomes):
                if outcome.failure is None:
                    continue
                yield FailureEvent(
                    rollout_id=rollout.rollout_id,
                    task_id=rollout.task_id,
                    turn=turn,
                    step=index,
                    call=call,
                    tool=outcome.name,
                    kind=outcome.failure.kind,
                    hint=outcome.hint,
                    tokens=counter.count(outcome.hint.text) if outcome.hint else 0,
                    next_call_succeeded=next_call_worked(outcome, [*rest, *later_turns]),
                    steps_to_success=_steps_to_success(outcome, rest),
                    suspects=values_from_hints(rollout, turn, index, call),
                )


def _steps_to_success(failed: CallOutcome, steps: Sequence[RolloutStep]) -> int | None:
    for count, step in enumerate(steps, start=1):
        if any(outcome.failure is None and follows_up(failed, outcome) for outcome in step.outcomes):
            return count
    return None
