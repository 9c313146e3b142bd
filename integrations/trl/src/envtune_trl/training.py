"""`train`: stages in order, one TRL trainer for each, until the curriculum is over; resumable at any point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envtune_agents.curriculum import (
    CARD,
    FOUR_STAGES,
    AdvanceRule,
    Curriculum,
    DifficultyController,
    Move,
    Silence,
    Solved,
    Stage,
    Trained,
    check_unchanged,
    check_version,
    checkpoint_digest,
    run_identity,
    solved_by_category,
    split_tasks,
    with_budget,
    write_card,
)
from envtune_agents.engine import Engine
from envtune_agents.errors import CurriculumError
from envtune_agents.task_source import TaskSource
from envtune_agents.types import Task
from envtune_trl.episodes import first_prompt_tokens
from envtune_trl.processes import Processes, joined_processes
from envtune_trl.progress import StageProgress, metrics_of, rewind
from envtune_trl.rollouts import EpisodeRollouts, evaluate_greedily
from envtune_trl.settings import TrainSettings
from envtune_trl.table import Table
from envtune_trl.trainer import check_report_to, last_checkpoint, memory_advice, step_of, trainer_of
from envtune_trl.warm_up import FOLDER, NO_LESSONS, find_lessons, make_warm_up, read_warm_up, warm_weights, warmed_up
from envtune_trl.weights import (
    ADAPTER,
    FULL,
    Policy,
    check_prefix_preserving,
    load_policy,
    merged,
    own_warnings_only,
    save_policy,
    trainable_base,
    weights_in,
)

TRL_INSTALL = "pip install -e integrations/trl"
SUPPORTED_TRL = ((1, 16), (1, 17))
AUTO = "auto"
"""The `warm_up` that is made when the first stage cannot begin."""
BASE, MERGED = "base", "merged"
"""Folders of a run beside those of its stages and the warm-up's."""


def train(
    model: str | Path,
    source: TaskSource,
    *,
    out: str | Path,
    stages: Sequence[Stage] = FOUR_STAGES,
    rule: AdvanceRule | None = None,
    settings: TrainSettings | None = None,
    tasks: Sequence[Task] | None = None,
    validation: Sequence[Task] | None = None,
    warm_up: str | Path | None = None,
    test: Sequence[Task] | None = None,
    merge: bool = False,
    adaptive: bool = False,
    table: Table | None = None,
) -> Trained:
    """Trains `model` on the tasks of `source` through `stages` and writes everything to the folder `out`.

    The same call goes on where a run was stopped or killed. `tasks` and `validation` are the source's "train" and
    "validation" splits unless given; a source without the latter has a part of "train" held out. `warm_up` is a rollout
    file whose good episodes are imitated first, or "auto": when no group of the first steps earns a reward, a short
    imitation of the tasks' solutions, else of the model's own calls under a grammar, and the stage begins again.
    `adaptive` picks each task's hint level by its success, up to the stage's level. With `test` tasks the weights get a
    model card with a table measured on them. `merge` also writes a LoRA adapter merged into its base, as `out/merged`.
    Raises `CurriculumError` when `out` belongs to another run.
    """
    check_version("trl", *SUPPORTED_TRL, feature="training on one machine", install=TRL_INSTALL)
    settings = settings or TrainSettings()
    check_report_to(settings.report_to)
    folder = Path(out)
    train_tasks, held_out, _ = split_tasks(source, settings.validation_tasks, tasks=tasks, validation=validation)
    stages = tuple(with_budget(settings.stage(stage), train_tasks) for stage in stages)
    processes = joined_processes()
    for stage in stages:
        _check_stage(stage, stage.tasks(train_tasks, seed=settings.seed), settings, processes)
    examples = checkpoint_digest(warm_up) if warm_up not in (None, AUTO) else None
    identity = run_identity(model, train_tasks, held_out, stages, settings)
    verdicts = dict(source.fingerprint()) if source.fingerprint else {}
    whole = {"engine": "trl", **identity, "verdicts": verdicts, "warm-up rollouts": examples, "adaptive": adaptive}
    with processes.first_alone():
        folder.mkdir(parents=True, exist_ok=True)
        check_unchanged(folder / "train.json", whole)
        base = trainable_base(model, settings, folder / BASE)
        if warm_up not in (None, AUTO):
            warmed_up(folder, base, Path(str(warm_up)), settings)
    curriculum = Curriculum(stages, rule, path=folder / "curriculum.json", follows=not processes.first)
    processes.wait()
    shown = table if table is not None and processes.first else Table()
    run = _Run(base, source, folder, curriculum, settings, train_tasks, held_out, adaptive, shown, processes)
    run.may_warm_up = warm_up == AUTO
    done = run.go()
    if done.finished and test:
        run.describe(done, list(test), str(model))
    with processes.first_alone():
        if done.finished and merge and settings.lora and not (folder / MERGED).exists():
            policy = load_policy(base, settings, done.weights)
            merged(policy, policy.model, folder / MERGED)
    return done


