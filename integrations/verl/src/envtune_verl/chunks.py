"""One stage on verl's GPUs, chunk by chunk: verl has no early stop, so each chunk ends by itself, validates and saves.

Comes in: how far the stage was trained, and how far it shall be. Goes out: what was measured there, also where an
earlier call was killed between the two. Decisions are not made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envtune_agents.curriculum import Evaluation, Silence, Stage
from envtune_agents.errors import CurriculumError
from envtune_verl.log import LoggedStep, evaluation_at, finding_in, merged, read_log
from envtune_verl.plan import RunPlan
from envtune_verl.run_folder import StageFolder
from envtune_verl.table import Table
from envtune_verl.trainer_process import run_script


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of one stage."""

    plan: RunPlan
    stage: Stage
    folder: StageFolder
    table: Table
    lock: int
    """File descriptor of the run's lock, which the trainer holds too."""
    prepare: Callable[[Path], None]
    """Called with the log of a chunk before it starts."""

    def evaluation(self, done: int, target: int) -> Evaluation:
        """What was measured at step `target`: trains up to it, or takes up what an interrupted call left of that."""
        found = self._evaluation(done, target)
        if found is not None:
            return found
        log = self.folder.next_log(target)
        self.prepare(log)
        trained = self.folder.saved() >= target
        further = ["trainer.val_only=True", "trainer.val_before_train=True"] if trained else []
        command = ["bash", str(self.folder.script), str(target), str(log), *further]
        output = log.with_suffix(".txt")
        verb = "validating" if trained else "training up to"
        self.table.note(f"{self.stage.name}: {verb} step {target}; see {output}")
        run_script(command, output, self.lock, self.plan.settings, log, self._tell)
        found = self._evaluation(done, target)
        if found is None:
            raise CurriculumError(
                f"The trainer ended without validating step {target} of {self.stage.name}; see {output}."
            )
        return found

    def silence(self, done: int, target: int) -> Silence | None:
        """Steps in a row that taught nothing, if they became a finding after step `done` and up to `target`."""
        logs = sorted((self.folder.path / "logs").glob("step_*.jsonl"))
        return finding_in(merged(read_log(path)[0] for path in logs), done, target)

    def go_back(self, done: int, target: int) -> None:
        """Makes the last checkpoint before the broken chunk up to `target` the newest."""
        good = self.folder.saved(at_most=done)
        self.folder.discard_logs(target)
        self.folder.go_back(good)
        settings = self.plan.settings
        self.table.note(
            f"The run stands at step {good} of {self.stage.name} again; the same command goes on there. If it breaks "
            f"again, begin in a new folder with a lower learning rate (now {settings.learning_rate:g}) or a larger kl "
            f"(now {settings.kl:g})."
        )

    def _evaluation(self, done: int, target: int) -> Evaluation | None:
        counts = Counter(task.category for task in self.plan.validation)
        steps = merged(read_log(path)[0] for path in self.folder.logs(target))
        return evaluation_at(steps, target, done, counts)

    def _tell(self, line: LoggedStep) -> None:
        """One training step as it ends."""
        self.table.add(self.stage.name, line)
        if line.teaches_nothing:
            self.table.note(str(Silence(line.step, 1, line.metrics.get("critic/score/mean", 0.0), cold=False)))
