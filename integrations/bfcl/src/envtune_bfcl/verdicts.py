"""Calls -> the official BFCL verdict, and the facts of every turn.

In: a task and the calls of each turn. Out: what `bfcl-eval` says about them in a fresh process, and both of its
checks for every turn, also after the first failing one. The live environment judges its turns with the same `Play`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from envtune_agents.errors import TaskError
from envtune_agents.progress import strict_score
from envtune_agents.types import Task, TurnEvidence, TurnScore
from envtune_bfcl.play import Play, Steps

FORCE_TERMINATED = "multi_turn:force_terminated"
EMPTY_TURN = "multi_turn:empty_turn_model_response"
STATE_MISMATCH = "multi_turn:instance_state_mismatch"
RESPONSE_MISMATCH = "multi_turn:execution_response_mismatch"

_NOT_PLAYED = TurnScore(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Replay:
    """The official verdict on one trajectory.

    As in BFCL the verdict is known at the first failing turn; the turns after it are played when they are asked for.
    """

    valid: bool
    error_type: str | None
    """BFCL's name of the first failure, such as "multi_turn:instance_state_mismatch"; None when valid."""
    _turns: _Turns = field(repr=False, compare=False)

    @property
    def turn_scores(self) -> tuple[TurnScore, ...]:
        """Length T: 0 or 1 for each turn of the task, with no early exit. A turn that was not played scores 0."""
        played = tuple([strict_score(facts) for facts in self.evidence])
        return played + (_NOT_PLAYED,) * (self._turns.n_turns - len(played))

    @property
    def evidence(self) -> tuple[TurnEvidence, ...]:
        """The facts of the turns that were played, at most T."""
        return tuple(self._turns.finish().evidence)

    @property
    def results(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """`results[turn][step][i]`: the official answer to each call of the turns that were played."""
        return tuple(self._turns.finish().results)


def replay(task: Task, calls: Sequence[Sequence[Sequence[str]]]) -> Replay:
    """Run a trajectory and give the official verdict.

    `calls[turn][step]` is a list of call texts such as "cd(folder='docs')". Steps without a call do not count, as in
    BFCL. A trajectory with fewer or more turns than the task is "multi_turn:force_terminated"; the task's own turns
    are scored all the same. Raises TaskError when `calls` has another shape.
    """
    turns = _Turns(Play(task), [_made(steps) for steps in calls[: len(task.turns)]], len(task.turns))
    error_type = FORCE_TERMINATED if len(calls) != len(task.turns) else turns.first_error()
    return Replay(error_type is None, error_type, turns)


class _Turns:
    """The turns of a trajectory, played as far as somebody asked."""

    def __init__(self, play: Play, todo: list[list[tuple[str, ...]]], n_turns: int) -> None:
        self._play: Play | None = play
        self._todo = todo
        self.n_turns = n_turns
        self.evidence: list[TurnEvidence] = []
        self.results: list[tuple[tuple[str, ...], ...]] = []

    def first_error(self) -> str | None:
        """BFCL's error type of the first turn that fails; plays until then."""
        while self._play is not None and len(self.evidence) < len(self._todo):
            error_type = turn_error(self._next(self._play))
            if error_type:
                return error_type
        self._play = None
        return None

    def finish(self) -> _Turns:
        """These turns, all played."""
        while self._play is not None and len(self.evidence) < len(self._todo):
            self._next(self._play)
        self._play = None
        return self

    def _next(self, play: Play) -> TurnEvidence:
        play.open_turn()
        self.results.append(play.run_steps(self._todo[len(self.evidence)]))
        self.evidence.append(play.close_turn())
        return self.evidence[-1]

    def __reduce__(self) -> tuple[object, ...]:
        """A pickle holds the facts of every turn and no world."""
        done = self.finish()
        return _finished, (done.evidence, done.results, done.n_turns)


def _finished(evidence: list[TurnEvidence], results: list[tuple[tuple[str, ...], ...]], n_turns: int) -> _Turns:
    turns = _Turns.__new__(_Turns)
    turns._play, turns._todo, turns.n_turns, turns.evidence, turns.results = None, [], n_turns, evidence, results
    return turns


def turn_error(evidence: TurnEvidence) -> str | None:
    """BFCL's error type for one turn, in the order of its checks; None when the turn passes."""
    if not evidence.judged:
        return None
    if not evidence.answered:
        return EMPTY_TURN
    if not all(evidence.state_checks.values()):
        return STATE_MISMATCH
    return None if all(evidence.response_checks.values()) else RESPONSE_MISMATCH


def _made(steps: Steps) -> list[tuple[str, ...]]:
    """The steps that count: BFCL drops one that holds nothing, or one empty text (`is_empty_execute_response`)."""
    made = []
    for step in steps:
        if isinstance(step, str):
            raise TaskError(f"calls[turn][step] is a list of call texts, got the text {step[:60]!r}")
        if step and (step[0] or len(step) > 1):
            made.append(tuple(step))
    return made
