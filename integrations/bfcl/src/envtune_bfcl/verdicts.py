"""Calls -> the official BFCL verdict, and the facts of every turn.

In: a task and the calls of each turn. Out: what `bfcl-eval` says about them in a fresh process, and both of its
checks for every turn, also after the first failing one. The live environment judges its turns with the same `Play`.

Official objects that all instances of one process share (long-context credit cards, the default lists of
`post_tweet`) let the ground truth's calls change the model's world and the other way round. Worlds here share nothing,
so the ground truth's side is worked out once for a task; the few episodes that change such an object are judged in
two worlds that do share them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from envtune_agents.errors import TaskError
from envtune_agents.progress import strict_score
from envtune_agents.types import Task, TurnEvidence, TurnScore
from envtune_bfcl.apis import Instance, Scenario, copied, load_scenario
from envtune_bfcl.calls import called_name
from envtune_bfcl.worlds import World

FORCE_TERMINATED = "multi_turn:force_terminated"
EMPTY_TURN = "multi_turn:empty_turn_model_response"
STATE_MISMATCH = "multi_turn:instance_state_mismatch"
RESPONSE_MISMATCH = "multi_turn:execution_response_mismatch"

_MAX_TRUTHS = 1024
_NOT_PLAYED = TurnScore(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Replay:
    """The official verdict on one trajectory."""

    valid: bool
    error_type: str | None
    """BFCL's name of the first failure, such as "multi_turn:instance_state_mismatch"; None when valid."""
    turn_scores: tuple[TurnScore, ...]
    """Length T: 0 or 1 for each turn of the task, with no early exit. A turn that was not played scores 0."""
    evidence: tuple[TurnEvidence, ...]
    """The facts of the turns that were played, at most T."""
    results: tuple[tuple[tuple[str, ...], ...], ...] = field(repr=False)
    """`results[turn][step][i]`: the official answer to each call of the turns that were played."""


def replay(task: Task, calls: Sequence[Sequence[Sequence[str]]]) -> Replay:
    """Run a trajectory and give the official verdict.

    `calls[turn][step]` is a list of call texts such as "cd(folder='docs')". Steps without a call do not count, as in
    BFCL. A trajectory with fewer or more turns than the task is "multi_turn:force_terminated"; the task's own turns
    are scored all the same. Raises TaskError when `calls` has another shape.
    """
    play = Play(task)
    results: list[tuple[tuple[str, ...], ...]] = []
    evidence: list[TurnEvidence] = []
    for steps in calls[: len(task.turns)]:
        play.open_turn()
        results.append(tuple([tuple([play.run(text) for text in step]) for step in _made(steps)]))
        evidence.append(play.close_turn())
    scores = [strict_score(facts) for facts in evidence]
    error_type = next(
        (turn_error(facts) for facts, score in zip(evidence, scores, strict=True) if score.value < 1), None
    )
    if len(calls) != len(task.turns):
        error_type = FORCE_TERMINATED
        scores += [_NOT_PLAYED] * (len(task.turns) - len(scores))
    return Replay(error_type is None, error_type, tuple(scores), tuple(evidence), tuple(results))


def turn_error(evidence: TurnEvidence) -> str | None:
    """BFCL's error type for one turn, in the order of its checks; None when the turn passes."""
    if not evidence.judged:
        return None
    if not evidence.answered:
        return EMPTY_TURN
    if not all(evidence.state_checks.values()):
        return STATE_MISMATCH
    return None if all(evidence.response_checks.values()) else RESPONSE_MISMATCH


