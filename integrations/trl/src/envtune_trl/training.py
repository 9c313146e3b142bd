"""`train`: stages in order, one TRL trainer for each, until the curriculum is over; resumable at any point."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from envtune_agents.curriculum import (
    CARD,
    FOUR_STAGES,
    AdvanceRule,
    Curriculum,
    DifficultyController,
    Move,
    Silence,
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
from envtune_agents.errors import CurriculumError
from envtune_agents.task_source import TaskSource
from envtune_agents.types import Rollout, Task
from envtune_trl.progress import DIFFICULTY, StageProgress, Table, known_signal, rewind
from envtune_trl.rollouts import EpisodeRollouts, evaluate_greedily, reward_from_rollouts, task_dataset
from envtune_trl.settings import TrainSettings
from envtune_trl.warm_up import NO_LESSONS, find_lessons, make_warm_up, read_warm_up, warm_weights, warmed_up
from envtune_trl.weights import (
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
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    train_tasks, held_out, _ = split_tasks(source.load, settings.validation_tasks, tasks=tasks, validation=validation)
    stages = tuple(with_budget(settings.stage(stage), train_tasks) for stage in stages)
    examples = checkpoint_digest(warm_up) if warm_up not in (None, AUTO) else None
    identity = run_identity(model, train_tasks, held_out, stages, settings)
    check_unchanged(
        folder / "train.json", {"engine": "trl", **identity, "warm-up rollouts": examples, "adaptive": adaptive}
    )
    curriculum = Curriculum(stages, rule, path=folder / "curriculum.json")
    base = trainable_base(model, settings, folder / "base")
    run = _Run(base, source, folder, curriculum, settings, train_tasks, held_out, adaptive, table or Table())
    if warm_up == AUTO:
        run.may_warm_up = True
    elif warm_up is not None:
        warmed_up(folder, base, Path(warm_up), settings)
    done = run.go()
    if done.finished and test:
        run.describe(done, list(test), str(model))
    if done.finished and merge and settings.lora and not (folder / "merged").exists():
        policy = load_policy(base, settings, done.weights)
        merged(policy, policy.model, folder / "merged")
    return done


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
        before, after = (solved_by_category(self._tested(start, test)) for start in (None, done.weights))
        made = read_warm_up(self.folder)
        notes = [str(made)] if made else []
        write_card(done.weights, base, self.settings.lora, self.curriculum, self.settings, before, after, notes)

    def _tested(self, start: Path | None, test: list[Task]) -> list[Rollout]:
        policy = load_policy(self.model, self.settings, start)
        policy.model.eval()
        engine = policy.engine()
        try:
            return evaluate_greedily(engine, test, self.source, self.settings)
        finally:
            engine.close()

    def _last_weights(self) -> Path | None:
        for index in range(self.curriculum.stage_index - 1, -1, -1):
            folder = self._stage_folder(index)
            found = weights_in(folder) or last_checkpoint(folder)  # killed before it was written
            if found is not None:
                return Path(found)
        return warm_weights(self.folder)

    def _stage_folder(self, index: int) -> Path:
        return self.folder / self.curriculum.stages[index].name

    def _warm_up(self, stage: Stage, silence: Silence) -> None:
        """Imitates what can be found to imitate, and has the stage begin again from there."""
        self.table.note(f"{silence} Looking for rollouts to imitate.")
        policy = load_policy(self.model, self.settings, None)
        chosen = stage.tasks(self.tasks, seed=self.settings.seed)
        lessons = find_lessons(policy, chosen, self.source, stage, self.settings)
        if lessons is None:
            self.may_warm_up = False
            self.table.note(str(self.curriculum.remark(silence.step, str(silence), silence.advice(NO_LESSONS))))
            return
        make_warm_up(self.folder, policy, lessons, self.settings, because=silence)
        self._begin_again()

    def _begin_again(self) -> None:
        """Sets what a cold stage left aside once its warm-up is there; also where that was cut off."""
        made = read_warm_up(self.folder)
        if made is None or made.because is None or any(one.move is Move.RESTART for one in self.curriculum.decisions):
            return
        cold = self._stage_folder(0)
        aside = cold.with_name(f"{cold.name}.cold")
        if cold.exists() and not aside.exists():
            cold.rename(aside)
        self.table.note(str(self.curriculum.restart(made.step, made.because, str(made))))

    def _train_stage(self, stage: Stage, index: int, start: Path | None) -> _StageEnd:
        """Trains one stage until the curriculum leaves it, its numbers break, or it proves to be cold."""
        folder = self._stage_folder(index)
        checkpoint = last_checkpoint(folder)
        rewind(folder, step_of(checkpoint) if checkpoint else 0)
        policy = load_policy(self.model, self.settings, start)
        check_prefix_preserving(policy)
        engine = policy.engine()
        chosen = stage.tasks(self.tasks, seed=self.settings.seed)
        rollouts = EpisodeRollouts(
            engine,
            {task.task_id: task for task in chosen},
            self.source,
            stage,
            self.settings,
            difficulty=_difficulty(folder / DIFFICULTY, stage) if self.adaptive else None,
        )
        progress = StageProgress(
            self.curriculum,
            rollouts,
            self.held_out,
            self.settings,
            self.table,
            signal=known_signal(folder),
            may_warm_up=self.may_warm_up and index == 0 and start is None,
        )
        trainer = _trainer(policy, rollouts, progress, folder, chosen)
        self.table.start()
        try:
            with _memory_advice(self.settings), own_warnings_only():
                trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            self.table.stop()
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
        return _StageEnd(save_policy(policy, trainer.model, folder, self.settings))


@dataclass(frozen=True, slots=True)
class _StageEnd:
    """How the training of a stage ended."""

    weights: Path | None
    """The stage's weights; of a broken one the last good ones, None when it saved none."""
    broken: bool = False
    cold: Silence | None = None


