"""Rollouts -> the plain JSON that the page shows: a light line for the lists, and the whole for one rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from envtune_agents.summary import outcomes_of
from envtune_agents.tape import TapeBranch, TapeSpan, tape_of
from envtune_agents.types import CallOutcome, Rollout, RolloutStep, RolloutTurn

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text, special tokens kept."""
MAX_CHARS = 20_000
"""Longer texts are cut in the page, with a note."""
MAX_TOKENS = 4_000
"""Replies with more tokens show their first ones."""


def listed(rollout: Rollout, run: int) -> dict[str, Any]:
    """The line of a rollout in the lists: what is filtered, sorted and searched at once."""
    outcomes = list(outcomes_of(rollout))
    words = {outcome.name for outcome in outcomes}
    words |= {outcome.failure.kind.value for outcome in outcomes if outcome.failure}
    words |= {outcome.hint.rule for outcome in outcomes if outcome.hint}
    return {
        "run": run,
        "id": rollout.rollout_id,
        "task": rollout.task_id,
        "category": rollout.category,
        "stage": rollout.stage,
        "model": rollout.model,
        "dial": rollout.hint_level,
        "reward": rollout.reward,
        "solved": rollout.solved,
        "stop": rollout.stop_reason.value,
        "error": rollout.error is not None,
        "steps": sum(len(turn.steps) for turn in rollout.turns),
        "calls": len(outcomes),
        "failures": sum(outcome.failure is not None for outcome in outcomes),
        "hints": sum(outcome.hint is not None for outcome in outcomes),
        "drifted": rollout.tape.drifted if rollout.tape else 0,
        "words": " ".join(sorted(words)),
    }


def whole(rollout: Rollout, decode: Decode | None) -> dict[str, Any]:
    """Everything about a rollout that the page can show. `decode` gives tokens their text."""
    tape = tape_of(rollout)
    places = {
        (span.turn, span.step): (index, branch, span)
        for index, branch in enumerate(tape.branches)
        for span in branch.spans
    }
    turns = []
    for turn_index, turn in enumerate(rollout.turns):
        steps = [
            _step(step, places.get((turn_index, step_index)), decode) for step_index, step in enumerate(turn.steps)
        ]
        turns.append(_turn(turn, steps))
    return {
        "id": rollout.rollout_id,
        "error": rollout.error,
        "n_turns": rollout.n_turns,
        "usage": asdict(rollout.usage),
        "timings": asdict(rollout.timings),
        "tape": asdict(rollout.tape) if rollout.tape else None,
        "turns": turns,
    }


def _turn(turn: RolloutTurn, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "user": _cut(turn.user),
        "score": asdict(turn.score) if turn.score else None,
        "evidence": asdict(turn.evidence) if turn.evidence else None,
        "steps": steps,
    }


def _step(step: RolloutStep, place: tuple[int, TapeBranch, TapeSpan] | None, decode: Decode | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "reply": _cut(step.reply),
        "finish": step.finish_reason,
        "constrained": step.constrained,
        "seconds": round(step.duration_s, 3),
        "calls": [_call(outcome) for outcome in step.outcomes],
    }
    return shown | (_tokens(step, *place, decode) if place else {})


def _tokens(step: RolloutStep, index: int, branch: TapeBranch, span: TapeSpan, decode: Decode | None) -> dict[str, Any]:
    """The sampled tokens of a step, and how much context was put before them."""
    number = branch.spans.index(span)
    before = branch.spans[number - 1].end if number else 0
    context = branch.completion_ids[before : span.start] if number else branch.prompt_ids
    ids = step.completion_token_ids[:MAX_TOKENS]
    return {
        "branch": index,
        "opens": number == 0,
        "context": len(context),
        "context_text": _cut(decode(context)) if decode else None,
        "tokens": [decode([token]) for token in ids] if decode else list(ids),
        "logprobs": [round(value, 4) for value in step.logprobs[:MAX_TOKENS]],
        "more_tokens": len(step.completion_token_ids) - len(ids),
    }


def _call(outcome: CallOutcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "args": _shortened(outcome.args),
        "content": _cut(outcome.content),
        "raw": _cut(outcome.raw_content),
        "failure": asdict(outcome.failure) if outcome.failure else None,
        "hint": asdict(outcome.hint) if outcome.hint else None,
        "hint_error": outcome.hint_error,
        "seconds": round(outcome.duration_s, 3),
    }


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, Mapping):
        return {str(key): _shortened(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(part) for part in value]
    return value


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}… ({len(text):,} characters)"