def _made(steps: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The steps that count: BFCL drops one that holds nothing, or one empty text (`is_empty_execute_response`)."""
    for step in steps:
        if isinstance(step, str):
            raise TaskError(f"calls[turn][step] is a list of call texts, got the text {step[:60]!r}")
    return [step for step in steps if step and (step[0] or len(step) > 1)]


# --- the ground truth's side, once for a task ---


@dataclass(frozen=True, slots=True)
class State:
    """What BFCL compares of one instance: its attributes without a leading underscore."""

    values: tuple[Any, ...]
    pick: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    """Takes the same values from the attributes of another instance."""
    trees: tuple[tuple[str, Any], ...]
    """The attributes that are a file system's directories."""


@dataclass(frozen=True, slots=True)
class TruthTurn:
    """What the ground truth did in one turn. Nobody changes it."""

    calls: tuple[str, ...]
    keys: tuple[str, ...]
    """Name of each needed result in `TurnEvidence.response_checks`, such as "0:cd"."""
    results: tuple[str, ...]
    states: Mapping[str, State]
    """State of each API after the turn; the same object as in the turn before when no call reached it."""


@dataclass(frozen=True, slots=True)
class Truth:
    """A task's scenario and its ground truth, turn by turn."""

    data: Mapping[str, Any]
    scenario: Scenario
    turns: tuple[TruthTurn, ...]
    sharing_matters: bool


_truths: dict[str, Truth] = {}


def truth_of(task: Task) -> Truth:
    """The ground truth of a task, kept for the next caller with the same `task.data`."""
    truth = _truths.get(task.task_id)
    if truth is None or truth.data is not task.data:
        truth = _play_truth(task)
        if len(_truths) >= _MAX_TRUTHS:
            _truths.clear()
        _truths[task.task_id] = truth
    return truth


def _play_truth(task: Task) -> Truth:
    try:
        config, apis, calls = (task.data[key] for key in ("initial_config", "involved_classes", "ground_truth"))
    except KeyError as error:
        raise TaskError(f"Task {task.task_id!r} has no {error} in its data; take tasks from load_tasks().") from None
    scenario = load_scenario(config, apis, long_context="long_context" in task.category)
    world = World(scenario, _world_name(task, "ground_truth_"))
    states = {api: state_of(copied(world.instance(api))) for api in scenario.templates}
    turns, sharing = [], False
    for texts in calls:
        results = tuple(world.run(text) for text in texts)
        states = {**states, **{api: state_of(copied(world.instance(api))) for api in world.take_changed()}}
        keys = tuple(f"{index}:{called_name(text)}" for index, text in enumerate(texts))
        turns.append(TruthTurn(tuple(texts), keys, results, states))
        sharing = sharing or world.sharing_matters()
    return Truth(task.data, scenario, tuple(turns), sharing)


def _world_name(task: Task, role: str = "") -> str:
    """BFCL's instance prefix `model_[ground_truth_]eval_id` for a model called "envtune"."""
    return f"envtune_{role}eval_{task.task_id}"


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


# --- the model's side ---


class Play:
    """One episode beside its ground truth: open a turn, run calls, close it and read the facts.

    Turns beyond the ground truth's are not judged. `turns` is the log: the call texts of each opened turn.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._truth = truth_of(task)
        self._world = World(self._truth.scenario, _world_name(task))
        self._results: list[str] = []
        self._compared: dict[str, State] = {}
        self._same: dict[str, bool] = {}
        self._shared: _SharedPlay | None = None
        self.turns: list[list[str]] = []

    def open_turn(self) -> None:
        self.turns.append([])

    def run(self, text: str) -> str:
        """The official answer to one call text."""
        self.turns[-1].append(text)
        result = self._world.run(text)
        self._results.append(result)
        return result

    def close_turn(self) -> TurnEvidence:
        """The facts of the turn that is open. Every check of a turn that needed calls and had none is False."""
        turn = len(self.turns) - 1
        if self._shared is None and (self._truth.sharing_matters or self._world.sharing_matters()):
            self._shared = _SharedPlay(self._task, self._truth)
        if self._shared is not None:
            self._shared.catch_up(self.turns)
        truth = self._truth.turns[turn] if turn < len(self._truth.turns) else None
        if truth is None or not truth.calls:
            return TurnEvidence(turn, judged=False)
        if not self.turns[turn]:  # BFCL fails the turn here, before its checks
            return TurnEvidence(turn, dict.fromkeys(truth.states, False), dict.fromkeys(truth.keys, False), False)
        if self._shared is not None:
            states, found = self._shared.states, _found(self._shared.needed, self._shared.results)
        else:
            states, found = self._compare(truth), _found(truth.results, self._results)
        return TurnEvidence(turn, states, dict(zip(truth.keys, found, strict=True)))

    def _compare(self, truth: TruthTurn) -> dict[str, bool]:
        """Compare each API, unless neither side changed since it was last compared."""
        changed = self._world.take_changed()
        for api, state in truth.states.items():
            if api in changed or self._compared.get(api) is not state:
                self._compared[api] = state
                self._same[api] = same_state(self._world.instance(api), state)
        return self._same.copy()


class _SharedPlay:
    """The same episode in two worlds that share what official instances of one process share, in official order."""

    def __init__(self, task: Task, truth: Truth) -> None:
        self._truth = truth
        self._model = World(truth.scenario, _world_name(task))
        self._ideal = World(truth.scenario, _world_name(task, "ground_truth_"), twin=self._model)
        self._played = 0
        self.results: list[str] = []
        self.needed: tuple[str, ...] = ()
        self.states: dict[str, bool] = {}

    def catch_up(self, turns: Sequence[Sequence[str]]) -> None:
        """Play the turns that were not played yet: the model's calls of a turn, then the ground truth's."""
        for turn in range(self._played, len(turns)):
            self.results.extend(self._model.run(text) for text in turns[turn])
            wanted = self._truth.turns[turn].calls if turn < len(self._truth.turns) else ()
            self.needed = tuple(self._ideal.run(text) for text in wanted)
            self.states = {api: self._same(api) for api in self._truth.scenario.templates}
        self._played = len(turns)

    def _same(self, api: str) -> bool:
        return same_state(self._model.instance(api), state_of(vars(self._ideal.instance(api))))


def _found(needed: Sequence[str], results: Sequence[str]) -> list[bool]:
    """For each needed result: is it among `results`, counting repeats? (BFCL `_is_subsequence_unordered`)

    Counted by comparing, not by hashing: most results differ in length, and some have a hundred thousand characters.
    """
    return [results.count(result) > needed[:index].count(result) for index, result in enumerate(needed)]
