"""Model calls -> branches: runs of tokens in which each prompt goes on exactly where the reply before it ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envtune_agents.types import TOKEN_TRACE_KEY, Rollout, TokenTrace

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TapeSpan:
    """Where one reply lies in a branch."""

    turn: int
    """0-based turn of the rollout."""
    step: int
    """0-based step of that turn."""
    start: int
    """Index in `TapeBranch.completion_ids` of the reply's first token."""
    end: int
    """Index after its last token."""
    constrained: bool = False
    """True when a grammar limited the reply: its tokens are not on-policy."""


@dataclass(frozen=True, slots=True)
class TapeBranch:
    """One training row: a prompt, and everything after it in one unbroken run of tokens.

    `completion_ids`, `loss_mask` and `logprobs` have one length, T_completion.
    """

    prompt_ids: Ids
    """Length T_prompt: the first call's prompt, all context. Replies that another branch trains may be part of it."""
    completion_ids: Ids
    """The first reply, then the context and the reply of each further call."""
    loss_mask: Ids
    """1 where the model sampled the token, 0 where it is context."""
    logprobs: tuple[float, ...]
    """See `TokenTrace.logprobs`; 0.0 where the token is context."""
    spans: tuple[TapeSpan, ...]
    """One for each reply, in order."""

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        """(turn, step) of each reply, in order."""
        return tuple((span.turn, span.step) for span in self.spans)

    @property
    def on_policy_mask(self) -> Ids:
        """`loss_mask` without the replies that a grammar limited: what policy-gradient training may use."""
        mask = list(self.loss_mask)
        for span in self.spans:
            if span.constrained:
                mask[span.start : span.end] = [0] * (span.end - span.start)
        return tuple(mask)

    def said(self, span: TapeSpan) -> Ids:
        """The tokens of one reply."""
        return self.completion_ids[span.start : span.end]


@dataclass(frozen=True, slots=True)
class Tape:
    """All branches of one episode. Each sampled token has mask 1 in exactly one of them."""

    branches: tuple[TapeBranch, ...]
    drifted: int
    """Calls whose prompt should have gone on from sampled tokens and did not: it was rendered anew."""
    untraced: int
    """Calls whose model reported no tokens; they are in no branch."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One model call, from a rollout or from a message."""

    turn: int
    step: int
    prompt: Ids
    completion: Ids
    logprobs: tuple[float, ...]
    constrained: bool


@dataclass(slots=True)
class _Growing:
    """A branch that later calls may go on with."""

    prompt: Ids
    whole: Ids
    """Prompt and completion together."""
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[TapeSpan] = field(default_factory=list)

    def add(self, call: _Call) -> None:
        context = len(call.prompt) - len(self.prompt) - len(self.mask)
        start = len(self.mask) + context
        self.mask += [0] * context + [1] * len(call.completion)
        self.logprobs += [0.0] * context + list(call.logprobs)
        self.spans.append(TapeSpan(call.turn, call.step, start, len(self.mask), call.constrained))
        self.whole = call.prompt + call.completion

    def done(self) -> TapeBranch:
        completion = self.whole[len(self.prompt) :]
        return TapeBranch(self.prompt, completion, tuple(self.mask), tuple(self.logprobs), tuple(self.spans))


def branches_of(rollout: Rollout) -> tuple[TapeBranch, ...]:
    """The training rows of a rollout; none when its model reported no tokens.

    A call whose prompt begins with all tokens of an earlier call goes on in that branch; any other opens a new one.
    """
    return tape_of(rollout).branches


def tape_of(rollout: Rollout) -> Tape:
    """The branches of a rollout, with the number of calls that had to be rendered anew."""
    calls = list(_calls_of(rollout))
    traced = [call for call in calls if call.completion]
    branches, drifted = _grown(traced)
    return Tape(branches, drifted, len(calls) - len(traced))


def tape_of_messages(messages: Iterable[BaseMessage]) -> Tape:
    """The tape of the AI messages of any graph, in the order in which they were said.

    Parallel branches and sub-agents become branches of their own: a call goes on with whichever earlier call its prompt
    begins with. The turn of a span is the number of human messages before it, less one; the step counts AI messages
    since. `TapeRecorder` gathers the messages that a graph's final state does not show.
    """
    calls: list[_Call] = []
    seen: set[str] = set()
    turn, step, drifted, untraced = -1, 0, 0, 0
    for message in messages:
        if message.type == "human":
            turn, step = turn + 1, 0
        if message.type not in ("ai", "AIMessageChunk"):
            continue
        fields = message.response_metadata.get(TOKEN_TRACE_KEY)
        if message.id is not None and message.id in seen:
            continue
        seen.add(message.id or f"message {len(seen)}")
        if fields:
            trace = TokenTrace.from_plain(fields)
            calls.append(_call(max(turn, 0), step, trace))
            drifted += message.response_metadata.get("continuous") is False
        else:
            untraced += 1
        step += 1
    return Tape(_grown(calls)[0], drifted, untraced)


def _call(turn: int, step: int, trace: TokenTrace) -> _Call:
    return _Call(
        turn, step, trace.prompt_token_ids, trace.completion_token_ids, trace.logprobs, constrained=trace.constrained
    )


def _calls_of(rollout: Rollout) -> Iterator[_Call]:
    for turn_index, turn in enumerate(rollout.turns):
        for step_index, step in enumerate(turn.steps):
            yield _Call(
                turn_index,
                step_index,
                tuple(step.prompt_token_ids),
                tuple(step.completion_token_ids),
                tuple(step.logprobs),
                step.constrained,
            )


def _grown(calls: Sequence[_Call]) -> tuple[tuple[TapeBranch, ...], int]:
    """The branches, and the number of calls that did not go on from the call just before them."""
    branches: list[_Growing] = []
    last: _Growing | None = None
    drifted = 0
    for call in calls:
        branch = last if last and _goes_on(call.prompt, last.whole) else _longest(branches, call.prompt)
        drifted += last is not None and branch is not last
        if branch is None:
            branch = _Growing(call.prompt, call.prompt)
            branches.append(branch)
        branch.add(call)
        last = branch
    return tuple(branch.done() for branch in branches), drifted


def _longest(branches: Sequence[_Growing], prompt: Ids) -> _Growing | None:
    """The longest branch that a prompt begins with."""
    parents = [branch for branch in branches if _goes_on(prompt, branch.whole)]
    return max(parents, key=lambda parent: len(parent.whole), default=None)


def _goes_on(prompt: Ids, whole: Ids) -> bool:
    return prompt[: len(whole)] == whole
