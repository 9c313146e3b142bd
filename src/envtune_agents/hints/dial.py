"""The dial: how much help is given, where less of it, and by which schedule it fades.

In: a level, caps, schedules. Out: the level at which one rule may speak about one failed call. A dial is a value: `at`
gives the next one, and `to_plain` and `from_plain` carry it through JSON, so that training resumes in mid-schedule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from envtune_agents.errors import HintRuleError
from envtune_agents.hints.fades import MAX_LEVEL, LinearFade, RuleRetirement, SuccessFade, Uptake, check_level

if TYPE_CHECKING:
    from envtune_agents.types import Task


@dataclass(frozen=True, slots=True)
class HintDial:
    """How much help is given: 0 nothing, 1 what went wrong, 2 also the broken constraint, 3 also where to look.

    dial = HintDial(3, tools={"search": 1}, rules={"schema.*": 2}, fade=LinearFade())
    dial = dial.at(progress=0.5)  # level 1 from now on
    dial == HintDial.from_plain(json.loads(json.dumps(dial.to_plain())))

    The keys of the caps are names or globs; the lowest that fits counts, and no cap raises the level, so `HintDial(0)`
    shows nothing whatever else it holds.
    """

    level: int = MAX_LEVEL
    """The level that holds now, 0 to 3."""
    tools: Mapping[str, int] = field(default_factory=dict)
    """Caps by name of the called tool."""
    rules: Mapping[str, int] = field(default_factory=dict)
    """Caps by name of the rule; a rule capped at 0 is retired."""
    tasks: Mapping[str, int] = field(default_factory=dict)
    """Caps by task id or category."""
    stages: Mapping[str, int] = field(default_factory=dict)
    """Caps by name of the curriculum stage."""
    fade: LinearFade | SuccessFade | None = None
    """By which schedule `level` changes in `at`; None: it stays."""
    retire: RuleRetirement | None = None
    """By which schedule caps of single rules change in `at`; None: they stay."""
    tally: Mapping[str, Uptake] = field(default_factory=dict)
    """By rule, what `retire` has counted at the rule's present cap and not judged yet."""
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    def __post_init__(self) -> None:
        check_level(self.level)
        for what in ("tools", "rules", "tasks", "stages"):
            caps = getattr(self, what)
            if not isinstance(caps, Mapping):
                raise HintRuleError(f"HintDial({what}=…) takes a mapping from names to levels, got {caps!r}.")
            for cap in caps.values():
                check_level(cap)

    def level_for(self, rule: str, tool: str) -> int:
        """The level at which `rule` may speak about a failed call of `tool`."""
        return min(self.level, lowest_cap(self.tools, tool), lowest_cap(self.rules, rule))

    def for_episode(self, task: Task | None = None, stage: str = "") -> HintDial:
        """The dial for one episode: its level lowered to what the caps of its task and stage allow."""
        of_task = (task.task_id, task.category) if task else ()
        level = min(self.level, lowest_cap(self.tasks, *of_task), lowest_cap(self.stages, stage))
        return self if level == self.level else replace(self, level=level)

    def at(
        self,
        progress: float | None = None,
        success: float | None = None,
        uptake: Mapping[str, Uptake] | None = None,
    ) -> HintDial:
        """The dial after its schedules have seen what was measured since the last time.

        `progress` counts in the unit of `LinearFade.finish`; `success` is the latest success rate, in [0, 1]; `uptake`
        is by rule, for the hints shown since the last call. What no schedule asks for is ignored.
        """
        level = self.level
        if isinstance(self.fade, LinearFade) and progress is not None:
            level = self.fade.level(progress)
        if isinstance(self.fade, SuccessFade) and success is not None:
            level = self.fade.level(self.level, success)
        if self.retire is None:
            return replace(self, level=level)
        rules, tally = dict(self.rules), dict(self.tally)
        for rule, new in (uptake or {}).items():
            before, cap = tally.pop(rule, Uptake()), min(self.level, lowest_cap(self.rules, rule))
            next_cap, rest = self.retire.judged(cap, Uptake(before.shown + new.shown, before.fixed + new.fixed))
            if next_cap != cap:
                rules[rule] = next_cap
            if rest.shown:
                tally[rule] = rest
        return replace(self, level=level, rules=rules, tally=tally)

    def to_plain(self) -> dict[str, Any]:
        """The dial with its schedules and what they remember, as a JSON object."""
        return asdict(self)

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any]) -> HintDial:
        """The dial that `to_plain` gave. Raises HintRuleError for a field that is unknown or not of its type."""
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_json(json.dumps(fields))
        except (ValidationError, TypeError, ValueError) as error:
            raise HintRuleError(f"Not a hint dial: {_faults(error)}") from error


def lowest_cap(caps: Mapping[str, int], *names: str) -> int:
    """The lowest of the caps whose key fits one of the names; 3 when none does."""
    if not caps:
        return MAX_LEVEL
    fitting = [cap for key, cap in caps.items() if any(key == name or fnmatchcase(name, key) for name in names)]
    return min(fitting, default=MAX_LEVEL)


def _faults(error: Exception) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    faults = [
        f"{'.'.join(map(str, fault['loc'])) or 'the dial'}: {fault['msg'].removeprefix('Value error, ').rstrip('.')}"
        for fault in error.errors()
    ]
    return f"{'; '.join(faults[:5])}. Expected what HintDial.to_plain() gives."
