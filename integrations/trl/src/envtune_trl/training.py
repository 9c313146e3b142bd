"""`train`: stages in order, one TRL trainer for each, until the curriculum is over; resumable at any point."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from envtune_agents.curriculum import (
    FOUR_STAGES,
    AdvanceRule,
    Curriculum,
    DifficultyController,
    Move,
    Stage,
    check_unchanged,
    checkpoint_digest,
    split_tasks,
    task_digest,
    with_budget,
)
from envtune_agents.errors import CurriculumError, MissingDependencyError
from envtune_agents.task_source import TaskSource
from envtune_agents.types import Rollout, Task
from envtune_trl.card import CARD, write_card
from envtune_trl.progress import DIFFICULTY, StageProgress, Table
from envtune_trl.rollouts import EpisodeRollouts, evaluate_greedily, reward_from_rollouts, task_dataset
from envtune_trl.settings import TrainSettings
from envtune_trl.weights import (
    ADAPTER,
    FULL,
    check_prefix_preserving,
    load_policy,
    merged,
    save_policy,
)

SUPPORTED_TRL = ((1, 16), (1, 17))


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run left behind."""

    weights: Path
    """Folder of the trained adapter, or of the whole model without LoRA."""
    curriculum: Curriculum
    """Every decision and evaluation."""
    finished: bool
    """False when a stage was stopped because its numbers broke; `weights` are the last good ones then."""


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
    file whose good episodes are imitated first. `adaptive` picks each task's hint level by its success, up to the
    stage's level. With `test` tasks the weights get a model card with a table measured on them. `merge` also writes a
    LoRA adapter merged into its base, as `out/merged`. Raises `CurriculumError` when `out` belongs to another run.
    """
    _check_versions()
    settings = settings or TrainSettings()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    train_tasks, held_out, _ = split_tasks(source.load, settings.validation_tasks, tasks=tasks, validation=validation)
    stages = tuple(with_budget(settings.stage(stage), train_tasks) for stage in stages)
    _check_manifest(folder, model, train_tasks, held_out, stages, settings)
    curriculum = Curriculum(stages, rule, path=folder / "curriculum.json")
    run = _Run(model, source, folder, curriculum, settings, train_tasks, held_out, adaptive, table or Table())
    start = run.warmed_up(Path(warm_up)) if warm_up is not None else None
    done = run.go(start)
    if done.finished and test:
        run.describe(done, list(test))
    if done.finished and merge and settings.lora and not (folder / "merged").exists():
        policy = load_policy(model, settings, done.weights)
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

    def warmed_up(self, rollouts: Path) -> Path:
        """Weights that imitate the solved rollouts of a file; made once."""
        from envtune_trl.imitation import imitate

        target = self.folder / "warm_up"
        done = target / "done"
        if not done.exists():
            policy = load_policy(self.model, self.settings, None)
            imitate(policy, rollouts, self.settings)
            save_policy(policy, policy.model, target, self.settings)
            done.touch()
        return _weights_in(target) or target

    def go(self, start: Path | None) -> Trained:
        """All stages that are left, each from the weights of the one before."""
        start = self._last_weights(start)
        while (stage := self.curriculum.stage) is not None:
            before = self.curriculum.stage_index
            trained = self._train_stage(stage, before, start)
            if self.curriculum.stage_index == before:
                return Trained(trained or start or Path(self.model), self.curriculum, finished=False)
            start = trained
        assert start is not None
        return Trained(start, self.curriculum, finished=True)

    def describe(self, done: Trained, test: list[Task]) -> None:
        """Measures base and trained model on the test tasks and writes the model card beside the weights; made once."""
        if (done.weights / CARD).exists():
            return
        before, after = (self._tested(start, test) for start in (None, done.weights))
        tasks = ", ".join(sorted({task.category for task in self.tasks}))
        base = str(self.model)
        write_card(done.weights, base, tasks, self.curriculum, self.settings, before, after)

    def _tested(self, start: Path | None, test: list[Task]) -> list[Rollout]:
        policy = load_policy(self.model, self.settings, start)
        policy.model.eval()
        engine = policy.engine()
        try:
            return evaluate_greedily(engine, test, self.source.environment, self.source.hint_engine(0), self.settings)
        finally:
            engine.close()

    def _last_weights(self, start: Path | None) -> Path | None:
        for index in range(self.curriculum.stage_index - 1, -1, -1):
            folder = self._stage_folder(index)
            found = _weights_in(folder) or last_checkpoint(folder)  # killed before it was written
            if found is not None:
                return Path(found)
        return start

    def _stage_folder(self, index: int) -> Path:
        return self.folder / self.curriculum.stages[index].name

    def _train_stage(self, stage: Stage, index: int, start: Path | None) -> Path | None:
        """Trains one stage until the curriculum leaves it or its numbers break; gives the folder of its weights."""
        trl: Any = import_module("trl")  # exports its names lazily
        folder = self._stage_folder(index)
        policy = load_policy(self.model, self.settings, start)
        check_prefix_preserving(policy)
        engine = policy.engine()
        chosen = stage.tasks(self.tasks, seed=self.settings.seed)
        rollouts = EpisodeRollouts(
            engine,
            {task.task_id: task for task in chosen},
            self.source.environment,
            self.source.hint_engine,
            stage,
            self.settings,
            difficulty=_difficulty(folder / DIFFICULTY, stage) if self.adaptive else None,
        )
        steps = stage.max_steps
        assert steps is not None
        progress = StageProgress(
            self.curriculum, rollouts, self.held_out, self.source, self.settings, self.table, steps
        )
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        trainer = trl.GRPOTrainer(
            model=policy.model,
            reward_funcs=reward_from_rollouts,
            args=_config(self.settings.grpo_options(stage, folder, steps), policy.weights.precision),
            train_dataset=task_dataset(chosen),
            processing_class=policy.weights.tokenizer,
            rollout_func=rollouts,
            callbacks=[progress.callback()],
        )
        trainer.remove_callback(import_module("transformers").PrinterCallback)  # the table says it better
        self.table.start()
        try:
            with _memory_advice(self.settings):
                trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        finally:
            self.table.stop()
            engine.close()
        if progress.move is Move.STOP:
            good = last_checkpoint(folder)
            return Path(good) if good else start
        return save_policy(policy, trainer.model, folder, self.settings)


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
        (int(path.name.rpartition("-")[2]), path)
        for path in folder.glob("checkpoint-*")
        if (path / "trainer_state.json").is_file() and (path / "optimizer.pt").is_file()
    ]
    return str(max(found)[1]) if found else None


def _weights_in(folder: Path) -> Path | None:
    """The folder of a stage's trained weights, or None when they were not written."""
    return next((folder / name for name in (ADAPTER, FULL) if (folder / name).is_dir()), None)


