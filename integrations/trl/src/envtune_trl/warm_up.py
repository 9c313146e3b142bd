"""A short supervised warm-up before GRPO: where its examples come from, and that it is made once.

A model that cannot call tools yet earns 0 in every rollout, and GRPO learns nothing from that. Examples are a rollout
file of yours, else the tasks' own solutions where the source knows them, else the model's own calls under a grammar.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

from envtune_agents.curriculum import Silence, Stage
from envtune_agents.engine import GenerationRequest, GenerationResult
from envtune_agents.errors import RecordError
from envtune_agents.rollout import read_rollouts
from envtune_agents.tape import branches_of
from envtune_agents.task_source import TaskSource
from envtune_agents.types import Rollout, Task
from envtune_agents.weights import Weights
from envtune_trl.episodes import PolicyModel, play_at_once, play_episode
from envtune_trl.imitation import imitate_rows
from envtune_trl.settings import TrainSettings
from envtune_trl.weights import Policy, load_policy, save_policy, weights_in

FOLDER = "warm_up"
"""Folder of the warm-up in a run's folder."""
MOST_LESSONS = 96
"""Rollouts of an automatic warm-up: as many taught a model of 135M parameters the form of a call (ours)."""
NO_LESSONS = (
    "Nothing to imitate was found: the task source has no `solution`, and the model's own calls under a grammar (pip "
    "install 'envtune-agents[grammar]') earned nothing. Give good rollouts with --warm-up rollouts.jsonl."
)
_DONE = "done.json"


@dataclass(frozen=True, slots=True)
class Lessons:
    """Rollouts to imitate."""

    rollouts: Sequence[Rollout]
    origin: str
    """Where they come from, in words."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What a warm-up did."""

    origin: str
    rollouts: int
    """How many were imitated."""
    first_loss: float
    """Mean negative log-likelihood of the imitated tokens in the first step."""
    last_loss: float
    because: str | None = None
    """Why it was made by itself; None when it was asked for with a rollout file."""
    step: int = 0
    """Training steps that were made in vain before it."""

    def __str__(self) -> str:
        return (
            f"Warmed up by imitating {self.rollouts} rollouts ({self.origin}); loss {self.first_loss:.3g} to "
            f"{self.last_loss:.3g}."
        )


def from_file(path: Path) -> Lessons:
    """The rollouts of a file that earned something."""
    return Lessons([rollout for rollout in read_rollouts(path) if _worthy(rollout)], path.name)


def find_lessons(
    policy: Policy, tasks: Sequence[Task], source: TaskSource, stage: Stage, settings: TrainSettings
) -> Lessons | None:
    """Rollouts of some training tasks that the stage rewards, the better ones; None when there is no way to get any."""
    policy.model.eval()
    chosen = Random(settings.seed).sample(list(tasks), k=min(len(tasks), MOST_LESSONS))
    for rollouts, origin in _ways(policy, chosen, source, stage, settings):
        worth = [(rollout, stage.reward(rollout)) for rollout in rollouts if rollout.error is None]
        earned = [reward for _, reward in worth if reward > 0]
        if earned:
            return Lessons([rollout for rollout, reward in worth if reward >= mean(earned)], origin)
    return None


def make_warm_up(
    run: Path, policy: Policy, lessons: Lessons, settings: TrainSettings, *, because: Silence | None = None
) -> WarmUp:
    """Trains the policy on the lessons and writes its weights and what was done into the run's folder."""
    _check_tokens(policy, lessons)
    rows = [row for rollout in lessons.rollouts for row in branches_of(rollout)]
    losses = imitate_rows(policy, rows, settings)
    save_policy(policy, policy.model, run / FOLDER, settings)
    reason, step = (str(because), because.step) if because else (None, 0)
    made = WarmUp(lessons.origin, len(lessons.rollouts), losses[0], losses[-1], reason, step)
    (run / FOLDER / _DONE).write_text(json.dumps(asdict(made)) + "\n", encoding="utf-8")  # last: now it counts
    return made


def warmed_up(run: Path, model: str | Path, path: Path, settings: TrainSettings) -> WarmUp:
    """The warm-up on a rollout file; made once."""
    return read_warm_up(run) or make_warm_up(run, load_policy(model, settings, None), from_file(path), settings)


def read_warm_up(run: Path) -> WarmUp | None:
    """The warm-up of a run that was made to its end."""
    try:
        return WarmUp(**json.loads((run / FOLDER / _DONE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def warm_weights(run: Path) -> Path | None:
    """The weights that a run's warm-up left, None without one."""
    return weights_in(run / FOLDER) if read_warm_up(run) else None


def _ways(
    policy: Policy, tasks: Sequence[Task], source: TaskSource, stage: Stage, settings: TrainSettings
) -> Iterator[tuple[list[Rollout], str]]:
    play = partial(_played, policy, tasks, source, stage, settings)
    if source.solution is not None:
        yield play(solved=True), "the solutions of training tasks"
    if find_spec("llguidance"):
        yield play(solved=False), "the model's own calls under a grammar"


def _played(
    policy: Policy, tasks: Sequence[Task], source: TaskSource, stage: Stage, settings: TrainSettings, *, solved: bool
) -> list[Rollout]:
    """One rollout of each task: its own solution, or what the model says when each turn must begin with a call."""
    engine = None if solved else policy.engine()

    def player(task: Task) -> PolicyModel:
        if engine is None:
            return PolicyModel.over(Recital(policy.weights, source.solution_replies(task)))
        return PolicyModel.over(engine, temperature=settings.temperature, max_tokens=settings.max_tokens)

    options: dict[str, Any] = {
        "level": stage.hint_level,
        "stage": stage.name,
        "seed": settings.seed,
        "first_step_calls": not solved,
    }
    try:
        return play_at_once(
            settings.concurrency,
            [partial(play_episode, player(task), source, settings, task, **options) for task in tasks],
        )
    finally:
        if engine is not None:
            engine.close()


class Recital:
    """In an engine's place for one episode: says its texts one after the other, in the tokenizer's tokens."""

    failed = False

    def __init__(self, weights: Weights, texts: Sequence[str]) -> None:
        self.weights = weights
        self._texts = list(texts)

    async def aweights(self) -> Weights:
        """The tokenizer and template."""
        return self.weights

    async def agenerate(self, request: GenerationRequest) -> GenerationResult:
        """The next text; nothing after the last one."""
        text = self._texts.pop(0) if self._texts else ""
        ids = (*self.weights.encode(text), self.weights.end_token_ids[-1])
        return GenerationResult(ids, (0.0,) * len(ids), text, text, text, "end", len(request.prompt_ids), 0)

    def generate(self, request: GenerationRequest) -> Any:
        """Not offered: episodes are played from an event loop."""
        raise NotImplementedError

    stream = astream = generate


def _check_tokens(policy: Policy, lessons: Lessons) -> None:
    """Raises `RecordError` when token ids of the rollouts mean something else to this model's tokenizer."""
    for rollout in lessons.rollouts:
        for step in (step for turn in rollout.turns for step in turn.steps if step.completion_token_ids):
            said = policy.weights.decode(step.completion_token_ids)
            if step.reply.strip() not in said:
                raise RecordError(
                    f"The rollouts of {lessons.origin} come from a model with another tokenizer: {rollout.rollout_id} "
                    f"records {step.reply[:40]!r}, and its tokens read {said[:40]!r} here. Collect some with this "
                    "model or one of its family, or use the warm-up 'auto'."
                )


def _worthy(rollout: Rollout) -> bool:
    return rollout.error is None and bool(rollout.reward)
