"""A task -> what its ground truth did, turn by turn, worked out once and shared by every episode of the task.

In: tasks of `load_tasks`. Out: `Truth` records that nobody changes. The four entries of a number mostly tell one story
in other turns, so what a sequence of calls does to one API instance is kept for all of them.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

from envtune_agents.errors import TaskError
from envtune_agents.types import Task
from envtune_bfcl.apis import Scenario, Template, api_methods, load_scenario, scenario_of
from envtune_bfcl.calls import called_name, parse_call, parsed_arguments, plain_call
from envtune_bfcl.copies import Instance, copied, copy_value
from envtune_bfcl.worlds import NO_TRACKS, Meaning, Tracks, World, meaning

_MAX_TRUTHS = 1024


# --- states ---


@dataclass(frozen=True, slots=True)
class State:
    """What BFCL compares of one instance: its attributes without a leading underscore."""

    values: tuple[Any, ...]
    pick: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    """Takes the same values from the attributes of another instance."""
    trees: tuple[tuple[str, Any], ...]
    """The attributes that are a file system's directories."""


def state_of(attributes: Mapping[str, Any]) -> State:
    """The comparable state of an instance with these attributes. It is not copied."""
    public = {name: value for name, value in attributes.items() if not name.startswith("_")}
    trees = {name: value for name, value in public.items() if type(value).__name__ == "Directory"}
    names = [name for name in public if name not in trees]
    pick = itemgetter(*names) if len(names) > 1 else lambda found: tuple([found[name] for name in names])
    return State(pick(attributes), pick, tuple(trees.items()))


def same_state(instance: Instance, wanted: State) -> bool:
    """BFCL `_compare_instances`: are all public attributes equal? A comparison that cannot end is a difference."""
    found = vars(instance)
    try:
        if wanted.pick(found) != wanted.values:
            return False
        return not wanted.trees or all(_same_tree(found[name], tree) for name, tree in wanted.trees)
    except Exception:
        return False


def equal_states(found: State, wanted: State) -> bool:
    """The same for two states of one API, each on its track."""
    if found is wanted:
        return True
    try:
        trees = zip(found.trees, wanted.trees, strict=True)
        return found.values == wanted.values and all(_same_tree(a, b) for (_, a), (_, b) in trees)
    except Exception:
        return False


def _same_tree(found: Any, wanted: Any) -> bool:
    """`found == wanted` for two directories, without a Python-level `__eq__` for each file."""
    if found.name != wanted.name or len(found.contents) != len(wanted.contents):
        return False
    others, kind = found.contents, type(wanted)
    for name, item in wanted.contents.items():
        other = others.get(name)
        if type(other) is not type(item):
            return False
        if type(item) is kind:
            if not _same_tree(other, item):
                return False
        elif other.content != item.content or other.name != item.name:
            return False
    return True


def _state_after(before: State, instance: Instance) -> State:
    """The comparable state of an instance, copied but for the parts that still equal those of its state before."""
    found = vars(instance)
    if sum(not name.startswith("_") for name in found) != len(before.values) + len(before.trees):
        return state_of(copied(instance))  # a call gave it another attribute
    pairs = zip(before.values, before.pick(found), strict=True)
    values = tuple([old if old == new else copy_value(new) for old, new in pairs])
    trees = [(name, old if _same_tree(found[name], old) else copy_value(found[name])) for name, old in before.trees]
    return State(values, before.pick, tuple(trees))


def _equals_itself(state: State) -> bool:
    """False for a state that holds a NaN: another world that made the same calls would differ from it."""
    try:
        return bool(marshal.loads(marshal.dumps(state.values)) == state.values)  # makes every float anew
    except Exception:
        return False


# --- truths ---


@dataclass(frozen=True, slots=True)
class TruthTurn:
    """What the ground truth did in one turn. Nobody changes it."""

    calls: tuple[str, ...]
    keys: tuple[str, ...]
    """Name of each needed result in `TurnEvidence.response_checks`, such as "0:cd"."""
    results: tuple[str, ...]
    states: Mapping[str, State]
    """State of each API after the turn; the same object as in the turn before when no call reached it."""
    start: Mapping[str, int]
    """How many calls of each API's track were made before this turn; empty without tracks."""
    end: Mapping[str, int]
    """How many after it."""


@dataclass(frozen=True, slots=True)
class Truth:
    """A task's scenario and its ground truth, turn by turn."""

    data: Mapping[str, Any]
    scenario: Scenario
    turns: tuple[TruthTurn, ...]
    sharing_matters: bool
    """Do its calls change an object that official instances of one process share?"""
    states: Mapping[str, Mapping[int, State]]
    """State of each API after so many calls of its track, where known; empty without tracks."""
    tracks: Tracks
    """Its calls, which a world may follow without running them; empty when their APIs cannot be told apart."""


_truths: dict[str, Truth] = {}


def truth_of(task: Task) -> Truth:
    """The ground truth of a task, kept for the next caller with the same `task.data`."""
    truth = _truths.get(task.task_id)
    if truth is None or truth.data is not task.data:
        truth = _made_truth(task)
        if len(_truths) >= _MAX_TRUTHS:
            _truths.clear()
        _truths[task.task_id] = truth
    return truth


