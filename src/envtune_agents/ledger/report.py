"""Failure events -> what each rule did in a run: shown, taken up, steps saved, tokens spent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from envtune_agents.hints import Uptake
from envtune_agents.ledger.events import FailureEvent, failure_events
from envtune_agents.ledger.tokens import ESTIMATE, TokenCounter
from envtune_agents.types import FailureKind, Rollout

HORIZON = 10
"""Steps within which a repair counts, unless given."""


@dataclass(frozen=True, slots=True)
class RuleRow:
    """What one rule did in a run."""

    rule: str
    shown: int
    """Hints that the model saw."""
    fixed: int
    """Hints whose next call of that tool did its job; `FailureEvent.next_call_succeeded` says which call that is."""
    followed: int
    """Hints after which such a call was made at all."""
    steps_saved: float | None
    """Model calls that one hint saved on average; negative when it cost some. See `HintReport.baseline_steps`. None
    when the run and its baseline hold no unhinted failure of the kinds this rule answered."""
    tokens: int
    """Tokens of all its hint texts together; `HintReport.tokenizer` says whose."""
    tasks: int
    """Different tasks in which it spoke."""
    suspects: int
    """Hints that may have leaked: those with `FailureEvent.suspects`."""
    levels: tuple[int, ...]
    """Levels at which it spoke, lowest first."""
    kinds: tuple[FailureKind, ...]
    """Kinds of failure that it answered."""

    @property
    def uptake(self) -> float:
        """Share of its hints that were taken up, in [0, 1]: fixed / shown. A hint that was not acted on counts as 0."""
        return self.fixed / self.shown


@dataclass(frozen=True, slots=True)
class HintReport:
    """The ledger of one run."""

    rollouts: int
    calls: int
    failures: int
    """Failed calls, hinted or not."""
    tokenizer: str
    """Which tokenizer counted the tokens, or how they were estimated."""
    tokens_exact: bool
    """False for an estimate."""
    horizon: int
    """Steps within which a repair counts."""
    baseline_steps: dict[FailureKind, float] = field(default_factory=dict)
    """Mean steps to success of the unhinted failures, by kind. The steps of one failure are the model calls up to the
    first success of its tool in the same turn, at most `horizon`; a failure that was never repaired in its turn counts
    as `horizon`, so giving up is never cheap."""
    baseline_failures: dict[FailureKind, int] = field(default_factory=dict)
    """How many unhinted failures that mean is made of, by kind."""
    rules: tuple[RuleRow, ...] = ()
    """The rules that spoke, most shown first."""

    def uptake(self) -> dict[str, Uptake]:
        """By rule, what `HintDial.at(uptake=…)` takes to retire rules."""
        return {row.rule: Uptake(row.shown, row.fixed) for row in self.rules}

    def to_plain(self) -> dict[str, Any]:
        """The report as a JSON object, with each rule's uptake."""
        plain = asdict(self)
        plain["rules"] = [{**asdict(row), "uptake": row.uptake} for row in self.rules]
        return plain


def hint_report(
    rollouts: Iterable[Rollout],
    counter: TokenCounter = ESTIMATE,
    *,
    baseline: Iterable[Rollout] = (),
    horizon: int = HORIZON,
) -> HintReport:
    """What each rule did in `rollouts`.

    Steps saved compare a rule's hinted failures with the unhinted failures of the same kind, those of `rollouts` and of
    `baseline` (a run of the same tasks at level 0) together. They are an observation, not an effect: the failures that
    no rule answered may be harder ones. `counterfactual` measures the effect.
    """
    n_rollouts, n_calls, events = 0, 0, list[FailureEvent]()
    for rollout in rollouts:
        n_rollouts += 1
        n_calls += sum(len(step.outcomes) for turn in rollout.turns for step in turn.steps)
        events += failure_events(rollout, counter)
    unhinted = [event for event in events if event.hint is None]
    unhinted += [event for rollout in baseline for event in failure_events(rollout) if event.hint is None]
    steps = _steps_by_kind(unhinted, horizon)
    means = {kind: fmean(counts) for kind, counts in steps.items()}
    rows = [_row(rule, group, means, horizon) for rule, group in _by_rule(events).items()]
    return HintReport(
        rollouts=n_rollouts,
        calls=n_calls,
        failures=len(events),
        tokenizer=counter.name,
        tokens_exact=counter.exact,
        horizon=horizon,
        baseline_steps=means,
        baseline_failures={kind: len(counts) for kind, counts in steps.items()},
        rules=tuple(sorted(rows, key=lambda row: (-row.shown, row.rule))),
    )


def _by_rule(events: Iterable[FailureEvent]) -> dict[str, list[FailureEvent]]:
    groups: dict[str, list[FailureEvent]] = {}
    for event in events:
        if event.hint is not None:
            groups.setdefault(event.hint.rule, []).append(event)
    return groups


def _steps_by_kind(events: Iterable[FailureEvent], horizon: int) -> dict[FailureKind, list[int]]:
    groups: dict[FailureKind, list[int]] = {}
    for event in events:
        groups.setdefault(event.kind, []).append(_steps(event, horizon))
    return groups


def _steps(event: FailureEvent, horizon: int) -> int:
    return horizon if event.steps_to_success is None else min(event.steps_to_success, horizon)


def _row(
    rule: str,
    events: Sequence[FailureEvent],
    baseline: dict[FailureKind, float],
    horizon: int,
) -> RuleRow:
    saved = [baseline[event.kind] - _steps(event, horizon) for event in events if event.kind in baseline]
    return RuleRow(
        rule=rule,
        shown=len(events),
        fixed=sum(event.next_call_succeeded is True for event in events),
        followed=sum(event.next_call_succeeded is not None for event in events),
        steps_saved=fmean(saved) if saved else None,
        tokens=sum(event.tokens for event in events),
        tasks=len({event.task_id for event in events}),
        suspects=sum(bool(event.suspects) for event in events),
        levels=tuple(sorted({event.hint.level for event in events if event.hint})),
        kinds=tuple(sorted({event.kind for event in events})),
    )
