"""The way out: from any point of a reply, tokens that bring it to its end as soon as the grammar lets it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envtune_agents.errors import require
from envtune_agents.grammar.lark import CLOSE, PARAMETER_END, THINK_END

LONGEST = 1024
"""Tokens after which the search gives up: a grammar that wants more has no practical end."""
GRAMMAR_INSTALL = "pip install 'envtune-agents[grammar]'"
_ANY_TEXT = "~"
"""A character that is admitted inside strings and free text and nowhere else."""
_ENDS_OF_TEXT = ('"', PARAMETER_END, THINK_END, CLOSE)
_ENDS_OF_VALUES = ("}", "]", '"', ",", "0", "\n")


class Closer:
    """Finds short ways out for one tokenizer."""

    def __init__(self, encode: Any, end_token_ids: Sequence[int], n_vocab: int) -> None:
        """`encode`: text -> token ids, without special tokens of its own."""
        self._probe: list[int] = encode(_ANY_TEXT)
        self._ends_of_text: list[list[int]] = [encode(text) for text in _ENDS_OF_TEXT]
        self._ends_of_values: list[list[int]] = [encode(text) for text in _ENDS_OF_VALUES]
        self._end = list(end_token_ids)
        self._n_vocab = n_vocab

    def path(self, matcher: Any) -> list[int] | None:
        """Tokens from where `matcher` stands to the end token, this included; None when none was found.

        What is still demanded gets the first value that comes to hand: 0, "", the first word of an enumeration.
        """
        copy = matcher.deep_copy()
        path: list[int] = []
        while len(path) <= LONGEST:
            if copy.is_stopped():
                return path
            step = self._step(copy)
            if not step or not copy.consume_tokens(step):
                return None
            path += step
        return None

    def _step(self, matcher: Any) -> list[int]:
        if matcher.is_accepting():
            return self._end[:1]
        if forced := matcher.compute_ff_tokens():
            return list(forced)
        if _admits(matcher, self._probe):
            return self._end_of_text(matcher) or self._first_allowed(matcher)
        admitted = (tokens for tokens in self._ends_of_values if _admits(matcher, tokens))
        return next(admitted, None) or self._first_allowed(matcher)

    def _end_of_text(self, matcher: Any) -> list[int] | None:
        """What ends the text: inside it, the other ends are text themselves."""
        for tokens in self._ends_of_text:
            if _admits(matcher, tokens):
                copy = matcher.deep_copy()
                if copy.consume_tokens(tokens) and (copy.is_stopped() or not _admits(copy, self._probe)):
                    return tokens
        return None

    def _first_allowed(self, matcher: Any) -> list[int]:
        numpy = require("numpy", feature="tool_choice", install=GRAMMAR_INSTALL)
        bitmask = require("llguidance.numpy", feature="tool_choice", install=GRAMMAR_INSTALL)
        words = bitmask.allocate_token_bitmask(1, self._n_vocab)
        bitmask.fill_next_token_bitmask(matcher, words, 0)
        allowed = numpy.unpackbits(words.view(numpy.uint8)[0], count=self._n_vocab, bitorder="little").nonzero()[0]
        return [int(allowed[0])] if len(allowed) else []


def _admits(matcher: Any, tokens: Sequence[int]) -> bool:
    return bool(matcher.validate_tokens(tokens) == len(tokens))
