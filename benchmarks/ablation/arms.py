"""What is compared: the arms, their stages, and the tasks they are tested on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from envtune_agents.curriculum import FOUR_STAGES, AdvanceRule, Stage
from envtune_agents.playground import generated_tasks
from envtune_agents.progress import BINARY_REWARD, PROGRESS_REWARD
from envtune_agents.types import Task

ARMS = ("four", "no_hints", "binary", "single", "sft")
"""(a) the four stages; (b) without hints; (c) binary episode reward; (d) one stage on all; (e) supervised only."""

SHARES = (0.12, 0.3, 0.33)
"""Parts of the step budget that the first three stages get at most; the last stage has the rest."""


@dataclass(frozen=True, slots=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


def stages_of(arm: str, steps: int, prompts: int, samples: int) -> tuple[Stage, ...]:
    """The arm's stages for a budget of `steps`; the last one has no budget of its own."""
    budgets = [max(1, round(share * steps)) for share in SHARES] + [None]
    four = tuple(
        replace(stage, prompts=prompts, samples=samples, max_steps=budget)
        for stage, budget in zip(FOUR_STAGES, budgets, strict=True)
    )
    if arm == "no_hints":
        return tuple(replace(stage, hint_level=0) for stage in four)
    if arm == "binary":
        return (four[0], *(replace(stage, reward=BINARY_REWARD) for stage in four[1:]))
    if arm == "single":
        return (Stage("single", PROGRESS_REWARD, hint_level=3, prompts=prompts, samples=samples),)
    return four


RULE = AdvanceRule(window=2, tolerance=0.03, confirm=1)
"""The library's rule with short windows: the whole budget holds only a few evaluations."""


TRAIN_TASKS = 400
"""As in the paper: 100 of each category."""


def train_tasks(count: int = TRAIN_TASKS, max_turns: int = 4) -> list[Task]:
    """The tasks all arms train on: of `count`, those with at most so many turns."""
    return short(generated_tasks(0, count), max_turns)


def short(tasks: list[Task], max_turns: int) -> list[Task]:
    """Those with at most `max_turns` turns: what a long conversation costs, several short ones cost together."""
    return [task for task in tasks if len(task.turns) <= max_turns]


def _unseen(tasks: list[Task], count: int) -> list[Task]:
    """The first `count` tasks whose words no training task has."""
    known = {task.turns for task in train_tasks()}
    return [task for task in tasks if task.turns not in known][:count]


def validation_tasks(count: int) -> list[Task]:
    return _balanced(_unseen(generated_tasks(1, 4 * count + 40), 10_000), count)


def test_sets(count: int) -> dict[str, list[Task]]:
    """Held-out tasks of the training domains, the same under other tool names, and the held-out domain."""
    return {
        "held_out": _balanced(_unseen(generated_tasks(2, 4 * count + 40), 10_000), count),
        "renamed": _balanced(generated_tasks(3, 4 * count, other_names=True), count // 2),
        "stock": _balanced(generated_tasks(4, 4 * count, domains=("stock",)), count // 2),
    }


def _balanced(tasks: list[Task], count: int) -> list[Task]:
    """`count` tasks with equally many of each category."""
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault(task.category, []).append(task)
    return [task for group in zip(*found.values(), strict=False) for task in group][:count]
