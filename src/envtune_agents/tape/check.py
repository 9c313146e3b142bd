"""Is the tape of a rollout what a trainer may rely on? Run on every record that is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import compress

from envtune_agents.errors import RecordError
from envtune_agents.tape.branches import Tape, TapeBranch, tape_of
from envtune_agents.types import Rollout, RolloutStep, TapeFacts

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text, special tokens kept."""
_ROUNDING = 1e-6
"""A log-probability of a certain token may come out this far above 0."""


def check_tape(rollout: Rollout, *, decode: Decode | None = None) -> TapeFacts:
    """The facts of a rollout's tape; `RecordError` when an invariant is broken.

    Checked: one log-probability, finite and at most 0, for each sampled token; masks, ids and log-probabilities of one
    length; every sampled token under mask 1 in exactly one branch; and, with the tokenizer's `decode`, that the tokens
    under the mask decode to exactly what the model said. A rollout without a token to train on is no error:
    `TapeFacts.note` says why.
    """
    facts = tape_facts(rollout, decode=decode)
    if facts.broken:
        raise RecordError(f"The token tape of {rollout.rollout_id} is broken: {facts.note}. Do not train on it.")
    return facts


def tape_facts(rollout: Rollout, *, decode: Decode | None = None) -> TapeFacts:
    """What `check_tape` found, as the record keeps it; a broken tape is told by `broken` and `note`."""
    tape = tape_of(rollout)
    problem = next(_problems(rollout, tape, decode), "")
    sampled = sum(sum(branch.loss_mask) for branch in tape.branches)
    limited = sum(span.end - span.start for branch in tape.branches for span in branch.spans if span.constrained)
    return TapeFacts(
        branches=len(tape.branches),
        drifted=tape.drifted,
        untraced=tape.untraced,
        sampled_tokens=sampled,
        on_policy_tokens=sampled - limited,
        broken=bool(problem),
        note=problem or _why_untrainable(rollout, tape, sampled, sampled - limited),
    )


def tape_problems(rollout: Rollout, *, decode: Decode | None = None) -> Iterator[str]:
    """Every broken invariant of a rollout's tape, in words; none for a tape to train on or an empty one."""
    yield from _problems(rollout, tape_of(rollout), decode)


def _problems(rollout: Rollout, tape: Tape, decode: Decode | None) -> Iterator[str]:
    for turn_index, turn in enumerate(rollout.turns):
        for step_index, step in enumerate(turn.steps):
            for problem in _step_problems(step, decode):
                yield f"turn {turn_index}, step {step_index}: {problem}"
    yield from _branch_problems(rollout, tape.branches)


def _step_problems(step: RolloutStep, decode: Decode | None) -> Iterator[str]:
    ids, logprobs = step.completion_token_ids, step.logprobs
    if len(logprobs) != len(ids):
        yield f"{len(ids)} sampled tokens but {len(logprobs)} log-probabilities"
    if ids and not step.prompt_token_ids:
        yield "sampled tokens without a prompt"
    if logprobs and (not all(map(math.isfinite, logprobs)) or max(logprobs) > _ROUNDING):
        yield "a log-probability that is not a finite number of at most 0"
    if decode and ids and decode(ids) != step.reply and decode(ids[:-1]) != step.reply:
        yield f"the sampled tokens decode to {decode(ids)[:80]!r}, the reply says {step.reply[:80]!r}"


def _branch_problems(rollout: Rollout, branches: Sequence[TapeBranch]) -> Iterator[str]:
    trained: list[tuple[int, int]] = []
    for index, branch in enumerate(branches):
        if not len(branch.completion_ids) == len(branch.loss_mask) == len(branch.logprobs):
            yield f"branch {index}: ids, mask and log-probabilities differ in length"
            continue
        if min(branch.prompt_ids, default=0) < 0 or min(branch.completion_ids, default=0) < 0:
            yield f"branch {index}: a negative token id"
        steps = [rollout.turns[turn].steps[step] for turn, step in branch.steps]
        said = [token for step in steps for token in step.completion_token_ids]
        if list(compress(branch.completion_ids, branch.loss_mask)) != said:
            yield f"branch {index}: the tokens under the mask are not those that were sampled"
        trained += branch.steps
    wanted = [
        (turn_index, step_index)
        for turn_index, turn in enumerate(rollout.turns)
        for step_index, step in enumerate(turn.steps)
        if step.completion_token_ids
    ]
    if sorted(trained) != wanted:
        yield "a reply is in no branch, or in two"


def _why_untrainable(rollout: Rollout, tape: Tape, sampled: int, on_policy: int) -> str:
    if sampled and on_policy:
        return ""
    if sampled:
        return "no on-policy token: a grammar limited every reply"
    if tape.untraced:
        return "no trainable token: the model reports no token ids; usable for SFT on text only"
    return f"no trainable token: no model call was finished ({rollout.stop_reason.value})"
