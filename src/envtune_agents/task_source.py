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

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """`load(split, categories)`: the tasks of a split, of the given categories or of all for None."""
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
    except (ImportError, AttributeError) as error:
        raise TaskError(f"Cannot load the task source {name!r}: {error}. Expected 'module:factory'.") from error


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
