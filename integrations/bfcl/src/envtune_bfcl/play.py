"""One episode beside its ground truth: calls in, answers and the facts of every turn out.

Official objects that all instances of one process share (long-context credit cards, the default lists of
`post_tweet`) let the ground truth's calls change the model's world and the other way round. Worlds here share nothing,
so the ground truth's side is worked out once for a task; the few episodes that change such an object are judged in
two worlds that do share them.
"""

from __future__ import annotations

from collections.abc import Sequence

from envtune_agents.types import Task, TurnEvidence
from envtune_bfcl.copies import Instance
from envtune_bfcl.truths import State, Truth, TruthTurn, equal_states, same_state, state_of, truth_of, world_name
from envtune_bfcl.worlds import World

Steps = Sequence[Sequence[str]]
"""The call texts of each step of one turn."""


class Play:
    """One episode beside its ground truth: open a turn, run calls, close it and read the facts.

    Turns beyond the ground truth's are not judged. `turns` is the log: the call texts of each opened turn.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._truth = truth_of(task)
        self._world = World(self._truth.scenario, world_name(task), tracks=self._truth.tracks)
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

    def run_steps(self, steps: Steps) -> tuple[tuple[str, ...], ...]:
        """The official answers to all calls of a turn that has had none."""
        turn = len(self.turns) - 1
        texts = [text for step in steps for text in step]
        truth = self._truth.turns[turn] if turn < len(self._truth.turns) else None
        if truth is None or texts != list(truth.calls) or not self._world.stands_at(truth.start) or not truth.end:
            return tuple([tuple([self.run(text) for text in step]) for step in steps])
        self._world.jump(truth.end)
        self.turns[turn] = texts
        self._results += truth.results
        answers = iter(truth.results)
        return tuple([tuple([next(answers) for _ in step]) for step in steps])

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
        elif truth.end and self._world.stands_at(truth.end):
            return TurnEvidence(turn, dict.fromkeys(truth.states, True), dict.fromkeys(truth.keys, True))
        else:
            states, found = self._compare(truth), _found(truth.results, self._results)
        return TurnEvidence(turn, states, dict(zip(truth.keys, found, strict=True)))

    def sides(self, turn: int) -> dict[str, tuple[Instance, State]]:
        """For each API the model's instance, not to be changed, beside the state that a judged turn should end in."""
        if self._shared is not None:
            return self._shared.sides()
        return {api: (self._world.instance(api), state) for api, state in self._truth.turns[turn].states.items()}

    def instances(self) -> dict[str, Instance]:
        """The model's instance of each API, not to be changed."""
        return {api: self._world.instance(api) for api in self._truth.scenario.templates}

    def needed(self, turn: int) -> dict[str, tuple[str, str]]:
        """Name of each needed result of a judged turn -> the ground truth's call and its answer."""
        truth = self._truth.turns[turn]
        results = truth.results if self._shared is None else self._shared.needed
        return {key: (call, result) for key, call, result in zip(truth.keys, truth.calls, results, strict=True)}

    def _compare(self, truth: TruthTurn) -> dict[str, bool]:
        """Compare each API, unless neither side changed since it was last compared."""
        changed = self._world.take_changed()
        for api, state in truth.states.items():
            if api in changed or self._compared.get(api) is not state:
                self._compared[api] = state
                self._same[api] = self._is_same(api, state)
        return self._same.copy()

    def _is_same(self, api: str, wanted: State) -> bool:
        followed = self._world.followed(api)
        known = None if followed is None else self._truth.states[api].get(followed)
        return same_state(self._world.instance(api), wanted) if known is None else equal_states(known, wanted)


class _SharedPlay:
    """The same episode in two worlds that share what official instances of one process share, in official order."""

    def __init__(self, task: Task, truth: Truth) -> None:
        self._truth = truth
        self._model = World(truth.scenario, world_name(task))
        self._ideal = World(truth.scenario, world_name(task, "ground_truth_"), twin=self._model)
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

    def sides(self) -> dict[str, tuple[Instance, State]]:
        """The model's instance of each API beside the state of the ground truth's."""
        return {
            api: (self._model.instance(api), state_of(vars(self._ideal.instance(api))))
            for api in self._truth.scenario.templates
        }

    def _same(self, api: str) -> bool:
        return same_state(self._model.instance(api), state_of(vars(self._ideal.instance(api))))


def _found(needed: Sequence[str], results: Sequence[str]) -> list[bool]:
    """For each needed result: is it among `results`, counting repeats? (BFCL `_is_subsequence_unordered`)

    Counted by comparing, not by hashing: most results differ in length, and some have a hundred thousand characters.
    """
    return [results.count(result) > needed[:index].count(result) for index, result in enumerate(needed)]
