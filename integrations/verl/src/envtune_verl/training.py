"""`train`: a stage in chunks on verl's GPUs, the curriculum's decision after each, and the next stage; resumable.

verl has no early stop, so each chunk ends by itself at a raised number of steps, validates and saves. The decision is
made here, outside, from the metrics in its log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from envtune_agents.curriculum import (
    FOUR_STAGES,
    AdvanceRule,
    Curriculum,
    Evaluation,
    Move,
    Stage,
    check_unchanged,
)
from envtune_agents.errors import CurriculumError, MissingDependencyError
from envtune_agents.types import Task
from envtune_verl.log import LoggedStep, evaluation_at, merged, read_log
from envtune_verl.plan import RunPlan
from envtune_verl.run_folder import Commands, StageFolder, write_stage
from envtune_verl.settings import VERL_INSTALL, VerlSettings
from envtune_verl.table import Table
from envtune_verl.trainer_process import only_trainer, run_script

SUPPORTED_VERL = ((0, 9), (0, 10))


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run left behind."""

    weights: Path | str
    """Folder of the trained weights, a checkpoint of transformers."""
    curriculum: Curriculum
    """Every decision and evaluation."""
    finished: bool
    """False when a stage was stopped because its numbers broke; the run then stands at its last good checkpoint."""


def train(
    model: str | Path,
    source: str,
    *,
    out: str | Path,
    stages: Sequence[Stage] = FOUR_STAGES,
    rule: AdvanceRule | None = None,
    settings: VerlSettings | None = None,
    tasks: Sequence[Task] | None = None,
    validation: Sequence[Task] | None = None,
    table: Table | None = None,
    commands: Commands | None = None,
) -> Trained:
    """Trains all weights of `model` on the tasks of `source` through `stages`, in the folder `out`.

    The same call goes on where a run was stopped or killed. `source` is a name, because every worker loads it; `tasks`
    are some of its "train" split and `validation` of its "validation" split, all unless given. Raises
    `CurriculumError` when `out` belongs to another run or the trainer fails, and `MissingDependencyError` without a
    supported verl.
    """
    if commands is None:
        check_verl()
    plan = RunPlan.made(model, source, stages, settings or VerlSettings(), tasks, validation)
    run = _Run.prepared(plan, out, rule, table, commands or Commands())
    with only_trainer(run.folder) as lock:
        return run.go(lock)


def planned_commands(
    model: str | Path,
    source: str,
    *,
    out: str | Path,
    stages: Sequence[Stage] = FOUR_STAGES,
    settings: VerlSettings | None = None,
    tasks: Sequence[Task] | None = None,
    validation: Sequence[Task] | None = None,
    table: Table | None = None,
) -> list[str]:
    """Writes the run folder with all stages and gives the commands that `train` would run at most; starts nothing.

    Needs no verl, so a run can be prepared on another machine.
    """
    plan = RunPlan.made(model, source, stages, settings or VerlSettings(), tasks, validation)
    return _Run.prepared(plan, out, None, table, Commands()).planned()


def check_verl() -> None:
    """Raises `MissingDependencyError` unless a supported verl is installed."""
    low, high = SUPPORTED_VERL
    bounds = f">={low[0]}.{low[1]},<{high[0]}.{high[1]}"
    try:
        found = version("verl")
    except PackageNotFoundError:
        raise MissingDependencyError(
            f"Training on many GPUs needs verl {bounds}. Install it with:\n  {VERL_INSTALL}"
        ) from None
    now = tuple(int(part) for part in found.split(".")[:2])
    if not low <= now < high:
        raise MissingDependencyError(
            f"verl {found} is installed; its agent loops are known to work with {bounds}. Install it with:\n"
            f"  pip install 'verl[verl-core]{bounds}'"
        )


