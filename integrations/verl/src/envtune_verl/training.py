"""`train`: a stage in chunks on verl's GPUs, the curriculum's decision after each, and the next stage; resumable.

The decision is made here, outside of verl, from the metrics in its log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envtune_agents.curriculum import (
    CARD,
    FOUR_STAGES,
    AdvanceRule,
    Curriculum,
    Move,
    Silence,
    Stage,
    Trained,
    check_unchanged,
    check_version,
    checkpoint_digest,
    write_card,
)
from envtune_agents.errors import CurriculumError
from envtune_agents.task_source import find_task_source
from envtune_agents.types import Task
from envtune_verl.adaptive import AdaptiveHelp
from envtune_verl.chunks import Chunks
from envtune_verl.measure import FOLDER as MEASURED
from envtune_verl.measure import measured
from envtune_verl.plan import RunPlan
from envtune_verl.run_folder import Commands, StageFolder, write_stage, write_test
from envtune_verl.settings import VERL_INSTALL, VerlSettings
from envtune_verl.table import Table
from envtune_verl.trainer_process import only_trainer, run_script
from envtune_verl.warm_up import AUTO, WarmUpFolder, solutions, write_warm_up

SUPPORTED_VERL = ((0, 9), (0, 10))
COLD_START = "Warm the model up: --warm-up auto where the task source has solutions, or --warm-up rollouts.jsonl."
"""What to do with a model that cannot begin."""


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
    warm_up: str | Path | None = None,
    test: Sequence[Task] | None = None,
    adaptive: bool = False,
    table: Table | None = None,
    commands: Commands | None = None,
) -> Trained:
    """Trains `model` on the tasks of `source` through `stages`, in the folder `out`.

    The same call goes on where a run was stopped or killed. `source` is a name, because every worker loads it; `tasks`
    are some of its "train" split, `validation` of its "validation" split and `test` of its "test" split; without `test`
    there is no model card. `warm_up` is a rollout file whose good episodes are imitated first, or "auto": when no group
    of the first steps earns a reward, the solutions of training tasks are imitated and the stage begins again.
    `adaptive` moves each task's hint level by its success after every chunk. Raises `CurriculumError` when `out`
    belongs to another run or the trainer fails, and `MissingDependencyError` without a supported verl.
    """
    if commands is None:
        check_verl()
    plan = RunPlan.made(model, source, stages, settings or VerlSettings(), tasks, validation)
    run = _Run.prepared(plan, out, rule, table, commands or Commands(), warm_up, adaptive)
    with only_trainer(run.folder) as lock:
        done = run.go(lock)
        if done.finished and test:
            run.describe(done.weights, list(test), lock)
    return done


def planned_commands(
    model: str | Path,
    source: str,
    *,
    out: str | Path,
    stages: Sequence[Stage] = FOUR_STAGES,
    settings: VerlSettings | None = None,
    tasks: Sequence[Task] | None = None,
    validation: Sequence[Task] | None = None,
    warm_up: str | Path | None = None,
    adaptive: bool = False,
    table: Table | None = None,
) -> list[str]:
    """Writes the run folder with all stages and gives the commands that `train` would run at most; starts nothing.

    Needs no verl, so a run can be prepared on another machine.
    """
    plan = RunPlan.made(model, source, stages, settings or VerlSettings(), tasks, validation)
    return _Run.prepared(plan, out, None, table, Commands(), warm_up, adaptive).planned()


def check_verl() -> None:
    """Raises `MissingDependencyError` unless a supported verl is installed."""
    check_version("verl", *SUPPORTED_VERL, feature="training on many GPUs", install=VERL_INSTALL, extra="[verl-core]")


@dataclass(slots=True)
class _Run:
    plan: RunPlan
    folder: Path
    curriculum: Curriculum
    prompt_tokens: Callable[[Task], int]
    """Length of a task's first prompt."""
    table: Table
    commands: Commands
    warm_up: str | Path | None = None
    adaptive: bool = False
    cold: Silence | None = field(default=None, init=False)
    """What the first stage's last chunk showed when the model cannot begin."""

    @classmethod
    def prepared(
        cls,
        plan: RunPlan,
        out: str | Path,
        rule: AdvanceRule | None,
        table: Table | None,
        commands: Commands,
        warm_up: str | Path | None,
        adaptive: bool,
    ) -> _Run:
        """The run with its folder made and held against what is there."""
        folder, table = Path(out).resolve(), table or Table()
        if wild := sorted(set("*?[]") & set(str(folder))):
            raise CurriculumError(f"verl reads files by pattern; choose a folder without {' '.join(wild)}: {folder}.")
        folder.mkdir(parents=True, exist_ok=True)
        examples = checkpoint_digest(warm_up) if warm_up not in (None, AUTO) else None
        check_unchanged(folder / "train.json", {**plan.identity(), "warm-up rollouts": examples, "adaptive": adaptive})
        curriculum = Curriculum(plan.stages, rule, path=folder / "curriculum.json")
        return cls(plan, folder, curriculum, plan.prompt_tokens(table), table, commands, warm_up, adaptive)

    @property
    def warmed(self) -> WarmUpFolder:
        """The folder of the run's warm-up, whether there is one or not."""
        return WarmUpFolder(self.folder)

    def go(self, lock: int) -> Trained:
        """All stages that are left, each from the weights of the one before."""
        if self.warm_up not in (None, AUTO):
            self._imitate(Path(str(self.warm_up)), lock)
        while (stage := self.curriculum.stage) is not None:
            self._begin_again(lock)
            index = self.curriculum.stage_index
            if not self._train_stage(stage, index, lock):
                return Trained(Path(self._first_weights(index)), self.curriculum, finished=False)
        last = len(self.curriculum.stages) - 1
        return Trained(self._merged(last, lock), self.curriculum, finished=True)

    def describe(self, weights: Path, test: list[Task], lock: int) -> None:
        """Measures base and trained model on the test tasks and writes the model card beside the weights; made once."""
        if (weights / CARD).exists():
            return
        folder = self.folder / MEASURED
        dataset = write_test(folder, self.plan, test)
        stage = self._stage_folder(len(self.curriculum.stages) - 1)
        before, after = (
            measured(stage, dataset, model, folder / f"{name}.jsonl", test, lock, self.plan.settings, self.table)
            for name, model in (("before", self.plan.model), ("after", weights))
        )
        rank = self.plan.settings.lora
        notes = [f"Trained as LoRA adapters of rank {rank}, merged after each stage."] if rank else []
        if self.warmed.stage.model.exists():
            notes.append(f"Warmed up by imitating {self.warmed.origin}.")
        write_card(weights, str(self.plan.model), 0, self.curriculum, self.plan.settings, before, after, notes)

    def planned(self) -> list[str]:
        """The commands of the stages that are left."""
        commands = []
        if self.warm_up not in (None, AUTO) and not self.warmed.stage.model.exists():
            commands += self._written_warm_up(Path(str(self.warm_up)))
        for index in range(self.curriculum.stage_index, len(self.curriculum.stages)):
            stage = self.curriculum.stages[index]
            folder = self._write(stage, index)
            every, last = self.plan.settings.evaluate_every, _budget(stage)
            steps = [*range(every, last, every), last]
            commands += [f"bash {folder.script} {step} {folder.next_log(step)}" for step in steps]
            commands.append(f"bash {folder.merge_script} {folder.checkpoint(last)}")
        return commands

    def _train_stage(self, stage: Stage, index: int, lock: int) -> bool:
        """Trains one stage until the curriculum leaves it or it proves to be cold; False when its numbers broke."""
        if index:
            self._merged(index - 1, lock)
        folder = self._write(stage, index)
        before = [self._stage_folder(earlier) for earlier in range(index)]
        help_ = AdaptiveHelp(folder, stage, before) if self.adaptive and stage.augmented else None
        chunks = Chunks(self.plan, stage, folder, self.table, lock, self._preparation(folder, index, help_))
        while self.curriculum.stage_index == index:
            seen = self.curriculum.evaluations
            done = seen[-1].step if seen else 0
            target = min(done + self.plan.settings.evaluate_every, _budget(stage))
            evaluation = chunks.evaluation(done, target)
            if help_ is not None and (learnt := help_.learn(target)):
                self.table.note(learnt)
            self._listen(chunks.silence(done, target), index)
            if self.cold is not None:
                return True
            decision = self.curriculum.observe(evaluation)
            self.table.note(str(decision))
            if decision.move is Move.STOP:
                chunks.go_back(done, target)
                return False
            folder.drop_checkpoints(before=target)
        return True

    def _preparation(self, folder: StageFolder, index: int, help_: AdaptiveHelp | None) -> Callable[[Path], None]:
        """What is to be written before a chunk: with adaptive help its dataset, with the levels of now."""

        def prepare(log: Path) -> None:
            if help_ is None:
                return
            weights, chunk = self._first_weights(index), help_.next_chunk(log)
            write_stage(folder, self.plan, index, weights, self.prompt_tokens, self.commands, chunk)

        return prepare

    def _listen(self, silence: Silence | None, index: int) -> None:
        """Records that steps of the last chunk taught nothing, or marks the stage as cold for a warm-up."""
        if silence is None:
            return
        may_warm_up = self.warm_up == AUTO and index == 0 and not self.warmed.stage.model.exists()
        if silence.cold and may_warm_up and find_task_source(self.plan.source).solution is not None:
            self.cold = silence
            return
        self.table.note(str(self.curriculum.remark(silence.step, str(silence), silence.advice(COLD_START))))

    def _begin_again(self, lock: int) -> None:
        """Warms a cold first stage up and sets what it left aside; also where that was cut off."""
        if self.cold is not None:
            self.warmed.note(self.cold)
            self.cold = None
        known = self.warmed.because()
        if known is None or any(decision.move is Move.RESTART for decision in self.curriculum.decisions):
            return
        rollouts = solutions(self.plan, self.curriculum.stages[0], self.warmed.rollouts)
        self._imitate(rollouts, lock)
        cold = self._stage_folder(0).path
        aside = cold.with_name(f"{cold.name}.cold")
        if cold.exists() and not aside.exists():
            cold.rename(aside)
        step, why = known
        self.table.note(str(self.curriculum.restart(step, why, f"Warmed up by imitating {self.warmed.origin}.")))

    def _written_warm_up(self, rollouts: Path) -> list[str]:
        """The commands of the warm-up, with everything they need on disk."""
        folder = self.warmed.stage
        steps = write_warm_up(folder, self.plan, rollouts, self.commands)
        checkpoint = folder.checkpoints / f"global_step_{steps}"
        return [f"bash {folder.script} {folder.next_log(steps)}", f"bash {folder.merge_script} {checkpoint}"]

    def _imitate(self, rollouts: Path, lock: int) -> None:
        """The weights that imitate the good rollouts; made once."""
        folder = self.warmed.stage
        if folder.model.exists():
            return
        steps = write_warm_up(folder, self.plan, rollouts, self.commands)
        if folder.saved() < steps:
            log = folder.next_log(steps)
            self.table.note(f"warming up on {self.warmed.origin}; see {log.with_suffix('.txt')}")
            run_script(["bash", str(folder.script), str(log)], log.with_suffix(".txt"), lock, self.plan.settings)
        self._merge(folder, folder.checkpoints / f"global_step_{folder.saved()}", lock)

    def _merged(self, index: int, lock: int) -> Path:
        """The weights of a stage that is over, as a checkpoint of transformers; made once."""
        folder = self._stage_folder(index)
        return self._merge(folder, folder.checkpoint(folder.saved()), lock)

    def _merge(self, folder: StageFolder, checkpoint: Path, lock: int) -> Path:
        if not folder.model.exists():
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
        if index:
            return self._stage_folder(index - 1).model
        warmed = self.warm_up not in (None, AUTO) or self.warmed.stage.model.exists()
        return self.warmed.stage.model if warmed else self.plan.model

    def _stage_folder(self, index: int) -> StageFolder:
        return StageFolder(self.folder / self.curriculum.stages[index].name)


def _budget(stage: Stage) -> int:
    """Most steps of a stage; every stage of a plan has a budget."""
    assert stage.max_steps is not None
    return stage.max_steps
