"""Where tasks come from: a name on the command line -> tasks, and a fresh environment for each.

A source is an object with `load` and `environment`. The playground is built in; an installed integration announces its
own through the entry point group `envtune_agents.task_sources`; anything else is `module:factory`, a function of yours
that returns a `TaskSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from envtune_agents.errors import EnvTuneError, TaskError, unknown
from envtune_agents.types import Environment, HintRule, Task

if TYPE_CHECKING:
    from envtune_agents.hints import HintEngine

ENTRY_POINT_GROUP = "envtune_agents.task_sources"


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

    def hint_engine(self, level: int) -> HintEngine:
        """A hint engine with this source's rules at a level of the dial, 0 to 3."""
        from envtune_agents.hints import HintDial, HintEngine

        dial = HintDial(level)
        return HintEngine(dial=dial) if self.rules is None else HintEngine(self.rules(), dial)


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
    from envtune_agents.playground import CATEGORIES, Playground, playground_tasks

    seeds = {"train": 0, "validation": 1, "test": 2}

    def load(split: str, categories: Sequence[str] | None) -> list[Task]:
        if split not in (*seeds, "all"):
            raise TaskError(unknown("split", split, (*seeds, "all")))
        chosen = list(seeds.values()) if split == "all" else [seeds[split]]
        wanted = list(categories) if categories else list(CATEGORIES)
        return [task for seed in chosen for name in wanted for task in playground_tasks(seed, 25, name)]

    return TaskSource(load, Playground)
