"""What happens while a stage trains: validation, the curriculum's decision, the metrics, the guard against NaN.

Where several processes train, all of them see the same numbers and decide alike; the first one writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envtune_agents.curriculum import Curriculum, Decision, Evaluation, LearningSignal, Move, Silence
from envtune_agents.types import Task
from envtune_trl.processes import Processes
from envtune_trl.rollouts import EpisodeRollouts, evaluate_greedily
from envtune_trl.settings import TrainSettings
from envtune_trl.table import Table, cells_of
from envtune_trl.tally import means, tally_of

METRICS = "metrics.jsonl"
"""File of a stage with one line for each training step."""
COLD_START = "Warm the model up: --warm-up auto, or --warm-up rollouts.jsonl with good rollouts."
"""What to do with a model that cannot begin."""


@dataclass(slots=True)
class StageProgress:
    """The bookkeeping of one stage."""

    curriculum: Curriculum
    rollouts: EpisodeRollouts
    held_out: Sequence[Task]
    settings: TrainSettings
    table: Table
    save: Callable[[], object]
    """Writes the weights as they are; called before the curriculum records that the stage is over, so that a run that
    is killed in between has lost nothing."""
    known: Sequence[Mapping[str, Any]] = ()
    """The metrics of a stopped stage that goes on."""
    may_warm_up: bool = False
    """Whether training ends when the model cannot begin, for a warm-up."""
    report: Callable[[dict[str, float]], object] = field(default=lambda numbers: None)
    """Where a validation's numbers go, beside the curriculum: the trainer's own log."""
    move: Move = Move.STAY
    cold: Silence | None = None
    """Why training was ended for a warm-up."""
    _signal: LearningSignal = field(init=False)
    _steps: list[Mapping[str, Any]] = field(init=False)
    """Metrics of the steps so far."""

    def __post_init__(self) -> None:
        self._signal, self._steps = signal_of(self.known), list(self.known)

    @property
    def steps(self) -> int:
        """Most steps of the stage; every stage of a run has a budget."""
        assert self.rollouts.stage.max_steps is not None
        return self.rollouts.stage.max_steps

    @property
    def silent(self) -> bool:
        """Whether every group's rewards were equal in the last step, in all processes: then no weight may move.

        What such a step has for a gradient is the entropy bonus and the KL, and Adam, which divides by the size of
        the gradients that it has seen, would make a stride of them.
        """
        return bool(self.rollouts.notes) and self.rollouts.notes[-1]["mixed_groups"] == 0

    @property
    def _processes(self) -> Processes:
        return self.rollouts.processes

    def callback(self) -> Any:
        """The transformers callback that does it."""
        from transformers import TrainerCallback

        progress = self

        class Callback(TrainerCallback):
            """Passes the trainer's events on."""

            def on_pre_optimizer_step(
                self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
            ) -> None:
                if progress.silent:
                    optimizer.zero_grad(set_to_none=True)

            def on_log(
                self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any
            ) -> None:
                step = state.global_step
                if "grad_norm" not in (logs or {}):
                    return  # the summary at the end of training, or a validation
                progress.logged(step, dict(logs), control, Path(args.output_dir))
                due = step % progress.settings.evaluate_every == 0 or step >= progress.steps
                if due and progress.move is Move.STAY and progress.cold is None:
                    progress.evaluate(step, control, model)

        return Callback()

    def logged(self, step: int, logs: dict[str, Any], control: Any, folder: Path) -> None:
        """One training step's numbers: into the table and the stage's `metrics.jsonl`."""
        norm, loss = float(logs["grad_norm"]), float(logs.get("loss", 0.0))
        note = self.rollouts.notes[-1] if self.rollouts.notes else {}
        record = {
            "stage": self.rollouts.stage.name,
            "step": step,
            "grad_norm": norm,
            "loss": loss,
            "reward": logs.get("reward"),
            "kl": logs.get("kl"),
            **note,
            **({"successes": self.rollouts.successes} if self.rollouts.successes else {}),
        }
        self._steps.append(record)
        if self._processes.first:
            with (folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        seen = self.curriculum.evaluations
        last = {"validation": seen[-1].score, "hint_gap": seen[-1].hint_gap} if seen else {}
        self.table.add(cells_of({**record, **last}))
        self.table.bar(f"{self.rollouts.stage.name}, steps", step, self.steps)
        if not math.isfinite(norm) or not math.isfinite(loss):
            self._decide(Evaluation(step, 0.0, (float("nan"),)), control)
        elif note:
            self._listen(step, note["mixed_groups"], float(logs.get("reward") or 0.0), control)

    def _listen(self, step: int, mixed_groups: float, reward: float, control: Any) -> None:
        """Says when a step taught nothing; a finding is recorded, or ends training for a warm-up."""
        silence = self._signal.observe(step, mixed_groups, reward)
        if silence is None:
            return
        if not self._signal.finding(silence):
            self.table.note(str(silence))
        elif silence.cold and self.may_warm_up:
            self.cold = silence
            control.should_training_stop = True
            control.should_save = False  # killed before the warm-up is made, the run finds out once more
        else:
            self.table.note(str(self.curriculum.remark(step, str(silence), silence.advice(COLD_START))))

    def evaluate(self, step: int, control: Any, model: Any = None) -> None:
        """Greedy validation without hints, and what the curriculum makes of it."""
        seen = self.curriculum.evaluations
        if seen and step <= seen[-1].step:
            return  # a resumed stage passes points again that were judged before
        was_training = bool(model is not None and model.training)
        if model is not None:
            model.eval()
        stage = self.rollouts.stage
        plain = self._validate(0)
        gap = self._validate(stage.hint_level)["progress"] - plain["progress"] if stage.augmented else None
        if was_training:
            model.train()
        told = {"solved": plain["solved"], "progress": plain["progress"], "hint_gap": gap}
        self.report({f"eval_{name}": value for name, value in told.items() if value is not None})
        since = [record for record in self._steps if not seen or record["step"] > seen[-1].step]
        self._decide(
            Evaluation(
                step=step,
                score=plain["solved"],
                grad_norms=tuple(record["grad_norm"] for record in since if record.get("mixed_groups")),
                success=_mean(since, "solved"),
                mixed_groups=_mean(since, "mixed_groups"),
                hint_gap=gap,
            ),
            control,
        )

    def _validate(self, level: int) -> dict[str, float]:
        rollouts = evaluate_greedily(
            self.rollouts.engine,
            self._processes.share(self.held_out),
            self.rollouts.source,
            self.settings,
            level=level,
            stage=self.rollouts.stage.name,
            told=lambda done, total: self.table.bar("validation, episodes", done, total),
        )
        return means(self._processes.from_all(tally_of(rollouts)))

    def _decide(self, evaluation: Evaluation, control: Any) -> Decision:
        if self.curriculum.leaves(evaluation):
            self.save()
        decision = self.curriculum.observe(evaluation)
        self.move = decision.move
        self.table.note(f"validation {evaluation.score:.3f}. {decision}")
        if decision.move is not Move.STAY:
            control.should_save = False  # the weights are written, or broken
            control.should_training_stop = True
        return decision


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a stage's steps; a line that a kill cut off is passed over."""
    path, records = folder / METRICS, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


def rewind(folder: Path, step: int) -> None:
    """Drops the metrics of steps that come after `step`, and a line that a kill cut off: the steps are made again."""
    path = folder / METRICS
    if not path.exists():
        return
    part = path.with_suffix(".part")
    kept = [record for record in metrics_of(folder) if record["step"] <= step]
    part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(part, path)


def signal_of(records: Sequence[Mapping[str, Any]]) -> LearningSignal:
    """The signal as a stopped stage's metrics leave it, so that a stage that has learnt something is never cold."""
    signal = LearningSignal()
    for record in records:
        if record.get("mixed_groups") is not None:
            silence = signal.observe(record["step"], record["mixed_groups"], record["reward"] or 0.0)
            if silence is not None:
                signal.finding(silence)
    return signal


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [record[name] for record in records if record.get(name) is not None]
    return sum(values) / len(values) if values else None