def _trainer(
    policy: Policy, rollouts: EpisodeRollouts, progress: StageProgress, folder: Path, tasks: Sequence[Task]
) -> Any:
    """TRL's trainer for one stage."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    trl: Any = import_module("trl")  # exports its names lazily
    trainer = trl.GRPOTrainer(
        model=policy.model,
        reward_funcs=reward_from_rollouts,
        args=_config(rollouts.settings.grpo_options(rollouts.stage, folder, progress.steps), policy.weights.precision),
        train_dataset=task_dataset(tasks),
        processing_class=policy.weights.tokenizer,
        rollout_func=rollouts,
        callbacks=[progress.callback()],
    )
    trainer.remove_callback(import_module("transformers").PrinterCallback)  # the table says it better
    return trainer


def _config(options: dict[str, Any], precision: str) -> Any:
    """TRL's config for this machine."""
    import torch

    trl: Any = import_module("trl")
    checkpointing = options.pop("gradient_checkpointing")
    renamed = (
        "activation_checkpointing" in trl.GRPOConfig.__dataclass_fields__
    )  # transformers 5.2x gave it another name
    options["activation_checkpointing" if renamed else "gradient_checkpointing"] = checkpointing
    return trl.GRPOConfig(**options, bf16=precision not in ("fp32", "fp16"), use_cpu=not torch.cuda.is_available())


def _difficulty(path: Path, stage: Stage) -> DifficultyController:
    """The controller as a stopped stage left it, or a fresh one."""
    if not path.exists():
        return DifficultyController(start=stage.hint_level)
    return DifficultyController.at(json.loads(path.read_text(encoding="utf-8")))


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; one that a crash cut off is passed over."""
    found = [
        (step_of(path), path)
        for path in folder.glob("checkpoint-*")
        if (path / "trainer_state.json").is_file() and (path / "optimizer.pt").is_file()
    ]
    return str(max(found)[1]) if found else None


def step_of(checkpoint: str | Path) -> int:
    """The training step that a checkpoint was written at."""
    return int(Path(checkpoint).name.rpartition("-")[2])


@contextmanager
def _memory_advice(settings: TrainSettings) -> Iterator[None]:
    """Turns an out-of-memory error into one that names the knobs, largest effect first."""
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        advice = [
            f"micro_batch (now {settings.micro_batch})",
            f"max_context (now {settings.max_context or 'that of the checkpoint'})",
            "" if settings.gradient_checkpointing else "gradient_checkpointing",
            ""
            if settings.precision == "4bit"
            else f"in a new folder precision 4bit with a LoRA rank (now {settings.precision})",
            f"concurrency (now {settings.concurrency})",
        ]
        knobs = ", then ".join(knob for knob in advice if knob)
        raise CurriculumError(
            f"Memory ran out while training. Lower or set, in this order: {knobs}. The same command then goes on from "
            "the last checkpoint."
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    name = type(error).__name__
    return name == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in str(error)
