"""`verify`: recompute every verdict of a report from its stored rollouts, without a model.

Each rollout is played again in a fresh environment by a model that says what was recorded. What the tools answer, how
the turns score and what the verdict is must come out as stored; what does not is named, beside what changed in the task
data, in the checker and in the versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from envtune_agents.errors import ContextOverflowError, TaskError
from envtune_agents.evaluate.entry import NOT_PLAYED, Entry, verdict_on
from envtune_agents.evaluate.files import read_report
from envtune_agents.evaluate.manifest import fingerprint_of
from envtune_agents.evaluate.report import Report
from envtune_agents.qwen import parse_reply
from envtune_agents.rollout import read_rollouts, run_episode
from envtune_agents.rollout.episode import rollout_id
from envtune_agents.rollout.manifest import task_hash, versions
from envtune_agents.summary import outcomes_of
from envtune_agents.task_source import TaskSource, Verdict, find_task_source
from envtune_agents.testing import ScriptedChatModel
from envtune_agents.types import FailureKind, Rollout, RolloutStep, Task


@dataclass(frozen=True, slots=True)
class VerdictChange:
    """One episode whose verdict came out differently."""

    rollout_id: str
    before: Verdict
    now: Verdict

    def __str__(self) -> str:
        return f"{self.rollout_id}: was {_words(self.before)}, is {_words(self.now)}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What recomputing a report found."""

    checked: int
    """Episodes whose verdict was recomputed."""
    verdicts: Sequence[VerdictChange] = ()
    """Verdicts that changed."""
    scores: Sequence[str] = ()
    """Ids of rollouts in which some turn scores differently."""
    answers: Sequence[str] = ()
    """Ids of rollouts in which some tool answers differently; alone, that changes no number."""
    unreplayed: Mapping[str, str] = field(default_factory=dict)
    """Rollout id -> why it could not be played again; its stored verdict was kept."""
    lost: Sequence[str] = ()
    """Ids of rollouts that the report counts and its folder no longer holds."""
    tasks: Sequence[str] = ()
    """Ids of tasks whose messages or data changed, or that are gone."""
    versions: Sequence[str] = ()
    """What differs in versions and in the checker's fingerprint, in words."""

    @property
    def holds(self) -> bool:
        """True when every verdict was recomputed from unchanged tasks and came out as stored."""
        return not (self.verdicts or self.scores or self.unreplayed or self.lost or self.tasks)

    def __str__(self) -> str:
        lines = [f"{self.checked} verdicts recomputed: {'all as reported' if self.holds else 'NOT as reported'}"]
        lines += _section("verdicts changed", [str(change) for change in self.verdicts])
        lines += _section("turn scores changed", self.scores)
        lines += _section("tool answers changed", self.answers)
        lines += _section("not played again", [f"{key}: {reason}" for key, reason in self.unreplayed.items()])
        lines += _section("rollouts missing", self.lost)
        lines += _section("tasks changed", self.tasks)
        lines += _section("versions changed", self.versions)
        return "\n".join(lines)


def verify(report: Report | str | Path, source: TaskSource | None = None) -> Verification:
    """Recomputes every verdict of a report; see the module.

    `report` is a report, its file or its folder. `source` is needed where the report's tasks were given in Python.
    Raises `RecordError` for a report that cannot be read, `TaskError` when its tasks cannot be found.
    """
    return asyncio.run(averify(report, source))


async def averify(report: Report | str | Path, source: TaskSource | None = None) -> Verification:
    """`verify` for callers inside an event loop."""
    report = report if isinstance(report, Report) else read_report(report)
    if report.folder is None:
        raise TaskError("This report was not kept: evaluate with `out=` to have rollouts that can be verified.")
    source = source or _source_of(report)
    tasks = {task.task_id: task for task in source.tasks(report.manifest.split or "all")}
    known = report.manifest.task_hashes
    stored = {rollout.rollout_id: rollout for rollout in read_rollouts(report.folder)}
    checks = _Checks(report, source)
    for entry in report.entries:
        if entry.ended == NOT_PLAYED:
            continue
        key = rollout_id(entry.task_id, report.manifest.seed, entry.sample)
        if key not in stored:
            checks.lost.append(key)
        elif entry.task_id in tasks:
            await checks.check(entry, tasks[entry.task_id], stored[key])
    changed = [task_id for task_id in known if task_id not in tasks or task_hash(tasks[task_id]) != known[task_id]]
    return checks.verification(changed, _version_changes(report, source))


