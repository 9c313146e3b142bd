"""Where tasks come from: a name on the command line -> tasks, and a fresh environment for each.

A source is an object with `load` and `environment`. The playground is built in; an installed integration announces its
own through the entry point group `envtune_agents.task_sources`; anything else is `module:factory`, a function of yours
that returns a `TaskSource`.

Evaluation asks a source for a few more things, each of them optional. `scorer` scores turns. `judge` is the benchmark's
own verdict on a rollout; without it a rollout is solved when every turn was played and scored 1. `flagged` names the
tasks with bad labels, `fingerprint` what decides verdicts beside the tasks, `export` writes the benchmark's own
result files. None of them ever changes a number of another: flagged tasks stay in every denominator. Training may ask
for one more: `solution`, which a warm-up imitates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envtune_agents.errors import EnvTuneError, TaskError, unknown
from envtune_agents.progress import strict_score
from envtune_agents.types import Environment, HintRule, ProgressScorer, Rollout, Task

if TYPE_CHECKING:
    from envtune_agents.hints import HintEngine

ENTRY_POINT_GROUP = "envtune_agents.task_sources"
_SPLITS = ("train", "validation", "test")
_NO_SPLIT = (KeyError, ValueError)
"""How a source says that it has no such split."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a benchmark says about one finished rollout."""

    solved: bool
    error_type: str | None = None
    """The benchmark's own name of the first failure, such as "multi_turn:instance_state_mismatch"; None when solved."""


@dataclass(frozen=True, slots=True)
class TaskSource:
    """A family of tasks and the environment that plays them.

    def bakery() -> TaskSource:
        return TaskSource(load=lambda split, categories: [Task("bread_1", "base", ("Bake.",))], environment=Bakery)
    """

    load: Callable[[str, Sequence[str] | None], list[Task]]
    """`load(split, categories)`: the tasks of a split, of the given categories or of all for None. Asked for are
    "train", "validation", "test" and "all"; a split that the source does not have is a `KeyError` or `ValueError`, and
    "all" is then put together from the others."""
    environment: Callable[[Task], Environment]
    """A fresh environment for one episode of a task."""
    rules: Callable[[], Sequence[HintRule]] | None = None
    """The hint rules for these tasks, in the order in which they are asked; the library's own for None."""
    scorer: ProgressScorer = strict_score
    """From the evidence of a turn to its score."""
    judge: Callable[[Task, Rollout], Verdict] | None = None
    """The official verdict on a rollout, worked out from its recorded calls alone, never from its recorded scores. It
    is also asked about rollouts that ended early (`rollout.stop_reason`), but not about those with an `error`: these
    are failures whatever they called. It must not raise."""
    malformed_ends_turn: bool = False
    """Whether a reply whose calls cannot be read ends the turn, as in BFCL's loop, instead of being told so."""
    flagged: Callable[[], Mapping[str, str]] | None = None
    """Task id -> what is wrong with its label, for the tasks of every split that nobody can solve from what is said.
    Evaluation reports the accuracy without them beside the official one."""
    fingerprint: Callable[[], Mapping[str, str]] | None = None
    """Name -> version or hash of whatever decides a verdict beside the tasks, such as {"bfcl-eval": "2026.3.23"}."""
    export: Callable[[Iterable[Rollout], Path], object] | None = None
    """`export(rollouts, folder)` writes the rollouts in the benchmark's own result format; it makes the folder."""
    solution: Callable[[Task], Sequence[Sequence[tuple[str, Mapping[str, Any]]]]] | None = None
    """The calls that solve a task, turn by turn, each as name and arguments: what a warm-up for a model that cannot
    call tools yet imitates. Only training tasks are asked about, and only when a warm-up is asked for."""

    def tasks(self, split: str, categories: Sequence[str] | None = None) -> list[Task]:
        """The tasks that `load` gives, at least one and each with an id of its own.

        Raises `TaskError` for anything else, and for whatever `load` raises.
        """
        try:
            found = _checked(self._loaded(split, categories), split)
        except EnvTuneError:
            raise
        except Exception as error:  # somebody else's function
            raise _broken(split, error) from error
        if not found:
            of = f" of {', '.join(categories)}" if categories else ""
            raise TaskError(
                f"The task source has no tasks{of} in the split {split!r}. Choose another split or category."
            )
        return found

    def tasks_if_any(self, split: str, categories: Sequence[str] | None = None) -> list[Task] | None:
        """As `tasks`, but None where the source has no such split, or nothing in it."""
        try:
            found = self._loaded(split, categories)
        except _NO_SPLIT:
            return None
        except EnvTuneError:
            raise
        except Exception as error:
            raise _broken(split, error) from error
        return _checked(found, split) or None

    def environment_of(self, task: Task) -> Environment:
        """What `environment` gives. Raises `TaskError` when it raises, or gives something else."""
        advice = "Try it with envtune_agents.testing.check_environment."
        try:
            made: object = self.environment(task)
        except EnvTuneError:
            raise
        except Exception as error:  # somebody else's function
            raise TaskError(
                f"The environment of the task {task.task_id!r} cannot be made: {type(error).__name__}: {error}. "
                f"{advice}"
            ) from error
        if not isinstance(made, Environment):
            raise TaskError(
                f"The task source gave {type(made).__name__} as the environment of the task {task.task_id!r}; "
                f"expected an object with task, open_turn, tools and close_turn. {advice}"
            )
        return made

    def _loaded(self, split: str, categories: Sequence[str] | None) -> list[Task]:
        try:
            return self.load(split, categories)
        except _NO_SPLIT:
            found: list[Task] = []
            for part in _SPLITS if split == "all" else ():
                with suppress(*_NO_SPLIT):
                    found += self.load(part, categories)
            if not found:
                raise
            return found

    def hint_engine(self, level: int) -> HintEngine:
        """A hint engine with this source's rules at a level of the dial, 0 to 3."""
        from envtune_agents.hints import HintDial, HintEngine

        dial = HintDial(level)
        return HintEngine(dial=dial) if self.rules is None else HintEngine(self.rules(), dial)

    def solution_replies(self, task: Task) -> list[str]:
        """What solves a task, reply by reply, in Qwen's form: the calls of a turn in one, then a word that ends it.

        Raises `TaskError` when the source has no `solution`.
        """
        from envtune_agents.qwen import format_call

        if self.solution is None:
            raise TaskError("This task source does not know what solves its tasks. Give it a `solution`.")
        replies: list[str] = []
        for calls in self.solution(task):
            replies += ["\n".join(format_call(name, args) for name, args in calls)] if calls else []
            replies.append("Done.")
        return replies


