"""Schedules of the dial: how much help is left after some progress, some success, or enough uptake of one rule.

In: the level that holds now and a number that training has measured. Out: the level from now on. A schedule is a value
without state of its own: what it must remember between two steps is in the `HintDial` that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from envtune_agents.errors import HintRuleError

MAX_LEVEL = 3
_STRICT: dict[str, Any] = {"extra": "forbid", "strict": True}


@dataclass(frozen=True, slots=True)
class LinearFade:
    """From `start` to `end` in equal steps, as progress goes from `begin` to `finish`.

    LinearFade()             # 3, 2, 1 and 0, each for a quarter of the way from 0 to 1
    LinearFade(finish=400)   # the same over 400 training steps
    """

    start: int = MAX_LEVEL
    end: int = 0
    begin: float = 0.0
    """Progress until which `start` holds."""
    finish: float = 1.0
    """Progress from which `end` holds, in the same unit: a share, a step, an epoch."""
    kind: Literal["linear"] = "linear"
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    def __post_init__(self) -> None:
        check_level(self.start)
        check_level(self.end)
        if self.end > self.start or not self.begin < self.finish:
            raise HintRuleError(
                f"A linear fade goes down, from an earlier to a later progress; got level {self.start} to {self.end} "
                f"between {self.begin:g} and {self.finish:g}."
            )

    def level(self, progress: float) -> int:
        """The level at a progress; `end` at `finish` and after it."""
        share = (progress - self.begin) / (self.finish - self.begin)
        if share >= 1.0:
            return self.end
        return self.start - int(max(share, 0.0) * (self.start - self.end + 1))


@dataclass(frozen=True, slots=True)
class SuccessFade:
    """One level less whenever the success rate reaches `fade_at`, one more whenever it falls below `restore_at`.

    Between the two rates the level stays. That gap is the hysteresis: taking help away costs some success at first, and
    the gap keeps that loss from bringing the help back at once. `restore_at=0` never brings it back.
    """

    fade_at: float = 0.6
    """Success rate in [0, 1] at which one level is taken away."""
    restore_at: float = 0.3
    """Success rate in [0, 1] below which one level is given back."""
    start: int = MAX_LEVEL
    """Help is never restored above this level."""
    end: int = 0
    """Help never fades below this level."""
    kind: Literal["success"] = "success"
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    def __post_init__(self) -> None:
        check_level(self.start)
        check_level(self.end)
        if not 0.0 <= self.restore_at < self.fade_at <= 1.0 or self.end > self.start:
            raise HintRuleError(
                "A success fade needs 0 <= restore_at < fade_at <= 1 and end <= start; got restore_at="
                f"{self.restore_at:g}, fade_at={self.fade_at:g}, start={self.start}, end={self.end}."
            )

    def level(self, now: int, success: float) -> int:
        """The level after a success rate was measured at level `now`."""
        if success >= self.fade_at and now > self.end:
            return now - 1
        return now + 1 if success < self.restore_at and now < self.start else now


@dataclass(frozen=True, slots=True)
class Uptake:
    """How often a rule's hint was shown, and how often the next call of that tool succeeded."""

    shown: int = 0
    fixed: int = 0
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    def __post_init__(self) -> None:
        if not 0 <= self.fixed <= self.shown:
            raise HintRuleError(f"Uptake needs 0 <= fixed <= shown, got fixed={self.fixed} and shown={self.shown}.")

    @property
    def rate(self) -> float:
        """`fixed / shown`, in [0, 1]; 0 when the hint was never shown."""
        return self.fixed / self.shown if self.shown else 0.0


@dataclass(frozen=True, slots=True)
class RuleRetirement:
    """One level less for a single rule whose hints are followed so often that less of them will do, down to none.

    A rule is judged each time it was shown `min_shown` times at its present level. While at least `retire_at` of those
    hints were followed by a call that worked, its cap goes down by one: first the pointer goes, then the constraint,
    and a rule that is followed even when it only repeats the problem is retired. Below `restore_at` one level comes
    back. A retired rule is never shown, so nothing brings it back but `HintDial.rules`.
    """

    retire_at: float = 0.8
    """Uptake in [0, 1] at which a rule loses a level."""
    restore_at: float = 0.4
    """Uptake in [0, 1] below which it gains one."""
    min_shown: int = 20
    """Hints shown at one level before the rule is judged."""
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    def __post_init__(self) -> None:
        if not 0.0 <= self.restore_at < self.retire_at <= 1.0 or self.min_shown < 1:
            raise HintRuleError(
                "Rule retirement needs 0 <= restore_at < retire_at <= 1 and min_shown >= 1; got restore_at="
                f"{self.restore_at:g}, retire_at={self.retire_at:g}, min_shown={self.min_shown}."
            )

    def judged(self, cap: int, uptake: Uptake) -> tuple[int, Uptake]:
        """The rule's cap from now on, and the uptake still to be judged."""
        if uptake.shown < self.min_shown:
            return cap, uptake
        if uptake.rate >= self.retire_at:
            return max(cap - 1, 0), Uptake()
        return (min(cap + 1, MAX_LEVEL) if uptake.rate < self.restore_at else cap), Uptake()


def check_level(level: object) -> None:
    """Raises HintRuleError for what is no level of the dial."""
    if isinstance(level, bool) or not isinstance(level, int) or level not in range(MAX_LEVEL + 1):
        raise HintRuleError(f"A hint level is a whole number from 0 to {MAX_LEVEL}, got {level!r}.")
