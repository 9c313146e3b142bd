"""LangGraph episodes as TRL's `rollout_func`: prompts in, token rows with masks and rewards out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic import PrivateAttr

from envtune_agents import ChatTransformers, run_episode
from envtune_agents.chat_model import TokenEngine
from envtune_agents.curriculum import DifficultyController, Stage
from envtune_agents.engine import Engine
from envtune_agents.errors import EngineError, ScorerError
from envtune_agents.progress import PROGRESS_REWARD, RewardMix
from envtune_agents.tape import TapeBranch, tape_of
from envtune_agents.task_source import TaskSource
from envtune_agents.types import Rollout, Task
from envtune_trl.settings import TrainSettings

PROMPT_TASK_KEY = "task_id"
"""Key of the prompt's message that names the task; TRL hands messages on as they are."""


class PolicyModel(ChatTransformers):
    """The chat model over weights that are being trained: its engine runs the trainer's own model."""

    _trained: Any = PrivateAttr(default=None)

    @classmethod
    def over(cls, engine: TokenEngine, **settings: Any) -> PolicyModel:
        """A chat model whose replies `engine` decodes."""
        model = cls(model="policy", **settings)
        model._trained = engine
        return model

    @property
    def engine(self) -> Any:
        """The engine around the trainer's model."""
        if self._trained is None:
            raise EngineError("This chat model belongs to a training run; make it with PolicyModel.over(engine).")
        return self._trained


def task_dataset(tasks: Sequence[Task]) -> Any:
    """A dataset with one row for each task: its first user message, and which task it is."""
    datasets: Any = import_module("datasets")  # has no types
    rows = [
        {"prompt": [{"role": "user", "content": task.turns[0] or " ", PROMPT_TASK_KEY: task.task_id}]} for task in tasks
    ]
    return datasets.Dataset.from_list(rows)


@dataclass(slots=True)
class EpisodeRollouts:
    """A `rollout_func` for TRL's GRPOTrainer that plays the library's episodes.

    All episodes of a step run at the same time, so that the engine decodes them as one batch. TRL takes one row for
    each prompt: of a rollout with several branches, sample i of a group trains branch i modulo their number.
    """

    engine: Engine
    tasks: Mapping[str, Task]
    """By their id."""
    source: TaskSource
    """How the tasks are played, hinted and scored."""
    stage: Stage
    settings: TrainSettings
    difficulty: DifficultyController | None = None
    """Chooses each task's hint level in an augmented stage; without one the stage's own level holds."""
    notes: list[dict[str, float]] = field(default_factory=list)
    """One summary for each generation."""
    on_rollouts: Callable[[Sequence[Rollout]], None] | None = None
    generation: int = 0

    def __call__(self, prompts: Sequence[Sequence[Mapping[str, Any]]], trainer: Any) -> dict[str, list[Any]]:
        """TRL's contract: prompt ids, completion ids and logprobs for each prompt, the loss mask, and the rewards."""
        model = trainer.model
        was_training = model.training
        self.generation = int(trainer.state.global_step)  # so that a resumed run draws other samples than before
        model.eval()
        try:
            rollouts = self.play([self.tasks[prompt[-1][PROMPT_TASK_KEY]] for prompt in prompts])
        finally:
            model.train(was_training)
        return {**self.rows(rollouts), "notes": [self.notes[-1]] * len(rollouts)}

    def play(self, tasks: Sequence[Task]) -> list[Rollout]:
        """One sampled rollout for each entry of `tasks`, in order; a repeated task is another sample of it."""
        self.engine.clear_cache()
        self.generation += 1
        seen: Counter[str] = Counter()
        jobs = []
        for task in tasks:
            jobs.append((task, seen[task.task_id]))
            seen[task.task_id] += 1
        rollouts = run_coroutine(self._play_all(jobs))
        self._observe(rollouts)
        return rollouts

    def level(self, task: Task) -> int:
        """The level of the dial for a task."""
        if self.difficulty is None or not self.stage.augmented:
            return self.stage.hint_level
        return min(self.difficulty.level(task.task_id), self.stage.hint_level)

    def rows(self, rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
        """The rollouts as TRL wants them; a rollout without a reward gets None and teaches nothing."""
        rows: dict[str, list[Any]] = {
            name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "reward")
        }
        trainable = 0
        for rollout in rollouts:
            branch = _branch(rollout)
            limit = self.stage.max_response_tokens
            if branch is None:
                ids, prompt, mask, logprobs = [0], [0], [0], [0.0]
            else:
                ids, prompt = list(branch.completion_ids[:limit]), list(branch.prompt_ids)
                mask, logprobs = list(branch.on_policy_mask[:limit]), list(branch.logprobs[:limit])
            trainable += sum(mask)
            rows["prompt_ids"].append(prompt)
            rows["completion_ids"].append(ids)
            rows["logprobs"].append(logprobs)
            rows["env_mask"].append(mask)
            rows["reward"].append(None if rollout.error or branch is None else self.stage.reward(rollout))
        if rollouts and not trainable:
            errors = Counter(rollout.error or rollout.stop_reason.value for rollout in rollouts)
            raise ScorerError(
                f"None of {len(rollouts)} rollouts holds a token to train on; they ended with: "
                f"{', '.join(f'{count} x {why}' for why, count in errors.most_common(3))}. Shorten the prompts, raise "
                "max_context, or look at the first error."
            )
        return rows

    async def _play_all(self, jobs: Sequence[tuple[Task, int]]) -> list[Rollout]:
        model = PolicyModel.over(
            self.engine, temperature=self.settings.temperature, max_tokens=self.settings.max_tokens
        )
        seed = self.settings.seed + self.generation
        play = partial(play_episode, model, self.source, self.settings, stage=self.stage.name, seed=seed)
        return await at_once(
            self.settings.concurrency, [partial(play, task, self.level(task), sample=sample) for task, sample in jobs]
        )

    def _observe(self, rollouts: Sequence[Rollout]) -> None:
        if self.difficulty is not None and self.stage.augmented:
            groups: dict[str, list[float]] = {}
            for rollout in rollouts:
                if rollout.reward is not None:
                    groups.setdefault(rollout.task_id, []).append(rollout.reward)
            for task_id, rewards in groups.items():
                self.difficulty.observe(task_id, rewards)
        self.notes.append(summary_of(rollouts, self.stage.reward))
        if self.on_rollouts:
            self.on_rollouts(rollouts)


