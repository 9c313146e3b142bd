"""What happens while a stage trains: validation, the curriculum's decision, the live table, the guard against NaN."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envtune_agents.curriculum import Curriculum, Decision, Evaluation, LearningSignal, Move, Silence
from envtune_agents.types import Task
from envtune_trl.rollouts import EpisodeRollouts, evaluate_greedily, summary_of
from envtune_trl.settings import TrainSettings

METRICS = "metrics.jsonl"
"""File of a stage with one line for each training step."""
DIFFICULTY = "difficulty.json"
"""File of a stage in which its `DifficultyController` is kept."""
COLUMNS = (
    "stage",
    "step",
    "reward",
    "progress",
    "solved",
    "hints",
    "uptake",
    "format errors",
    "mixed",
    "grad norm",
    "kl",
)

COLD_START = "Warm the model up: --warm-up auto, or --warm-up rollouts.jsonl with good rollouts."
"""What to do with a model that cannot begin."""


class Table:
    """Prints one line for each training step and each decision; a terminal gets a live table instead."""

    def __init__(self, console: Any = None) -> None:
        self._console = console
        self._live: Any = None
        self._rows: list[list[str]] = []
        self._note = ""

    def start(self) -> None:
        """Shows the table from now on."""
        if self._console is not None and self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=2)
            self._live.start()

    def stop(self) -> None:
        """Leaves the table as it stands."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def add(self, cells: Sequence[str]) -> None:
        """One training step."""
        self._rows.append(list(cells))
        self._show(" ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells, strict=True)))

    def note(self, text: str) -> None:
        """A decision or an event, in words."""
        self._note = text
        self._show(text)

    def _show(self, line: str) -> None:
        if self._live is not None:
            self._live.update(self._drawn())
        elif self._console is not None:
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _drawn(self) -> Any:
        from rich.table import Table as RichTable

        table = RichTable(*COLUMNS, box=None, caption=self._note, caption_justify="left")
        for row in self._rows[-20:]:
            table.add_row(*row)
        return table


@dataclass(slots=True)
class StageProgress:
    """The bookkeeping of one stage."""

    curriculum: Curriculum
    rollouts: EpisodeRollouts
    held_out: Sequence[Task]
    settings: TrainSettings
    table: Table
    signal: LearningSignal = field(default_factory=LearningSignal)
    may_warm_up: bool = False
    """Whether training ends when the model cannot begin, for a warm-up."""
    move: Move = Move.STAY
    cold: Silence | None = None
    """Why training was ended for a warm-up."""
    _norms: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Most steps of the stage; every stage of a run has a budget."""
        assert self.rollouts.stage.max_steps is not None
        return self.rollouts.stage.max_steps

    @property
    def silent(self) -> bool:
        """Whether every group's rewards were equal in the last step: then no weight may move.

        What such a step has for a gradient is the entropy bonus and the KL, and Adam, which divides by the size of
        the gradients that it has seen, would make a stride of them.
        """
        return bool(self.rollouts.notes) and self.rollouts.notes[-1]["mixed_groups"] == 0

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
                    return  # the summary at the end of training
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
        }
        with (folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.rollouts.difficulty is not None:
            part = folder / f"{DIFFICULTY}.part"
            part.write_text(json.dumps(self.rollouts.difficulty.state()), encoding="utf-8")
            os.replace(part, folder / DIFFICULTY)  # whole, whenever the run is killed
        self.table.add([_cell(record, name) for name in COLUMNS])
        self._norms.append(norm)
        if not math.isfinite(norm) or not math.isfinite(loss):
            self._decide(Evaluation(step, 0.0, (float("nan"),)), control)
        elif note:
            self._listen(step, note["mixed_groups"], float(logs.get("reward") or 0.0), control)

    def _listen(self, step: int, mixed_groups: float, reward: float, control: Any) -> None:
        """Says when a step taught nothing; a finding is recorded, or ends training for a warm-up."""
        silence = self.signal.observe(step, mixed_groups, reward)
        if silence is None:
            return
        if not self.signal.finding(silence):
            self.table.note(str(silence))
        elif silence.cold and self.may_warm_up:
            self.cold = silence
            control.should_save = control.should_training_stop = True
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
        recent = self.rollouts.notes[-self.settings.evaluate_every :]
        self._decide(
            Evaluation(
                step=step,
                score=plain["solved"],
                grad_norms=tuple(self._norms),
                success=_mean([note["solved"] for note in recent]),
                mixed_groups=_mean([note["mixed_groups"] for note in recent]),
                hint_gap=gap,
            ),
            control,
        )
        self._norms.clear()

    def _validate(self, level: int) -> dict[str, float]:
        rollouts = evaluate_greedily(
            self.rollouts.engine,
            self.held_out,
            self.rollouts.source,
            self.settings,
            level=level,
            stage=self.rollouts.stage.name,
        )
        return summary_of(rollouts)

    def _decide(self, evaluation: Evaluation, control: Any) -> Decision:
        decision = self.curriculum.observe(evaluation)
        self.move = decision.move
        self.table.note(f"validation {evaluation.score:.3f}. {decision}")
        if decision.move is not Move.STAY:
            control.should_save = decision.move is not Move.STOP  # broken weights must not become the newest checkpoint
            control.should_training_stop = True
        return decision


def rewind(folder: Path, step: int) -> None:
    """Drops the metrics of steps that come after `step`, and a line that a kill cut off: the steps are made again."""
    path = folder / METRICS
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
    part = path.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    os.replace(part, path)


def known_signal(folder: Path) -> LearningSignal:
    """The signal as a stopped stage's metrics leave it, so that a stage that has learnt something is never cold."""
    signal = LearningSignal()
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines() if (folder / METRICS).exists() else []
    for line in lines:
        with suppress(ValueError):  # a kill cut it off
            record = json.loads(line)
            if record.get("mixed_groups") is not None:
                silence = signal.observe(record["step"], record["mixed_groups"], record["reward"] or 0.0)
                if silence is not None:
                    signal.finding(silence)
    return signal


_FIELDS = {
    "uptake": "hint_uptake",
    "format errors": "format_errors",
    "mixed": "mixed_groups",
    "grad norm": "grad_norm",
}


def _cell(record: dict[str, Any], column: str) -> str:
    value = record.get(_FIELDS.get(column, column))
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
