"""One reply while it is sampled: its tokens, its text so far, where it stands in its grammar, and what ends it.

Imports no torch: what is sampled comes from `sampling`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from envtune_agents.engine.guess import Guesser
from envtune_agents.engine.request import FinishReason, GenerationRequest, GenerationResult, TokenEvent
from envtune_agents.engine.text import Detokenizer, StopText
from envtune_agents.weights import Weights


class Reply:
    """The completion of one request."""

    def __init__(
        self, weights: Weights, request: GenerationRequest, budget: int, emit: Callable[[TokenEvent], None] | None
    ) -> None:
        """`budget`: most tokens. `emit` is told each token; None when nobody wants them one by one."""
        self.request = request
        self.grammar = request.constraint.start() if request.constraint else None
        self.random = random.Random(request.seed)
        """Where its samples come from, whoever shares the batch."""
        self.unread: list[int] = []
        """Accepted or forced tokens that the model has not read; the forced ones, all but the first, are accepted when
        it has."""
        self.guessed: list[int] = []
        """Tokens that may follow the unread ones, to be read with them."""
        self._guesser: Guesser | None = None
        self._weights, self._budget, self._emit = weights, budget, emit
        self._detokenizer = Detokenizer(weights.decode)
        self._stop = StopText(request.stop)
        self._needs_text = emit is not None or any(request.stop)
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._text: list[str] = []
        self._finish: FinishReason | None = None

    @property
    def forced(self) -> list[int]:
        """Tokens that the grammar leaves no choice about, to be accepted before the next one is sampled."""
        return self.unread[1:]

    def guess(self, most: int) -> None:
        """Set `guessed` to at most that many tokens, and never to more than the reply can still have."""
        if self._guesser is None and most and not self.request.temperature and self.grammar is None:
            self._guesser = Guesser((*self.request.prompt_ids, *self._tokens))
        left = self._budget - len(self._tokens) - 1
        self.guessed = self._guesser.guess(min(most, left)) if self._guesser else []

    def confirm(self, right: int) -> None:
        """So many of the guessed tokens are what was sampled; the others are forgotten."""
        if self._guesser:
            self._guesser.learn(len(self.guessed), right)
        self.guessed = []

    def take(self, token: int, logprob: float) -> bool:
        """Add a sampled token, and ask the grammar what must follow it; True when the reply is over."""
        if self.accept(token, logprob):
            return True
        forced = self.grammar.advance(token) if self.grammar else ()
        self.unread = [token, *forced[: self._budget - len(self._tokens)]]
        return False

    def accept(self, token: int, logprob: float) -> bool:
        """Add a token; True when the reply is over."""
        if logprob != logprob:
            raise ArithmeticError(
                "The model's logits are not numbers (NaN): its weights or their precision are broken."
            )
        self._tokens.append(token)
        self._logprobs.append(logprob)
        if self._guesser:
            self._guesser.add(token)
        text = ""
        if token in self._weights.end_token_ids:
            self._finish = "end"
        elif self._needs_text:
            text = self._stop.feed(self._detokenizer.feed(token))
            self._text.append(text)
        if self._stop.stopped:
            self._finish = "stop"
        elif len(self._tokens) >= self._budget:
            self._finish = self._finish or "length"
        if self._emit:
            self._emit(TokenEvent(token, logprob, text))
        return self._finish is not None

    def result(self, cached_tokens: int) -> GenerationResult:
        """The finished reply; `cached_tokens` of its prompt were not read for it."""
        full = self._weights.decode(self._tokens[:-1] if self._finish == "end" else self._tokens)
        text, tail = full, ""
        if self._needs_text:
            sent = "".join(self._text)
            tail = self._stop.feed(self._detokenizer.flush()) + self._stop.flush()
            text = sent + tail
        return GenerationResult(
            token_ids=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            text=text,
            full_text=full if self._stop.stopped else text,
            tail=tail,
            finish_reason=self._finish or "length",
            prompt_tokens=len(self.request.prompt_ids),
            cached_tokens=cached_tokens,
        )
