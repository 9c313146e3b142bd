"""`Curriculum`: where training stands among its stages, saved with the run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envtune_agents.curriculum.decide import AdvanceRule, Decision, Evaluation, Move, StageHistory, broken
from envtune_agents.curriculum.stages import FOUR_STAGES, Stage, checked_stages
from envtune_agents.errors import CurriculumError

log = logging.getLogger(__name__)


class Curriculum:
    """Stages in order, and the rule that moves between them.

        curriculum = Curriculum(FOUR_STAGES, AdvanceRule(max_steps=100))
        decision = curriculum.observe(Evaluation(step=10, score=0.31, grad_norms=(0.4, 0.5)))
        print(decision)             # 1_syntax, step 10: stay. Only 1 of 6 evaluations …
        curriculum.stage            # the stage to train now, or None at the end

    With a `path` the state is written there after every decision, and read from there at the start. `follows` is for
    all but one of the processes of a run: they decide alike, and only that one writes.
    """

    def __init__(
        self,
        stages: Sequence[Stage] = FOUR_STAGES,
        rule: AdvanceRule | None = None,
        *,
        path: str | Path | None = None,
        follows: bool = False,
        on_decision: Callable[[Decision], None] | None = None,
    ) -> None:
        """Raises `CurriculumError` when the state at `path` belongs to other stages or another rule."""
        self.stages = checked_stages(stages)
        self.rule = rule or AdvanceRule()
        self.decisions: list[Decision] = []
        self._histories = [StageHistory() for _ in self.stages]
        self._at = 0
        self._on_decision = on_decision
        self._path = Path(path) if path is not None and not follows else None
        if path is not None and Path(path).exists():
            self._read(Path(path))

    @property
    def stage(self) -> Stage | None:
        """The stage to train now; None when all are over."""
        return self.stages[self._at] if self._at < len(self.stages) else None

    @property
    def stage_index(self) -> int:
        """0-based position of `stage`; the number of stages when all are over."""
        return self._at

    @property
    def evaluations(self) -> Sequence[Evaluation]:
        """What the present stage has shown so far."""
        return self._histories[min(self._at, len(self.stages) - 1)].evaluations

    def observe(self, evaluation: Evaluation) -> Decision:
        """Takes in one evaluation of the stage and decides. Every decision is logged and, with a path, saved."""
        stage = self._now()
        trouble = broken(evaluation)
        if trouble:
            decision = Decision(Move.STOP, stage.name, evaluation.step, (trouble, "Go back to the last good weights."))
        else:
            decision = self._judge(stage, evaluation)
        return self._record(decision)

    def leaves(self, evaluation: Evaluation) -> bool:
        """Whether `observe` would end the stage with this evaluation; a trainer writes its weights before it does."""
        history = self._histories[self._at]
        seen, budget = [*history.evaluations, evaluation], self._now().max_steps
        return not broken(evaluation) and self.rule.judge(seen, history.confirmed, budget)[0]

    def remark(self, step: int, *reasons: str) -> Decision:
        """Records something that the stage has shown and that moves nothing, such as steps that taught nothing."""
        return self._record(Decision(Move.STAY, self._now().name, step, reasons))

    def restart(self, step: int, *reasons: str) -> Decision:
        """Forgets what the present stage has shown, for it begins again from other weights, and records why."""
        stage = self._now()
        self._histories[self._at] = StageHistory()
        return self._record(Decision(Move.RESTART, stage.name, step, reasons))

    def _now(self) -> Stage:
        if self.stage is None:
            raise CurriculumError("All stages are over; there is nothing left to decide.")
        return self.stage

    def _record(self, decision: Decision) -> Decision:
        """The decision, logged and, with a path, saved."""
        self.decisions.append(decision)
        log.info("%s", decision)
        if self._path is not None:
            self.save(self._path)
        if self._on_decision:
            self._on_decision(decision)
        return decision

    def _judge(self, stage: Stage, evaluation: Evaluation) -> Decision:
        history = self._histories[self._at]
        history.evaluations.append(evaluation)
        leave, history.confirmed, reasons = self.rule.judge(history.evaluations, history.confirmed, stage.max_steps)
        move = Move.STAY
        if leave:
            self._at += 1
            move = Move.ADVANCE if self.stage else Move.FINISH
        return Decision(move, stage.name, evaluation.step, tuple(reasons))

    def save(self, path: str | Path) -> None:
        """Writes the state as JSON; a crash while writing leaves the state before."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        part.write_text(json.dumps(self._state(), indent=1) + "\n", encoding="utf-8")
        os.replace(part, target)

    def _state(self) -> dict[str, Any]:
        return {
            "settings": self._settings(),
            "at": self._at,
            "histories": [asdict(history) for history in self._histories],
            "decisions": [asdict(decision) for decision in self.decisions],
        }

    def _settings(self) -> Any:
        plain = {"stages": [asdict(stage) for stage in self.stages], "rule": asdict(self.rule)}
        return json.loads(json.dumps(plain))

    def _read(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            settings, self._at = state["settings"], int(state["at"])
            self._histories = [
                StageHistory([_evaluation(plain) for plain in history["evaluations"]], history["confirmed"])
                for history in state["histories"]
            ]
            self.decisions = [_decision(plain) for plain in state["decisions"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CurriculumError(f"'{path}' is not a curriculum's state: {error}. Choose another folder.") from error
        if settings != self._settings():
            changed = [key for key in ("stages", "rule") if settings.get(key) != self._settings()[key]]
            raise CurriculumError(
                f"'{path}' belongs to a run with other {' and '.join(changed)}. Use the same ones, or another folder."
            )


def _evaluation(plain: dict[str, Any]) -> Evaluation:
    return Evaluation(**{**plain, "grad_norms": tuple(plain["grad_norms"])})


def _decision(plain: dict[str, Any]) -> Decision:
    return Decision(**{**plain, "move": Move(plain["move"]), "reasons": tuple(plain["reasons"])})