def solution_of(task: Task) -> list[list[tuple[str, Mapping[str, Any]]]]:
    """The ground truth's calls, turn by turn, each as name and arguments: what a warm-up may imitate."""
    calls = [[parse_call(text) for text in turn.calls] for turn in truth_of(task).turns]
    return [[(call.name, call.args) for call in turn] for turn in calls]


def world_name(task: Task, role: str = "") -> str:
    """BFCL's instance prefix `model_[ground_truth_]eval_id` for a model called "envtune"."""
    return f"envtune_{role}eval_{task.task_id}"


def _made_truth(task: Task) -> Truth:
    try:
        config, apis, calls = (task.data[key] for key in ("initial_config", "involved_classes", "ground_truth"))
    except KeyError as error:
        raise TaskError(f"Task {task.task_id!r} has no {error} in its data; take tasks from load_tasks().") from None
    scenario = load_scenario(config, apis, long_context="long_context" in task.category)
    homes = [[_home(text, scenario) for text in texts] for texts in calls]
    if all(all(names) for names in homes):
        told = _told(scenario, calls, homes)
        if all(story.followable for story in told.values()):
            return _joined(task, scenario, homes, told)
    return _played(task, scenario)


def _home(text: str, scenario: Scenario) -> str:
    """The API that one plain call reaches; "" for a text that may reach several, or none."""
    call = plain_call(text)
    found = scenario.methods.get(call.method) if call else None
    return found.api if found else ""


def _played(task: Task, scenario: Scenario) -> Truth:
    """The ground truth played in one world, whatever its texts are."""
    world = World(scenario, world_name(task, "ground_truth_"))
    states = {api: state_of(copied(world.instance(api))) for api in scenario.templates}
    turns, sharing = [], False
    for texts in task.data["ground_truth"]:
        results = tuple(world.run(text) for text in texts)
        states = {**states, **{api: state_of(copied(world.instance(api))) for api in world.take_changed()}}
        keys = tuple(f"{index}:{called_name(text)}" for index, text in enumerate(texts))
        turns.append(TruthTurn(tuple(texts), keys, results, states, {}, {}))
        sharing = sharing or world.sharing_matters()
    return Truth(task.data, scenario, tuple(turns), sharing, {}, NO_TRACKS)


# --- stories: one API's part ---


@dataclass(frozen=True, slots=True)
class _Story:
    """What a sequence of calls did to one API instance."""

    texts: tuple[str, ...]
    meanings: tuple[Meaning | None, ...]
    results: tuple[str, ...]
    states: Mapping[int, State]
    """State after that many calls, for the numbers asked for."""
    sharing_matters: bool
    followable: bool
    """Would another world that makes the same calls compare equal?"""


def _told(scenario: Scenario, calls: Sequence[Sequence[str]], homes: Sequence[Sequence[str]]) -> dict[str, _Story]:
    texts: dict[str, list[str]] = {api: [] for api in scenario.templates}
    ends: dict[str, set[int]] = {api: {0} for api in scenario.templates}
    for turn, names in zip(calls, homes, strict=True):
        for text, api in zip(turn, names, strict=True):
            texts[api].append(text)
        for api in set(names):
            ends[api].add(len(texts[api]))
    return {
        api: _story(template, tuple(texts[api]), frozenset(ends[api])) for api, template in scenario.templates.items()
    }


@lru_cache(maxsize=4096)
def _story(template: Template, texts: tuple[str, ...], ends: frozenset[int]) -> _Story:
    world = World(scenario_of([template]), "")
    last = state_of(vars(template.instance))
    states, results, sharing = {0: last}, [], False
    for number, text in enumerate(texts, start=1):
        results.append(world.run(text))
        sharing = sharing or world.sharing_matters()
        if number in ends:
            last = states[number] = _state_after(last, world.instance(template.api))
    followable = all(_equals_itself(state) for state in states.values())
    meanings = tuple([_meaning(text, template.api) for text in texts])
    return _Story(texts, meanings, tuple(results), states, sharing, followable)


def _meaning(text: str, api: str) -> Meaning | None:
    call = parsed_arguments(text)
    if call is None:
        return None
    name, args, kwargs = call
    return meaning(api_methods(api)[name], name, args, kwargs)


def _joined(task: Task, scenario: Scenario, homes: Sequence[Sequence[str]], told: Mapping[str, _Story]) -> Truth:
    """The stories side by side, cut into the task's turns."""
    end = dict.fromkeys(scenario.templates, 0)
    states = {api: story.states[0] for api, story in told.items()}
    turns = []
    for texts, names in zip(task.data["ground_truth"], homes, strict=True):
        start, results = end.copy(), []
        for api in names:
            results.append(told[api].results[end[api]])
            end[api] += 1
        states = {**states, **{api: told[api].states[end[api]] for api in names}}
        keys = tuple([f"{index}:{text.partition('(')[0].strip()}" for index, text in enumerate(texts)])
        turns.append(TruthTurn(tuple(texts), keys, tuple(results), states, start, end.copy()))
    sharing = any(story.sharing_matters for story in told.values())
    tracks = Tracks(
        {api: story.texts for api, story in told.items()},
        {api: story.meanings for api, story in told.items()},
        {api: story.results for api, story in told.items()},
        {text: api for api, story in told.items() for text in story.texts},
    )
    return Truth(task.data, scenario, tuple(turns), sharing, {api: story.states for api, story in told.items()}, tracks)
