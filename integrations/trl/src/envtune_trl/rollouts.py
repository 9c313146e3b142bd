"""LangGraph episodes as TRL's `rollout_func`: prompts in, token rows with masks and rewards out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from statistics import mean
from typing import Any

from envtune_agents.curriculum import DifficultyController, Stage
from envtune_agents.engine import Engine
from envtune_agents.errors import ScorerError, TaskError
from envtune_agents.tape import TapeBranch, tape_of
from envtune_agents.task_source import TaskSource
from envtune_agents.types import Rollout, Task
from envtune_trl.episodes import LimitedEngine, PolicyModel, Told, play_at_once, play_episode
from envtune_trl.processes import ALONE, Processes
from envtune_trl.settings import TrainSettings
from envtune_trl.tally import means, tally_of

PROMPT_TASK_KEY = "task_id"
"""Key of the prompt's message that names the task; TRL hands messages on as they are."""


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

    All episodes of a step run at the same time, so that the engine decodes them as one batch; each ends where the
    stage's limits do. Where the trainer evaluates, they are greedy and without hints. TRL takes one row for each
    prompt: of a rollout with several branches, sample i of a group trains branch i modulo their number.
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
    successes: dict[str, float] = field(default_factory=dict)
    """Mean turn score of each group of the last generation, by task: what `difficulty` was told."""
    on_rollouts: Callable[[Sequence[Rollout]], None] | None = None
    """Is given the rollouts of each step that this process has played."""
    told: Told | None = None
    """Is told of each finished episode of a step."""
    processes: Processes = ALONE
    """Each plays whole groups; hint levels and notes are those of all."""
    generation: int = 0
    """Steps so far; with the seed it decides what is sampled."""

    def __call__(self, prompts: Sequence[Sequence[Mapping[str, Any]]], trainer: Any) -> dict[str, list[Any]]:
        """TRL's contract: prompt ids, completion ids and logprobs for each prompt, the loss mask, and the rewards."""
        tasks, model = [self._task(prompt) for prompt in prompts], trainer.model
        if not model.training:  # the trainer's own evaluation
            rollouts = evaluate_greedily(self.engine, tasks, self.source, self.settings, stage=self.stage.name)
            return {**self.rows(rollouts), "notes": [self._summary(rollouts)] * len(rollouts)}
        self.generation = int(trainer.state.global_step)  # so that a resumed run draws other samples than before
        model.eval()
        try:
            rollouts = self.play(tasks)
        finally:
            model.train()
        return {**self.rows(rollouts), "notes": [self.notes[-1]] * len(rollouts)}

    def _task(self, prompt: Sequence[Mapping[str, Any]]) -> Task:
        task_id = str(prompt[-1].get(PROMPT_TASK_KEY))
        if task_id not in self.tasks:
            raise TaskError(
                f"A prompt names the task {task_id!r}, which is not among the {len(self.tasks)} of these rollouts. "
                "Make the trainer's dataset with task_dataset, from the same tasks."
            )
        return self.tasks[task_id]

    def play(self, tasks: Sequence[Task]) -> list[Rollout]:
        """One sampled rollout for each entry of `tasks`, in order; a repeated task is another sample of it."""
        self.engine.clear_cache()
        self.generation += 1
        seen: Counter[str] = Counter()
        jobs = []
        for task in tasks:
            jobs.append((task, seen[task.task_id]))
            seen[task.task_id] += 1
        rollouts = self._play_all(jobs)
        self._observe(rollouts)
        return rollouts

    def level(self, task: Task) -> int:
        """The level of the dial for a task."""
        if self.difficulty is None or not self.stage.augmented:
            return self.stage.hint_level
        return self.difficulty.level(task.task_id)

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
        if rollouts and not sum(self.processes.from_all(trainable)):
            errors = Counter(rollout.error or rollout.stop_reason.value for rollout in rollouts)
            raise ScorerError(
                f"None of {len(rollouts)} rollouts holds a token to train on; they ended with: "
                f"{', '.join(f'{count} x {why}' for why, count in errors.most_common(3))}. Shorten the prompts, raise "
                "max_context, or look at the first error."
            )
        return rows

    def _play_all(self, jobs: Sequence[tuple[Task, int]]) -> list[Rollout]:
        options = {"stage": self.stage.name, "seed": self.settings.seed + self.generation}
        episodes = []
        for task, sample in jobs:
            model = PolicyModel.over(
                LimitedEngine(self.engine, self.stage),
                temperature=self.settings.temperature,
                max_tokens=self.settings.max_tokens,
            )
            level = self.level(task)
            episodes.append(
                partial(play_episode, model, self.source, self.settings, task, level, sample=sample, **options)
            )
        return play_at_once(self.settings.concurrency, episodes, self.told)

    def _observe(self, rollouts: Sequence[Rollout]) -> None:
        if self.difficulty is not None and self.stage.augmented:
            groups: dict[str, list[float]] = {}
            for rollout in rollouts:
                if rollout.reward is not None:
                    groups.setdefault(rollout.task_id, []).append(rollout.reward)
            parts = self.processes.from_all({task_id: mean(rewards) for task_id, rewards in groups.items()})
            self.successes = {task_id: success for part in parts for task_id, success in part.items()}
            for task_id, success in self.successes.items():
                self.difficulty.observe(task_id, [success])
        self.notes.append(self._summary(rollouts))
        if self.on_rollouts:
            self.on_rollouts(rollouts)

    def _summary(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        return means(self.processes.from_all(tally_of(rollouts, self.stage.reward)))


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
    told: Told | None = None,
) -> list[Rollout]:
    """One greedy rollout of each task, with hints of a level of the dial."""
    engine.clear_cache()
    model = PolicyModel.over(engine, temperature=0.0, max_tokens=settings.max_tokens)
    play = partial(play_episode, model, source, settings, level=level, stage=stage)
    return play_at_once(settings.concurrency, [partial(play, task) for task in tasks], told)


def _branch(rollout: Rollout) -> TapeBranch | None:
    branches = [branch for branch in tape_of(rollout).branches if any(branch.on_policy_mask)]
    return branches[rollout.sample % len(branches)] if branches else None
