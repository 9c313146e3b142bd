"""The rounds of writer and judge over the failures that no rule answered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from envtune_agents.errors import HintRuleError, TaskError
from envtune_agents.hint_rules import load_rules
from envtune_agents.hint_writer.case import HintCase, case_of, truth_of
from envtune_agents.hint_writer.constitution import judge_messages, writer_messages
from envtune_agents.hint_writer.drafts import rule_lines
from envtune_agents.hint_writer.replies import Draft, Judgement, read_draft, read_judgement
from envtune_agents.mining import FailureCluster, mine_failures
from envtune_agents.rollout.episode import one_line
from envtune_agents.task_source import TaskSource
from envtune_agents.types import Rollout, Task

_CALL = re.compile(r"(?P<name>[A-Za-z_][\w.]*)\((?P<rest>.*)\)", re.DOTALL)
_LITERAL = re.compile(r"'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?<!\w)(?P<number>\d[\d.]*)")


class Fate(StrEnum):
    """What became of one attempt to write a hint."""

    ACCEPTED = "accepted"
    """It is in the file, for a person to review."""
    LEAK = "leak"
    """It held something of the answer; found by comparing with the ground truth, or by the judge."""
    NO_EXPLORATION = "no_exploration"
    """It dictated the next call, said the judge."""
    NOT_ACTIONABLE = "not_actionable"
    """It said nothing to act on, said the judge."""
    TOO_SPECIFIC = "too_specific"
    """It repeated a value of the example's call, so it cannot hold for the other failures."""
    UNREADABLE_DRAFT = "unreadable_draft"
    """The writer's reply held no hint in the asked form."""
    UNREADABLE_VERDICT = "unreadable_verdict"
    """The judge's reply held no verdict in the asked form."""
    REFUSED = "refused"
    """It does not make a valid rule, for instance for braces in its text."""
    ERROR = "error"
    """A model raised, or the episode's state could not be restored."""


@dataclass(frozen=True, slots=True)
class WrittenHint:
    """One cluster of failures and what became of its hint."""

    cluster: FailureCluster
    fate: Fate
    case: HintCase | None = None
    draft: Draft | None = None
    """What the writer gave; None when it could not be read."""
    judgement: Judgement | None = None
    note: str = ""
    """More about the fate, in one line."""


async def write_hints(
    rollouts: Sequence[Rollout],
    source: TaskSource,
    writer: BaseChatModel,
    judge: BaseChatModel,
    *,
    limit: int | None = None,
    unasked: bool = False,
    truth: Callable[[Task], Any] = truth_of,
    on_fate: Callable[[WrittenHint], None] = lambda _: None,
) -> list[WrittenHint]:
    """Has a hint written and judged for each kind of failure that no rule answered, the most frequent first.

    `limit` counts kinds of failure; `unasked` takes in those of rollouts at level 0. `truth` gives a task's ground
    truth to the judge, and to a plain comparison before it; the writer never sees it. `on_fate` is called after each.
    Whatever a model replies or raises is a `Fate`, never an exception.
    """
    clusters = mine_failures(rollouts, unasked=unasked).clusters[:limit]
    by_id = {rollout.rollout_id: rollout for rollout in rollouts}
    wanted = {cluster.examples[0].task_id for cluster in clusters}
    tasks = {task.task_id: task for task in source.tasks("all") if task.task_id in wanted} if wanted else {}
    if wanted and not tasks:
        raise TaskError(f"None of the run's tasks is known to the task source (such as {min(wanted)}).")
    hints = []
    for cluster in clusters:
        hints.append(await _written(cluster, by_id, tasks, source, writer, judge, truth))
        on_fate(hints[-1])
    return hints


async def _written(
    cluster: FailureCluster,
    rollouts: Mapping[str, Rollout],
    tasks: Mapping[str, Task],
    source: TaskSource,
    writer: BaseChatModel,
    judge: BaseChatModel,
    truth: Callable[[Task], Any],
) -> WrittenHint:
    hint = WrittenHint(cluster, Fate.ERROR)
    example = cluster.examples[0]
    try:
        if example.task_id not in tasks:
            return replace(hint, note=f"the task source has no task {example.task_id!r}")
        task = tasks[example.task_id]
        case = case_of(cluster, rollouts[example.rollout_id], source.environment(task))
        draft = read_draft(await _said(writer, writer_messages(case)))
        hint = replace(hint, case=case, draft=draft)
        answer = truth(task)
        fate, note = _own_checks(case, draft, answer)
        if fate or draft is None:
            return replace(hint, fate=fate or Fate.UNREADABLE_DRAFT, note=note)
        judgement = read_judgement(await _said(judge, judge_messages(case, draft, answer)))
        return replace(hint, fate=_fate(judgement), judgement=judgement, note=judgement.reason if judgement else "")
    except Exception as error:  # one failure without a hint must not end the others
        return replace(hint, fate=Fate.ERROR, note=one_line(error))


async def _said(model: BaseChatModel, messages: list[BaseMessage]) -> str:
    return str((await model.ainvoke(messages)).text)


def _own_checks(case: HintCase, draft: Draft | None, truth: Any) -> tuple[Fate | None, str]:
    """What needs no judge: is there a hint, does it make a rule, does it hold a value it must not?"""
    if draft is None:
        return Fate.UNREADABLE_DRAFT, "no JSON object with problem, constraint and pointer"
    text = " ".join(draft.parts().values())
    docs = str(case.tools)
    own = [value for value in _values(dict(case.outcome.args)) if _holds(text, value) and not _holds(docs, value)]
    if own:
        return Fate.TOO_SPECIFIC, f"it repeats {own[0]!r}"
    seen = case.seen()
    leaked = [value for value in _values(truth) if _holds(text, value) and not _holds(seen, value)]
    if leaked:
        return Fate.LEAK, f"it holds {leaked[0]!r}, which the episode has not shown"
    try:
        load_rules("rules:\n" + "\n".join(rule_lines(case, draft, set())) + "\n")
    except HintRuleError as error:
        return Fate.REFUSED, str(error)
    return None, ""


def _fate(judgement: Judgement | None) -> Fate:
    if judgement is None:
        return Fate.UNREADABLE_VERDICT
    if judgement.leaks:
        return Fate.LEAK
    if not judgement.explores:
        return Fate.NO_EXPLORATION
    return Fate.ACCEPTED if judgement.actionable else Fate.NOT_ACTIONABLE


def _values(value: Any) -> Iterator[str]:
    """The texts and numbers in a value that are long enough to give something away; of a call its name and literals."""
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _values(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _values(part)
    elif isinstance(value, str) and (call := _CALL.fullmatch(value.strip())):
        yield call["name"]
        for literal in _LITERAL.finditer(call["rest"]):
            yield from _values(literal["single"] or literal["double"] or literal["number"] or "")
    elif isinstance(value, str) and len(value.strip()) > 2:
        yield value.strip()
    elif isinstance(value, int | float) and not isinstance(value, bool) and len(str(value)) > 1:
        yield str(value)


def _holds(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None