def _broken(split: str, error: Exception) -> TaskError:
    return TaskError(
        f"The task source raised {type(error).__name__} for the split {split!r}: {error}. Choose a split that it has, "
        "or correct its `load`."
    )


def _checked(found: object, split: str) -> list[Task]:
    """What `load` gave, when it is a list of tasks to play, each with an id of its own."""
    if not isinstance(found, list | tuple) or not all(isinstance(task, Task) for task in found):
        got = f"a list with {_kinds_in(found)}" if isinstance(found, list | tuple) else type(found).__name__
        raise TaskError(f"The task source gave {got} for the split {split!r}; `load` must return a list of Task.")
    silent = [task.task_id for task in found if not task.turns]
    if silent:
        raise TaskError(f"The task {silent[0]!r} has no turns, so there is nothing to play. Give it a user message.")
    doubled = [task_id for task_id, times in Counter(task.task_id for task in found).items() if times > 1]
    if doubled:
        raise TaskError(
            f"The task source gave {len(doubled)} task ids more than once, such as {doubled[0]!r}. Give every task an "
            "id of its own: rollouts are told apart by it."
        )
    return list(found)


def _kinds_in(found: Iterable[Any]) -> str:
    return ", ".join(sorted({type(task).__name__ for task in found if not isinstance(task, Task)}))


def find_task_source(name: str) -> TaskSource:
    """The source called `name`: "playground", an installed integration such as "bfcl", or "module:factory"."""
    if name == "playground":
        return _playground()
    installed = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name in installed:
        return _made(installed[name].load(), name)
    if ":" in name:
        return _made(_import(name), name)
    advice = "For BFCL install integrations/bfcl; your own tasks are 'module:factory'."
    raise TaskError(f"{unknown('task source', name, ['playground', *sorted(installed)])} {advice}")


def _import(name: str) -> Any:
    module, _, factory = name.partition(":")
    try:
        return getattr(import_module(module), factory)
    except Exception as error:  # somebody else's module
        raise TaskError(
            f"Cannot load the task source {name!r}: {type(error).__name__}: {error}. Expected 'module:factory', a "
            "function without arguments that returns a TaskSource; its module is installed or a file of this folder."
        ) from error


def _made(factory: Callable[[], Any], name: str) -> TaskSource:
    try:
        source = factory()
    except EnvTuneError:
        raise
    except Exception as error:
        raise TaskError(f"The task source {name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(source, TaskSource):
        raise TaskError(f"The task source {name!r} gave {type(source).__name__}; it must return a TaskSource.")
    return source


def _playground() -> TaskSource:
    """The playground: three domains to train and test on, and two held-out generators, "renamed" and "stock"."""
    from envtune_agents.playground import CATEGORIES, PLAYGROUND_RULES, Playground, generated_tasks, playground_tasks

    splits: dict[str, Callable[[str], list[Task]]] = {
        "train": lambda category: generated_tasks(0, 100, category),
        "validation": lambda category: generated_tasks(1, 25, category),
        "test": lambda category: generated_tasks(2, 100, category),
        "renamed": lambda category: generated_tasks(3, 50, category, other_names=True),
        "stock": lambda category: playground_tasks(0, 25, category),
    }

    def load(split: str, categories: Sequence[str] | None) -> list[Task]:
        if split not in (*splits, "all"):
            raise TaskError(unknown("split", split, (*splits, "all")))
        chosen = list(splits.values()) if split == "all" else [splits[split]]
        wanted = list(categories) if categories else list(CATEGORIES)
        return [task for tasks_of in chosen for name in wanted for task in tasks_of(name)]

    return TaskSource(load, Playground, lambda: PLAYGROUND_RULES, solution=lambda task: task.data["solution"])
