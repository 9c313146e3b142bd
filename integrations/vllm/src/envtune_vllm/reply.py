"""One reply as a server sends it -> the events and the result that the local engine would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from envtune_agents.engine import GenerationRequest, GenerationResult, Reply, TokenEvent
from envtune_agents.errors import ServerError
from envtune_agents.weights import Weights
from envtune_vllm.dialects import Reader

NO_TOKEN = -1
"""`TokenEvent.token_id` where the server does not tell it."""


_END_CHARS = 64
"""By how much two decodings of the same ids may differ in length: one may show an end token."""


class ServedReply:
    """Gathers the answers to one request.

    Text, stop strings and end tokens are our own, made from the sampled ids as the local engine makes them. Where the
    server omits ids or log-probabilities, its text is all there is, and the result has no tokens.
    """

    def __init__(
        self, weights: Weights, request: GenerationRequest, budget: int, reader: Reader, *, traced: bool
    ) -> None:
        """`budget`: most tokens that were asked for. `traced`: whether the log-probabilities are of the kind that a
        trace holds."""
        self._events: list[TokenEvent] = []
        self._reply = Reply(weights, replace(request, constraint=None), budget, self._events.append)
        self._request = request
        self._reader = reader
        self._traced = traced
        self._reported = True
        self._over = False
        self._text = ""  # all of it, where ids are not reported
        self._theirs = ""
        self._cached = 0
        self._tokens = 0
        self.finish = ""
        """"stop" or "length" once the server said that the reply is finished."""

    @property
    def untraced(self) -> str:
        """Why the result holds no tokens, in words."""
        if not self._reported:
            return "it omits token ids or log-probabilities (vLLM returns both since 0.10.2)"
        return (
            "its log-probabilities are not those of the sampling distribution; start vLLM with --logprobs-mode "
            "processed_logprobs, as `envtune serve` does, and sample with top_p=1 and top_k=0"
        )

    def read(self, payload: Mapping[str, Any]) -> list[TokenEvent]:
        """What one answer, or one event of a stream, adds."""
        piece = self._reader.read(payload)
        self.finish = piece.finish or self.finish
        self._theirs += piece.text
        self._cached = piece.cached_tokens or self._cached
        self._tokens = piece.output_tokens or self._tokens + len(piece.token_ids or ())
        if piece.token_ids is None and self._reported:
            self._reported = False
            self._text = self._reply.result(0).text
        if not self._reported:
            self._text += piece.text
            return [TokenEvent(NO_TOKEN, 0.0, piece.text)] if piece.text else []
        self._accept(piece.token_ids or (), piece.logprobs)
        events, self._events[:] = list(self._events), []
        return events

    def result(self) -> GenerationResult:
        """The finished reply."""
        if not self._reported:
            return self._text_only()
        result = self._reply.result(self._cached)
        self._check_tokenizer(result.text)
        if result.finish_reason == "length" and self.finish == "stop":  # by an end token that only the server knows
            result = replace(result, finish_reason="end")
        if not self._traced:
            return replace(result, token_ids=(), logprobs=(), unreported_tokens=len(result.token_ids))
        return result

    def _accept(self, token_ids: tuple[int, ...], logprobs: tuple[float, ...]) -> None:
        for token, logprob in zip(token_ids, logprobs, strict=True):
            if self._over:
                return
            self._over = self._reply.accept(token, logprob)

    def _text_only(self) -> GenerationResult:
        return GenerationResult(
            token_ids=(),
            logprobs=(),
            text=self._text,
            full_text=self._text,
            tail="",
            finish_reason="length" if self.finish == "length" else "end",
            prompt_tokens=len(self._request.prompt_ids),
            cached_tokens=self._cached,
            unreported_tokens=self._tokens,
        )

    def _check_tokenizer(self, ours: str) -> None:
        """Raise when the server reads its ids as other text than we do: then it read our prompt as other text, too."""
        theirs = self._theirs
        shorter, longer = sorted((_plain(ours), _plain(theirs)), key=len)
        same = longer.startswith(shorter) and len(longer) - len(shorter) <= _END_CHARS
        if self._request.stop or (same and (shorter or not longer)):
            return
        raise ServerError(
            f"The server decodes this reply as {theirs[:80]!r}, the tokenizer here as {ours[:80]!r}: they are of "
            "different models, and the prompt was not what it should be. Give tokenizer= that of the served model."
        )


def _plain(text: str) -> str:
    """The ASCII of a text: what two decodings of the same ids share, also where a character is incomplete."""
    return text.encode("ascii", "ignore").decode().strip()