def _check_versions() -> None:
    try:
        found = version("trl")
    except ImportError:
        raise MissingDependencyError(
            "Training on one machine needs TRL. Install it with:\n  pip install -e integrations/trl"
        ) from None
    low, high = SUPPORTED_TRL
    now = tuple(int(part) for part in found.split(".")[:2])
    if not low <= now < high:
        raise MissingDependencyError(
            f"TRL {found} is installed, and its custom rollouts are known to work from {low[0]}.{low[1]} to before "
            f"{high[0]}.{high[1]}. Install it with:\n  pip install 'trl>={low[0]}.{low[1]},<{high[0]}.{high[1]}'"
        )


def _check_manifest(
    folder: Path,
    model: str | Path,
    tasks: Sequence[Task],
    held_out: Sequence[Task],
    stages: Sequence[Stage],
    settings: TrainSettings,
) -> None:
    """Writes what the run depends on, or compares it with what is there."""
    free = {"micro_batch", "max_context", "concurrency", "save_every", "keep_checkpoints", "report_to"}
    free |= {"gradient_checkpointing"}
    now = {
        "model": str(model),
        "model files": checkpoint_digest(model),
        "tasks": task_digest(tasks),
        "validation tasks": task_digest(held_out),
        "stages": [asdict(stage) for stage in stages],
        **{key: value for key, value in asdict(settings).items() if key not in free},
    }
    check_unchanged(folder / "train.json", now)


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