def reward_from_rollouts(
    completions: Sequence[Any],
    reward: Sequence[float | None],
    notes: Sequence[Mapping[str, float]] = (),
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """TRL's reward function: what the stage's `RewardMix` said of each rollout. Its notes go where TRL's metrics go."""
    if log_metric and notes:
        for name, value in notes[0].items():
            log_metric(f"envtune/{name}", value)
    return list(reward)


def evaluate_greedily(
    engine: Engine,
    tasks: Sequence[Task],
    source: TaskSource,
    settings: TrainSettings,
    *,
    level: int = 0,
    stage: str = "",
) -> list[Rollout]:
    """One greedy rollout of each task, with hints of a level of the dial."""
    engine.clear_cache()
    model = PolicyModel.over(engine, temperature=0.0, max_tokens=settings.max_tokens)
    play = partial(play_episode, model, source, settings, level=level, stage=stage)
    return run_coroutine(at_once(settings.concurrency, [partial(play, task) for task in tasks]))


async def play_episode(
    model: BaseChatModel,
    source: TaskSource,
    settings: TrainSettings,
    task: Task,
    level: int = 0,
    **options: Any,
) -> Rollout:
    """One episode under the source's own terms, as in evaluation and deployment; `options` are `run_episode`'s."""
    return await run_episode(
        model,
        source.environment(task),
        hints=source.hint_engine(level),
        scorer=source.scorer,
        malformed_ends_turn=source.malformed_ends_turn,
        max_steps=settings.max_steps_per_turn,
        **options,
    )


async def at_once(most: int, episodes: Iterable[Callable[[], Coroutine[Any, Any, Rollout]]]) -> list[Rollout]:
    """The rollouts in order, with at most `most` episodes at the same time."""
    open_places = asyncio.Semaphore(most)

    async def one(episode: Callable[[], Coroutine[Any, Any, Rollout]]) -> Rollout:
        async with open_places:
            return await episode()

    return list(await asyncio.gather(*map(one, episodes)))


def summary_of(rollouts: Sequence[Rollout], reward: RewardMix = PROGRESS_REWARD) -> dict[str, float]:
    """What a step's rollouts add up to: progress, success, hints, failures, and the share of groups in which `reward`
    differs."""
    from envtune_agents.summary import CategoryTotals

    total = CategoryTotals()
    for rollout in rollouts:
        total.add(rollout)
    scored = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    groups: dict[str, set[float]] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            groups.setdefault(rollout.task_id, set()).add(reward(rollout))
    n = max(len(rollouts), 1)
    malformed = sum(
        failure.kind.value == "malformed_call"
        for rollout in rollouts
        for turn in rollout.turns
        for step in turn.steps
        for outcome in step.outcomes
        if (failure := outcome.failure) is not None
    )
    tapes = [tape_of(rollout) for rollout in rollouts]
    return {
        "progress": sum(scored) / max(len(scored), 1),
        "solved": total.solved / n,
        "errors": total.errors / n,
        "calls": total.calls / n,
        "failed_calls": total.failures / max(total.calls, 1),
        "format_errors": malformed / max(total.calls, 1),
        "hints": total.hints / n,
        "hint_uptake": total.fixed / max(total.hints, 1),
        "mixed_groups": sum(len(values) > 1 for values in groups.values()) / max(len(groups), 1),
        "branches": sum(len(tape.branches) for tape in tapes) / n,
        "drifted": sum(tape.drifted for tape in tapes) / n,
    }


def _branch(rollout: Rollout) -> TapeBranch | None:
    branches = [branch for branch in tape_of(rollout).branches if any(branch.on_policy_mask)]
    return branches[rollout.sample % len(branches)] if branches else None


def run_coroutine(work: Coroutine[Any, Any, list[Rollout]]) -> list[Rollout]:
    """The result of a coroutine, from code that has no event loop of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:  # a notebook has a loop already
        return pool.submit(asyncio.run, work).result()
