"""Rollouts -> what a person reads in a terminal: a table of a run, and one rollout from beginning to end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envtune_agents.types import CallOutcome, FailureKind, Rollout, RolloutStep, RolloutTurn, TurnEvidence

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_SHOWN_CHARS = 400
_NO_TOOL = (FailureKind.UNKNOWN_TOOL, FailureKind.MALFORMED_CALL)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal would obey instead of show (escape sequences, text direction), and what UTF-8 cannot hold."""


@dataclass(slots=True)
class CategoryTotals:
    """What the rollouts of one category add up to."""

    rollouts: int = 0
    solved: int = 0
    """Rollouts in which every turn scored 1."""
    turns: int = 0
    """Turns of the tasks, played or not."""
    turns_solved: int = 0
    """Played turns that scored 1."""
    calls: int = 0
    failures: int = 0
    hints: int = 0
    hints_followed: int = 0
    """Hints after which another call was made that the hint could have helped."""
    fixed: int = 0
    """Hints whose next such call did its job."""
    output_tokens: int = 0
    input_tokens: int = 0
    seconds: float = 0.0
    errors: int = 0

    def add(self, rollout: Rollout) -> None:
        """Counts one rollout in."""
        outcomes = list(outcomes_of(rollout))
        steps = [step for turn in rollout.turns for step in turn.steps]
        follow_ups = [
            next_call_worked(outcome, steps[index + 1 :])
            for index, step in enumerate(steps)
            for outcome in step.outcomes
            if outcome.hint
        ]
        self.rollouts += 1
        self.solved += rollout.solved
        self.turns += rollout.n_turns
        self.turns_solved += sum(turn.score is not None and turn.score.value == 1.0 for turn in rollout.turns)
        self.calls += len(outcomes)
        self.failures += sum(outcome.failure is not None for outcome in outcomes)
        self.hints += len(follow_ups)
        self.hints_followed += sum(worked is not None for worked in follow_ups)
        self.fixed += sum(worked is True for worked in follow_ups)
        self.input_tokens += rollout.usage.input_tokens
        self.output_tokens += rollout.usage.output_tokens
        self.seconds += rollout.timings.total_s
        self.errors += rollout.error is not None


def outcomes_of(rollout: Rollout) -> Iterator[CallOutcome]:
    """Every call of an episode, in order."""
    for turn in rollout.turns:
        for step in turn.steps:
            yield from step.outcomes


def next_call_worked(failed: CallOutcome, later_steps: Iterable[RolloutStep]) -> bool | None:
    """Whether the agent's next call of a tool did its job after `failed`; None when no such call was made.

    That is the first call of the same tool in a later step of the episode, for the calls of the same step were written
    before the answer was seen. Where the failed call named no tool that exists, it is the next call of any tool.
    """
    for step in later_steps:
        for outcome in step.outcomes:
            if follows_up(failed, outcome):
                return outcome.failure is None
    return None


def follows_up(failed: CallOutcome, outcome: CallOutcome) -> bool:
    """Whether a later call is another try at what a failed call wanted, as far as the names tell."""
    names_no_tool = failed.failure is not None and failed.failure.kind in _NO_TOOL
    return names_no_tool or outcome.name == failed.name


def totals_by_category(rollouts: Iterable[Rollout]) -> dict[str, CategoryTotals]:
    """The totals of each category, in the order in which they first appear."""
    totals: dict[str, CategoryTotals] = {}
    for rollout in rollouts:
        totals.setdefault(rollout.category, CategoryTotals()).add(rollout)
    return totals


def summary_table(rollouts: Iterable[Rollout]) -> Table:
    """A run as a table, one line for each category and one for all."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold cyan", padding=(0, 1, 0, 0))  # narrow: fits 80 columns
    table.add_column("\ncategory", no_wrap=True)
    for name in ("turns\nsolved", "\ncalls", "\nfailures", "hints\nshown", "next call\nfixed", "\ntokens", "\nseconds"):
        table.add_column(name, justify="right", no_wrap=True)
    totals = totals_by_category(rollouts)
    for category, row in sorted(totals.items()):
        table.add_row(escape(printable(category)), *_cells(row))
    whole = _sum(totals.values())
    table.add_section()
    table.add_row("all", *_cells(whole))
    table.caption = f"{whole.rollouts} rollouts: {whole.solved} solved, {whole.errors} ended with an error"
    table.caption_justify = "left"
    return table


def _cells(row: CategoryTotals) -> list[str]:
    return [
        f"{row.turns_solved} of {row.turns}",
        f"{row.calls}",
        f"{row.failures}",
        f"{row.hints}",
        f"{row.fixed} of {row.hints_followed}",
        f"{row.input_tokens + row.output_tokens:,}",
        f"{row.seconds:.0f}",
    ]


def _sum(rows: Iterable[CategoryTotals]) -> CategoryTotals:
    total = CategoryTotals()
    for row in rows:
        for name in CategoryTotals.__dataclass_fields__:
            setattr(total, name, getattr(total, name) + getattr(row, name))
    return total


def rollout_text(rollout: Rollout) -> RenderableType:
    """One rollout in readable form: who said what, what each call returned, which hint was added, how it scored."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(printable(f"{rollout.rollout_id}  ({rollout.model}, hint level {rollout.hint_level})"), style="bold")]
    for index, turn in enumerate(rollout.turns):
        lines += [Text(), Text(f"turn {index + 1} of {rollout.n_turns}", style="bold cyan")]
        lines += [Text(text, style=style) for text, style in _turn_lines(turn)]
    reward = "none" if rollout.reward is None else f"{rollout.reward:.2f}"
    end = f"reward {reward}, ended by {rollout.stop_reason.value}"
    lines += [Text(), Text(end + (f": {_short(rollout.error)}" if rollout.error else ""), style="bold")]
    return Group(*lines)


def _turn_lines(turn: RolloutTurn) -> Iterator[tuple[str, str]]:
    yield f"user   {_short(turn.user)}", "white"
    for step in turn.steps:
        yield f"model  {_short(step.reply) or '(says nothing)'}", "green"
        for outcome in step.outcomes:
            yield f"tool   {_short(outcome.raw_content)}", "red" if outcome.failure else "blue"
            if outcome.hint:
                yield f"hint   [{printable(outcome.hint.rule)}] {_short(outcome.hint.text)}", "yellow"
    if turn.score:
        score = turn.score
        yield f"score  {score.value:.2f} (state {score.state:.2f}, response {score.response:.2f})", "magenta"
    if turn.evidence:
        yield from ((f"why    {reason}", "red") for reason in reasons(turn.evidence))


def reasons(evidence: TurnEvidence) -> Iterator[str]:
    """Why a turn did not score 1: which checks failed, and what differs where the environment can tell."""
    if evidence.judged and not evidence.answered:
        yield "calls were needed and none was made"
        return
    for title, checks in (("state", evidence.state_checks), ("result", evidence.response_checks)):
        for name in (name for name, holds in checks.items() if not holds):
            difference = _short(evidence.differences.get(name, ""))
            yield f"{title} {printable(name)}" + (f": {difference}" if difference else " is not as it should be")


def printable(text: str) -> str:
    """`text` with replacement characters for what a terminal would obey instead of show."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _short(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}… ({len(text):,} characters)"
