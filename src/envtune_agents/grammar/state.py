"""A compiled grammar, and where one reply stands in it: which tokens may come next, and when it is time to close."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from envtune_agents.errors import ConstraintError, require
from envtune_agents.grammar.closing import GRAMMAR_INSTALL, Closer

SPARE = 4
"""Tokens left over when a reply is made to close."""


@dataclass(frozen=True, slots=True)
class GrammarConstraint:
    """A grammar compiled for one tokenizer; `start` gives the state of one reply. Shared by any number of replies."""

    text: str
    """The grammar in Lark, as llguidance reads it: what a server that decodes by it is sent."""
    matcher: Any
    """`llguidance.LLMatcher` at the start of the grammar; only ever copied."""
    n_vocab: int
    """Tokens of the tokenizer; a model may have more logits."""
    closer: Closer
    jump: int
    """Most tokens by which one sampled token may put off the end of the reply."""
    budget: int | None = None
    """Tokens of the reply, in all; None never makes it close."""

    def within(self, max_new_tokens: int) -> GrammarConstraint:
        """The same grammar for a reply of at most so many tokens: near the end of them it is made to close."""
        return replace(self, budget=max_new_tokens)

    def start(self) -> GrammarState:
        """A fresh state for one reply."""
        return GrammarState(self)


class GrammarState:
    """Where one reply stands in a grammar."""

    def __init__(self, constraint: GrammarConstraint) -> None:
        self._constraint = constraint
        self._matcher = constraint.matcher.deep_copy()
        self._left = constraint.budget
        self._check_at = constraint.budget or 0  # look at the way out when this many tokens are left
        self._way_out: list[int] = []
        self._mask: _Mask | None = None

    def restrict(self, logits: Any) -> None:
        """Set refused tokens of `logits` (float tensor, [vocab]) to minus infinity, in place."""
        if self._left is not None and self._left <= self._check_at and not self._way_out:
            self._look_for_the_way_out(self._left)
        if self._way_out:
            kept = logits[self._way_out[0]].clone()
            logits.fill_(float("-inf"))
            logits[self._way_out[0]] = kept
            return
        if self._mask is None:
            self._mask = _Mask(self._constraint.n_vocab, logits)
        self._mask.apply(self._matcher, logits)

    def advance(self, token_id: int) -> Sequence[int]:
        """Take a sampled token; the tokens the grammar leaves no choice about, taken too."""
        if self._matcher.is_stopped():
            return []
        forced: list[int] = self._matcher.compute_ff_tokens() if self._matcher.consume_token(token_id) else []
        if self._matcher.is_error() or not self._matcher.consume_tokens(forced):
            raise ConstraintError(f"llguidance stopped in the middle of a reply: {self._matcher.get_error()}")
        taken = 1 + len(forced)
        self._way_out = self._way_out[taken:]
        if self._left is not None:
            self._left -= taken
        return forced

    def _look_for_the_way_out(self, left: int) -> None:
        """Take the way out when there is just room for it, else say when to look again.

        Each token costs one of those left and puts the end off by `jump` at most, so that nothing can go wrong before.
        """
        constraint = self._constraint
        path = constraint.closer.path(self._matcher)
        if path is None or len(path) > left:
            self._check_at = -1  # it cannot close in time: it will be cut, and a cut call is never run
            return
        slack = left - len(path) - constraint.jump - SPARE
        if slack <= 0:
            self._way_out = path
        else:
            self._check_at = left - max(1, slack // (constraint.jump + 1))


class _Mask:
    """Memory for one mask, on the device of the logits, used again for every token."""

    def __init__(self, n_vocab: int, logits: Any) -> None:
        numpy = require("numpy", feature="tool_choice", install=GRAMMAR_INSTALL)
        torch = require("torch", feature="tool_choice", install=GRAMMAR_INSTALL)
        self._bitmask = require("llguidance.numpy", feature="tool_choice", install=GRAMMAR_INSTALL)
        self._unpack = numpy.unpackbits
        self._words = self._bitmask.allocate_token_bitmask(1, n_vocab)
        self._bytes = self._words.view(numpy.uint8)[0]
        self._refused = torch.ones(logits.shape[-1], dtype=torch.bool)
        self._bits = self._refused.numpy()[:n_vocab]
        self._equal = numpy.equal

    def apply(self, matcher: Any, logits: Any) -> None:
        """Refuse what `matcher` refuses, and every logit beyond the tokenizer's tokens."""
        self._bitmask.fill_next_token_bitmask(matcher, self._words, 0)
        allowed = self._unpack(self._bytes, count=len(self._bits), bitorder="little")
        self._equal(allowed, 0, out=self._bits)
        logits.masked_fill_(self._refused.to(logits.device, non_blocking=True), float("-inf"))
