"""When to move on: what was measured -> stay, advance or finish, with the reasons in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import mean, median

from envtune_agents.errors import CurriculumError


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured at one point of a stage."""

    step: int
    """Training steps done in this stage."""
    score: float
    """Greedy validation score without hints, in [0, 1]."""
    grad_norms: tuple[float, ...] = ()
    """Gradient norm, before clipping, of each training step since the last evaluation that moved the weights."""
    success: float | None = None
    """Mean success of the training groups since then, in [0, 1]."""
    mixed_groups: float | None = None
    """Share of groups whose rewards differ, in [0, 1]: only those teach anything."""
    hint_gap: float | None = None
    """Score with hints minus score without, where both were measured."""


class Move(StrEnum):
    """What a curriculum decided."""

    STAY = "stay"
    """Go on with this stage."""
    ADVANCE = "advance"
    """Begin the next stage."""
    FINISH = "finish"
    """The last stage is over."""
    STOP = "stop"
    """The numbers are broken (NaN): stop and keep the last good weights."""
    RESTART = "restart"
    """Begin this stage again, from other weights: a warm-up has taught what it could not begin without."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision and why it was made."""

    move: Move
    stage: str
    """The stage it is about."""
    step: int
    reasons: tuple[str, ...]
    """Plain sentences, the deciding one first."""

    def __str__(self) -> str:
        return f"{self.stage}, step {self.step}: {self.move.value}. {' '.join(self.reasons)}"


@dataclass(frozen=True, slots=True)
class AdvanceRule:
    """The paper's rule made precise, and optional signals.

    The paper advances "only when the validation accuracy has plateaued and its gradient norm is stable" (section 3.2)
    and gives no numbers; these are ours. A window is `window` evaluations. The score has plateaued when the mean of the
    last window lies within `tolerance` of the mean of the window before. The gradient norm is stable when no norm of
    the last window exceeds `grad_factor` times the stage's median. Both must hold at `confirm` evaluations in a row.
    """

    window: int = 3
    tolerance: float = 0.02
    """In score, [0, 1]. 100 validation tasks have a standard error of up to 0.05 for one evaluation."""
    grad_factor: float = 3.0
    confirm: int = 2
    """Hysteresis: one quiet evaluation is not a plateau."""
    max_steps: int | None = None
    """Budget of training steps for a stage that names none; it ends the stage whatever the curves say."""
    success_band: tuple[float, float] | None = None
    """Below it a plateau is not yet skill, so the stage goes on (late bloomers); above it the stage ends at once."""
    min_mixed_groups: float | None = None
    """When fewer groups than this are mixed over a window, the stage has nothing left to teach and ends."""
    max_hint_gap: float | None = None
    """A plateau counts only while score with hints minus score without is at most this."""

    def __post_init__(self) -> None:
        low, high = self.success_band or (0.0, 1.0)
        fine = {
            "window": (self.window >= 1, "at least 1"),
            "tolerance": (self.tolerance >= 0, "at least 0"),
            "grad_factor": (self.grad_factor >= 1, "at least 1"),
            "confirm": (self.confirm >= 1, "at least 1"),
            "max_steps": (self.max_steps is None or self.max_steps >= 1, "at least 1, or None"),
            "success_band": (0 <= low < high, "a lower and a higher score, such as (0.2, 0.8)"),
            "min_mixed_groups": (self.min_mixed_groups is None or 0 <= self.min_mixed_groups <= 1, "in [0, 1]"),
        }
        for name, (holds, wanted) in fine.items():
            if not holds:
                raise CurriculumError(f"{name} of a rule is {getattr(self, name)!r}; wanted: {wanted}.")

    def judge(
        self, history: Sequence[Evaluation], confirmed: int, budget: int | None = None
    ) -> tuple[bool, int, list[str]]:
        """Whether to leave the stage, how often in a row its plateau was confirmed now, and the reasons.

        `budget` is the stage's own number of steps; without one `max_steps` holds.
        """
        last = history[-1]
        budget = budget if budget is not None else self.max_steps
        if budget is not None and last.step >= budget:
            return True, confirmed, [f"The stage's budget of {budget} steps is spent."]
        if self.success_band and last.score >= self.success_band[1]:
            return True, confirmed, [f"The score {last.score:.3f} is above the band's {self.success_band[1]:.2f}."]
        if (few := self._too_few_mixed(history)) is not None:
            return True, confirmed, [few]
        checks = [self._plateau(history), self._calm(history), *self._optional(last)]
        holds = all(held for held, _ in checks)
        reasons = [words for held, words in checks if held == holds]
        confirmed = confirmed + 1 if holds else 0
        if holds and confirmed < self.confirm:
            reasons.append(f"This was seen {confirmed} of {self.confirm} times in a row.")
        return holds and confirmed >= self.confirm, confirmed, reasons

    def _plateau(self, history: Sequence[Evaluation]) -> tuple[bool, str]:
        if len(history) < 2 * self.window:
            return False, f"Only {len(history)} of {2 * self.window} evaluations that a plateau needs are there."
        scores = [evaluation.score for evaluation in history]
        now, before = mean(scores[-self.window :]), mean(scores[-2 * self.window : -self.window])
        if now < before - self.tolerance:
            return False, f"The score falls, {before:.3f} to {now:.3f} over {self.window} evaluations."
        if now > before + self.tolerance:
            return False, f"The score still rises, {before:.3f} to {now:.3f} over {self.window} evaluations."
        return True, f"The score has plateaued, {before:.3f} to {now:.3f} over {self.window} evaluations."

    def _calm(self, history: Sequence[Evaluation]) -> tuple[bool, str]:
        norms = [norm for evaluation in history for norm in evaluation.grad_norms]
        recent = [norm for evaluation in history[-self.window :] for norm in evaluation.grad_norms]
        if not recent:
            return True, "No gradient norm was reported."
        usual, worst = median(norms), max(recent)
        if worst > self.grad_factor * usual:
            return False, f"The gradient norm jumps to {worst:.3g}, {worst / max(usual, 1e-12):.1f} times the median."
        return True, f"The gradient norm is stable, at most {worst:.3g} with a median of {usual:.3g}."

    def _optional(self, last: Evaluation) -> Iterable[tuple[bool, str]]:
        if self.success_band:
            low = self.success_band[0]
            yield last.score >= low, f"The score {last.score:.3f} is {'in' if last.score >= low else 'below'} the band."
        if self.max_hint_gap is not None and last.hint_gap is not None:
            small = last.hint_gap <= self.max_hint_gap
            yield small, f"The hints are worth {last.hint_gap:.3f}, {'little enough' if small else 'still too much'}."

    def _too_few_mixed(self, history: Sequence[Evaluation]) -> str | None:
        shares = [item.mixed_groups for item in history[-self.window :] if item.mixed_groups is not None]
        if self.min_mixed_groups is None or len(shares) < self.window or mean(shares) >= self.min_mixed_groups:
            return None
        return f"Only {mean(shares):.0%} of the groups differ in reward, so there is nothing left to learn from."


@dataclass(slots=True)
class StageHistory:
    """What a stage has shown so far."""

    evaluations: list[Evaluation] = field(default_factory=list)
    confirmed: int = 0
    """How often in a row the plateau was seen."""


def broken(evaluation: Evaluation) -> str | None:
    """What is not a number in an evaluation, in words, or None."""
    if not math.isfinite(evaluation.score):
        return f"The validation score is {evaluation.score}."
    bad = [norm for norm in evaluation.grad_norms if not math.isfinite(norm)]
    return f"A gradient norm is {bad[0]}." if bad else None