def _check_stage(stage: Stage, tasks: Sequence[Task], settings: TrainSettings, processes: Processes) -> None:
    """Raises `CurriculumError` when a stage cannot be trained here, before anything is loaded."""
    if stage.name in (BASE, MERGED, FOLDER):
        raise CurriculumError(
            f"A stage cannot be called {stage.name!r}: the run keeps a folder of that name for itself. Rename it."
        )
    settings.grpo_options(stage, Path(), 1, processes.count)
    _check_enough(stage, tasks, 0)


def _check_enough(stage: Stage, tasks: Sequence[Task], left_out: int) -> None:
    if len(tasks) < stage.prompts:
        longer = f", and {left_out} with a first prompt of more than {stage.max_prompt_tokens} tokens"
        raise CurriculumError(
            f"Stage {stage.name!r} plays {stage.prompts} tasks in a step and has {len(tasks)}"
            f"{longer if left_out else ''}. Set fewer prompts (--prompts), or add tasks."
        )


@dataclass(slots=True)
class _Run:
    model: str | Path
    source: TaskSource
    folder: Path
    curriculum: Curriculum
    settings: TrainSettings
    tasks: list[Task]
    held_out: list[Task]
    adaptive: bool
    table: Table
    processes: Processes
    may_warm_up: bool = False
    """Whether a first stage that cannot begin is warmed up."""

    def go(self) -> Trained:
        """All stages that are left, each from the weights of the one before."""
        self._begin_again()
        start = self._last_weights()
        while (stage := self.curriculum.stage) is not None:
            trained = self._train_stage(stage, self.curriculum.stage_index, start)
            if trained.cold is not None:
                self._warm_up(stage, trained.cold)
                start = warm_weights(self.folder)
            elif trained.broken:
                return Trained(trained.weights or start or Path(self.model), self.curriculum, finished=False)
            else:
                start = trained.weights
        assert start is not None
        return Trained(start, self.curriculum, finished=True)

    def describe(self, done: Trained, test: list[Task], base: str) -> None:
        """Measures base and trained model on the test tasks and writes the model card beside the weights; made once."""
        if (done.weights / CARD).exists():
            return
        before, after = (self._solved(start, test) for start in (None, done.weights))
        made = read_warm_up(self.folder)
        notes = [str(made)] if made else []
        if self.processes.first:
            write_card(done.weights, base, self.settings.lora, self.curriculum, self.settings, before, after, notes)

    def _solved(self, start: Path | None, test: list[Task]) -> dict[str, Solved]:
        policy = load_policy(self.model, self.settings, start)
        policy.model.eval()
        engine = policy.engine()
        try:
            rollouts = evaluate_greedily(engine, self.processes.share(test), self.source, self.settings)
        finally:
            engine.close()
        found: dict[str, Solved] = {}
        for part in self.processes.from_all(solved_by_category(rollouts)):
            for category, more in part.items():
                so_far = found.get(category, Solved(0, 0))
                found[category] = Solved(so_far.correct + more.correct, so_far.total + more.total)
        return found

    def _last_weights(self) -> Path | None:
        """The weights of the stage before, or what the first one begins with; None is the model itself."""
        if self.curriculum.stage_index == 0:
            return warm_weights(self.folder)
        folder = self._stage_folder(self.curriculum.stage_index - 1)
        found = weights_in(folder)
        if found is None:
            raise CurriculumError(
                f"The stage of {folder} is over, and the folder holds no weights of it. Put {ADAPTER}/ or {FULL}/ "
                "back, or begin in a new folder."
            )
        return found

    def _stage_folder(self, index: int) -> Path:
        return self.folder / self.curriculum.stages[index].name

    def _warm_up(self, stage: Stage, silence: Silence) -> None:
        """Imitates what can be found to imitate, and has the stage begin again from there."""
        self.table.note(f"{silence} Looking for rollouts to imitate.")
        if self.processes.first:
            policy = load_policy(self.model, self.settings, None)
            chosen = stage.tasks(self.tasks, seed=self.settings.seed)
            lessons = find_lessons(policy, chosen, self.source, stage, self.settings)
            if lessons is not None:
                make_warm_up(self.folder, policy, lessons, self.settings, because=silence)
        self.processes.wait()
        if read_warm_up(self.folder) is None:
            self.may_warm_up = False
            self.table.note(str(self.curriculum.remark(silence.step, str(silence), silence.advice(NO_LESSONS))))
            return
        self._begin_again()

    def _begin_again(self) -> None:
        """Sets what a cold stage left aside once its warm-up is there; also where that was cut off."""
        made = read_warm_up(self.folder)
        if made is None or made.because is None or any(one.move is Move.RESTART for one in self.curriculum.decisions):
            return
        cold = self._stage_folder(0)
        aside = cold.with_name(f"{cold.name}.cold")
        with self.processes.first_alone():
            if self.processes.first and cold.exists() and not aside.exists():
                cold.rename(aside)
        self.table.note(str(self.curriculum.restart(made.step, made.because, str(made))))

    def _train_stage(self, stage: Stage, index: int, start: Path | None) -> _StageEnd:
        """Trains one stage until the curriculum leaves it, its numbers break, or it proves to be cold."""
        folder = self._stage_folder(index)
        checkpoint = last_checkpoint(folder)
        with self.processes.first_alone():
            if self.processes.first:
                rewind(folder, step_of(checkpoint) if checkpoint else 0)
        policy = load_policy(self.model, self.settings, start)
        check_prefix_preserving(policy)
        engine = policy.engine()
        try:
            progress = self._trained(stage, index, policy, engine, checkpoint)
        finally:
            engine.close()
        if progress.cold is not None:
            return _StageEnd(None, cold=progress.cold)
        if progress.move is Move.STOP:
            good = last_checkpoint(folder)
            self.table.note(
                f"The last good weights are in {good or start or self.model}. Begin in a new folder with a lower "
                f"learning rate (now {self.settings.learning_rate:g}) or a larger kl (now {self.settings.kl:g})."
            )
            return _StageEnd(Path(good) if good else None, broken=True)
        return _StageEnd(weights_in(folder))

    def _trained(
        self, stage: Stage, index: int, policy: Policy, engine: Engine, checkpoint: str | None
    ) -> StageProgress:
        """What a stage came to whose trainer ran to its end, from a checkpoint where there is one."""
        folder = self._stage_folder(index)
        chosen = self._fitting(stage, engine)
        rollouts = EpisodeRollouts(
            engine,
            {task.task_id: task for task in chosen},
            self.source,
            stage,
            self.settings,
            difficulty=self._difficulty(index) if self.adaptive else None,
            told=lambda done, total: self.table.bar("training, episodes", done, total),
            processes=self.processes,
        )

        def save() -> None:
            if self.processes.first:
                save_policy(policy, policy.model, folder, self.settings)
            self.processes.wait()

        progress = StageProgress(
            self.curriculum,
            rollouts,
            self.held_out,
            self.settings,
            self.table,
            save,
            known=metrics_of(folder),
            may_warm_up=self.may_warm_up and index == 0 and warm_weights(self.folder) is None,
        )
        trainer = trainer_of(policy, rollouts, progress, folder, chosen)
        self.table.start()
        try:
            with memory_advice(self.settings), own_warnings_only():
                trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            self.table.stop()
        return progress

    def _fitting(self, stage: Stage, engine: Engine) -> list[Task]:
        """The stage's tasks without those whose first prompt is too long, which are named."""
        chosen = stage.tasks(self.tasks, seed=self.settings.seed)
        short = [task for task in chosen if first_prompt_tokens(engine, self.source, task) <= stage.max_prompt_tokens]
        left_out = [task.task_id for task in chosen if task not in short]
        if left_out:
            self.table.note(
                f"{stage.name}: {len(left_out)} of {len(chosen)} tasks are left out, for their first prompt has more "
                f"than {stage.max_prompt_tokens} tokens: {', '.join(left_out[:3])}{' …' if left_out[3:] else ''}"
            )
        _check_enough(stage, short, len(left_out))
        return short

    def _difficulty(self, index: int) -> DifficultyController:
        """The controller as the metrics of the run leave it: a stage goes on with what those before it found out."""
        controller = DifficultyController()
        for at, stage in enumerate(self.curriculum.stages[: index + 1]):
            limit = stage.hint_level
            controller = DifficultyController.at({**controller.state(), "start": limit, "ceiling": limit})
            for record in metrics_of(self._stage_folder(at)):
                for task_id, success in record.get("successes", {}).items():
                    controller.observe(task_id, [success])
        return controller


@dataclass(frozen=True, slots=True)
class _StageEnd:
    """How the training of a stage ended."""

    weights: Path | None
    """The stage's weights; of a broken one the last good ones, None when it saved none."""
    broken: bool = False
    cold: Silence | None = None
