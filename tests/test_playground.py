from __future__ import annotations

import json

import pytest

from envtune_agents.errors import EnvironmentStateError, TaskError
from envtune_agents.playground import CATEGORIES, Playground, playground_tasks
from envtune_agents.progress import strict_score
from envtune_agents.types import Environment, Forkable, Task

TASKS = [task for seed in range(5) for task in playground_tasks(seed, 8)]


def play(environment: Playground, task: Task, *, skip: int | None = None) -> list[float]:
    """Makes the solution's calls, all but those of turn `skip`, and gives the turn scores."""
    scores = []
    for turn, calls in enumerate(task.data["solution"]):
        environment.open_turn()
        tools = {tool.name: tool for tool in environment.tools()}
        for name, args in calls if turn != skip else ():
            assert "error" not in tools[name].invoke(args)
        scores.append(strict_score(environment.close_turn()).value)
    assert environment.open_turn() is None
    return scores


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
def test_the_solution_scores_1_and_leaving_a_turn_out_scores_less(task: Task) -> None:
    assert play(Playground(task), task) == [1.0] * len(task.turns)
    assert play(Playground(task), task, skip=1)[1] == 0.0


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
def test_no_calls_never_solve_a_task(task: Task) -> None:
    environment = Playground(task)
    scores = []
    while environment.open_turn() is not None:
        scores.append(strict_score(environment.close_turn()).value)
    assert sum(scores) < len(task.turns)


def test_tasks_are_drawn_from_the_seed() -> None:
    assert playground_tasks(3, 4) == playground_tasks(3, 4)
    assert playground_tasks(3, 4)[0].data == playground_tasks(3, 4)[0].data
    assert playground_tasks(3, 4) != playground_tasks(4, 4)
    assert [task.category for task in playground_tasks(0, 4)] == list(CATEGORIES)
    with pytest.raises(TaskError, match="Known: base"):
        playground_tasks(category="base2")


def test_a_held_back_tool_appears_at_its_turn() -> None:
    environment = Playground(playground_tasks(0, 1, "miss_func")[0])
    visible = []
    while environment.open_turn() is not None:
        visible.append("ship_parcel" in [tool.name for tool in environment.tools()])
        environment.close_turn()
    assert visible == [False, False, False, True]


def test_turns_are_opened_and_closed_in_order() -> None:
    environment = Playground(TASKS[0])
    with pytest.raises(EnvironmentStateError):
        environment.close_turn()
    environment.open_turn()
    with pytest.raises(EnvironmentStateError):
        environment.open_turn()


def test_a_fork_is_an_independent_world_and_a_snapshot_is_json() -> None:
    task = TASKS[0]
    environment = Playground(task)
    assert isinstance(environment, Environment)
    assert isinstance(environment, Forkable)
    environment.open_turn()
    start = json.loads(json.dumps(environment.snapshot()))
    twin = environment.fork(start)
    for name, args in task.data["solution"][0]:
        {tool.name: tool for tool in environment.tools()}[name].invoke(args)
    assert twin.snapshot() == start
    assert environment.snapshot() != start
    assert strict_score(twin.close_turn()).value == 0.0
    assert strict_score(environment.close_turn()).value == 1.0
