"""Guesses of what a reply says next, looked up in what its text said before (prompt lookup decoding).

An agent's reply repeats file names, arguments and phrases of its prompt. A forward pass that reads a few guessed tokens
besides the next one costs little more, since it waits for the weights, and says which guesses are what greedy decoding
chooses: those are kept, so that the reply is the same with and without guesses. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

LOOKED_UP = 3
"""Last tokens of the text that must have stood together before."""
MOST, FIRST = 15, 3
"""Tokens guessed at once, at most and at first."""
REMEMBERED = 4096
"""Last tokens of a prompt that are looked through, which bounds time and memory."""
LONGEST_REST = 32
"""Most tokens without a guess after guesses that were wrong; it doubles with each one in a row."""


class Guesser:
    """What may follow in one text."""

    def __init__(self, text: Sequence[int]) -> None:
        """`text`: the prompt and what has been sampled."""
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Where the last token after these stood."""
        self._size = FIRST
        self._wrong = 0
        self._rest = 0
        for token in text[-REMEMBERED:]:
            self.add(token)

    def add(self, token: int) -> None:
        """The text goes on with this token."""
        self._after[tuple(self._text[-LOOKED_UP:])] = len(self._text)
        self._text.append(token)
        self._rest = max(0, self._rest - 1)

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may follow; [] when the text's end is new, or guesses have been wrong of late."""
        text, at = self._text, self._after.get(tuple(self._text[-LOOKED_UP:]))
        size = min(most, self._size)
        if at is None or self._rest or size < 1:
            return []
        period = len(text) - at  # a guess that reaches the end of the text goes on with itself
        return [text[at + i % period] for i in range(size)]

    def learn(self, guessed: int, right: int) -> None:
        """How many of the guessed tokens were right."""
        if not guessed:
            return
        self._size = min(MOST, 2 * self._size) if right == guessed else max(FIRST, right)
        self._wrong = 0 if right else self._wrong + 1
        self._rest = min(LONGEST_REST, 2**self._wrong) if self._wrong else 0