@dataclass(slots=True)
class _Run:
    plan: RunPlan
    folder: Path
    curriculum: Curriculum
    prompt_tokens: Callable[[Task], int]
    """Length of a task's first prompt."""
    table: Table
    commands: Commands

    @classmethod
    def prepared(
        cls, plan: RunPlan, out: str | Path, rule: AdvanceRule | None, table: Table | None, commands: Commands
    ) -> _Run:
        """The run with its folder made and held against what is there."""
        folder, table = Path(out).resolve(), table or Table()
        if wild := sorted(set("*?[]") & set(str(folder))):
            raise CurriculumError(f"verl reads files by pattern; choose a folder without {' '.join(wild)}: {folder}.")
        folder.mkdir(parents=True, exist_ok=True)
        check_unchanged(folder / "train.json", plan.identity())
        curriculum = Curriculum(plan.stages, rule, path=folder / "curriculum.json")
        return cls(plan, folder, curriculum, plan.prompt_tokens(table), table, commands)

    def go(self, lock: int) -> Trained:
        """All stages that are left, each from the weights of the one before."""
        while (stage := self.curriculum.stage) is not None:
            index = self.curriculum.stage_index
            if not self._train_stage(stage, index, lock):
                return Trained(self._first_weights(index), self.curriculum, finished=False)
        last = len(self.curriculum.stages) - 1
        return Trained(self._merged(last, lock), self.curriculum, finished=True)

    def planned(self) -> list[str]:
        """The commands of the stages that are left."""
        commands = []
        for index in range(self.curriculum.stage_index, len(self.curriculum.stages)):
            stage = self.curriculum.stages[index]
            folder = self._write(stage, index)
            every, last = self.plan.settings.evaluate_every, _budget(stage)
            steps = [*range(every, last, every), last]
            commands += [f"bash {folder.script} {step} {folder.next_log(step)}" for step in steps]
            commands.append(f"bash {folder.merge_script} {folder.checkpoint(last)}")
        return commands

    def _train_stage(self, stage: Stage, index: int, lock: int) -> bool:
        """Trains one stage until the curriculum leaves it; False when its numbers broke."""
        if index:
            self._merged(index - 1, lock)
        folder = self._write(stage, index)
        while self.curriculum.stage_index == index:
            seen = self.curriculum.evaluations
            done = seen[-1].step if seen else 0
            target = min(done + self.plan.settings.evaluate_every, _budget(stage))
            decision = self.curriculum.observe(self._chunk(folder, stage, done, target, lock))
            self.table.note(str(decision))
            if decision.move is Move.STOP:
                good = folder.saved(at_most=done)
                folder.discard_logs(target)
                folder.go_back(good)
                self.table.note(f"The run stands at step {good} of {stage.name} again; the same command goes on there.")
                return False
        return True

    def _chunk(self, folder: StageFolder, stage: Stage, done: int, target: int, lock: int) -> Evaluation:
        """Trains up to step `target` and validates, or takes up what an interrupted call left of that."""
        counts = Counter(task.category for task in self.plan.validation)
        found = evaluation_at(_steps(folder, target), target, done, counts)
        if found is not None:
            return found
        log = folder.next_log(target)
        further = ["trainer.val_only=True", "trainer.val_before_train=True"] if folder.saved() >= target else []
        command = ["bash", str(folder.script), str(target), str(log), *further]
        output = log.with_suffix(".txt")
        self.table.note(f"{stage.name}: {'validating' if further else 'training up to'} step {target}; see {output}")
        run_script(command, output, lock, self.plan.settings, log, lambda line: self._tell(stage, line))
        found = evaluation_at(_steps(folder, target), target, done, counts)
        if found is None:
            raise CurriculumError(f"The trainer ended without validating step {target} of {stage.name}; see {output}.")
        return found

    def _tell(self, stage: Stage, line: LoggedStep) -> None:
        self.table.add(stage.name, line)
        if line.teaches_nothing:
            self.table.note(
                f"step {line.step}: every group's rewards are equal, so this step teaches nothing. If it stays so at "
                "0, start from a model that solves some of the tasks, raise the hint level, or take easier tasks; if "
                "at the top, go on."
            )

    def _merged(self, index: int, lock: int) -> Path:
        """The weights of a stage that is over, as a checkpoint of transformers; made once."""
        folder = self._stage_folder(index)
        if not folder.model.exists():
            checkpoint = folder.checkpoint(folder.saved())
            self.table.note(f"writing the weights of {folder.path.name} to {folder.model}")
            run_script(
                ["bash", str(folder.merge_script), str(checkpoint)], folder.path / "merge.txt", lock, self.plan.settings
            )
            if not folder.model.exists():
                raise CurriculumError(f"The weights of {folder.path.name} were not written; see merge.txt beside it.")
        return folder.model

    def _write(self, stage: Stage, index: int) -> StageFolder:
        folder = self._stage_folder(index)
        weights = self._first_weights(index)
        left_out = write_stage(folder, self.plan, index, weights, self.prompt_tokens, self.commands)
        if left_out:
            self.table.note(
                f"{stage.name}: {len(left_out)} tasks are left out, their first prompt has more than "
                f"{stage.max_prompt_tokens} tokens: {', '.join(left_out[:3])}{' …' if len(left_out) > 3 else ''}"
            )
        return folder

    def _first_weights(self, index: int) -> Path | str:
        return self._stage_folder(index - 1).model if index else self.plan.model

    def _stage_folder(self, index: int) -> StageFolder:
        return StageFolder(self.folder / self.curriculum.stages[index].name)


def _budget(stage: Stage) -> int:
    """Most steps of a stage; every stage of a plan has a budget."""
    assert stage.max_steps is not None
    return stage.max_steps


def _steps(folder: StageFolder, target: int) -> dict[int, LoggedStep]:
    return merged(read_log(path)[0] for path in folder.logs(target))