class _Checks:
    """What has been found so far."""

    def __init__(self, report: Report, source: TaskSource) -> None:
        self._report = report
        self._source = source
        self._checked = 0
        self._verdicts: list[VerdictChange] = []
        self._scores: list[str] = []
        self._answers: list[str] = []
        self._unreplayed: dict[str, str] = {}
        self.lost: list[str] = []

    async def check(self, entry: Entry, task: Task, rollout: Rollout) -> None:
        """Plays one rollout again and compares."""
        fresh, problem = rollout, None
        if rollout.error is None:
            fresh, problem = await self._replayed(task, rollout)
        if problem:
            self._unreplayed[rollout.rollout_id] = problem
            return
        self._checked += 1
        before, now = Verdict(entry.solved, entry.error_type), verdict_on(task, fresh, self._source)
        if before != now:
            self._verdicts.append(VerdictChange(rollout.rollout_id, before, now))
        if [turn.score for turn in fresh.turns] != [turn.score for turn in rollout.turns]:
            self._scores.append(rollout.rollout_id)
        if [o.raw_content for o in outcomes_of(fresh)] != [o.raw_content for o in outcomes_of(rollout)]:
            self._answers.append(rollout.rollout_id)

    async def _replayed(self, task: Task, rollout: Rollout) -> tuple[Rollout, str | None]:
        """The rollout with what a fresh environment answers and scores; the second value is why there is none."""
        settings = self._report.manifest.settings
        options: dict[str, Any] = {
            name: settings[name]
            for name in ("max_steps", "malformed_ends_turn", "call_timeout_s", "scorer_timeout_s")
            if name in settings
        }
        try:
            environment = self._source.environment(task)
        except Exception as error:  # a user's environment; the record says what it did
            return rollout, f"the environment raised {type(error).__name__}: {error}"
        replay = await run_episode(
            recording(rollout), environment, seed=rollout.seed, sample=rollout.sample, hints=0,
            scorer=self._source.scorer, **options,
        )  # fmt: skip
        if replay.error is not None:
            return rollout, replay.error
        if self._report.manifest.model.kind == "graph" and _unknown_now(rollout, replay):
            return rollout, "it calls tools of the application that the environment does not show"
        return replace(rollout, turns=replay.turns), None

    def verification(self, tasks: Sequence[str], version_changes: Sequence[str]) -> Verification:
        """Everything that was found."""
        return Verification(
            self._checked, self._verdicts, self._scores, self._answers, self._unreplayed, self.lost, tasks,
            version_changes,
        )  # fmt: skip


def recording(rollout: Rollout) -> ScriptedChatModel:
    """A model that says what was recorded, call by call, and where the record ends raises `ContextOverflowError`."""
    script = [_reply(step) for turn in rollout.turns for step in turn.steps]

    def reply(messages: list[BaseMessage]) -> AIMessage:
        position = sum(isinstance(message, AIMessage) for message in messages)
        if position >= len(script):
            raise ContextOverflowError("the record ends here")
        return script[position]

    return ScriptedChatModel(script=reply, model_name="recording")


def _reply(step: RolloutStep) -> AIMessage:
    readable = [outcome for outcome in step.outcomes if not _malformed(outcome)]
    return AIMessage(
        content=parse_reply(step.reply).content,
        tool_calls=[{"name": o.name, "args": dict(o.args), "id": o.call_id, "type": "tool_call"} for o in readable],
        invalid_tool_calls=[
            {
                "name": outcome.name,
                "args": "",
                "id": outcome.call_id,
                "error": outcome.failure.message if outcome.failure else "",
                "type": "invalid_tool_call",
            }
            for outcome in step.outcomes
            if _malformed(outcome)
        ],
    )


def _malformed(outcome: Any) -> bool:
    return outcome.failure is not None and outcome.failure.kind is FailureKind.MALFORMED_CALL


def _unknown_now(before: Rollout, now: Rollout) -> bool:
    pairs = zip(outcomes_of(before), outcomes_of(now), strict=False)
    return any(_unknown(new) and not _unknown(old) for old, new in pairs)


def _unknown(outcome: Any) -> bool:
    return outcome.failure is not None and outcome.failure.kind is FailureKind.UNKNOWN_TOOL


def _source_of(report: Report) -> TaskSource:
    if not report.manifest.source:
        raise TaskError("This report's tasks were given in Python; verify it there: verify(report, source).")
    return find_task_source(report.manifest.source)


def _version_changes(report: Report, source: TaskSource) -> list[str]:
    before = {**report.manifest.versions, **report.manifest.fingerprint}
    now = {**versions(), **fingerprint_of(source)}
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name, 'absent')}, is {now.get(name, 'absent')}" for name in names]


def _words(verdict: Verdict) -> str:
    return "solved" if verdict.solved else verdict.error_type or "unsolved"


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title} ({len(lines)}):"
        yield from (f"  {line}" for line in lines[:10])
        if len(lines) > 10:
            yield f"  … and {len(lines) - 10} more"
