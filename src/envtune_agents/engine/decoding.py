"""The decode loop of one request: prefill in chunks, then one token after another.

Imports torch: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from envtune_agents.engine.kv_cache import PrefixCache, Slot
from envtune_agents.engine.request import FinishReason, GenerationRequest, GenerationResult, TokenEvent
from envtune_agents.engine.text import Detokenizer, StopText
from envtune_agents.errors import ContextOverflowError
from envtune_agents.weights import Weights

PREFILL_CHUNK = 512
"""Prompt tokens read at once: bounds memory, and how long a cancelled request holds the model."""


class CancelledError(Exception):
    """The caller went away; never leaves the engine thread."""


def decode(
    weights: Weights,
    prefixes: PrefixCache,
    request: GenerationRequest,
    *,
    emit: Callable[[TokenEvent], None],
    cancelled: Callable[[], bool],
) -> GenerationResult:
    """Answer one request; raises `ContextOverflowError` when its prompt does not fit, `CancelledError` on request.

    Whatever was read goes back into `prefixes`, also when the request is cancelled.
    """
    budget = token_budget(weights, request)
    slot = prefixes.take(request.prompt_ids, len(request.prompt_ids) + min(budget, 256))
    cached = len(slot.ids)
    run = _Run(weights, request, slot, budget, emit, cancelled)
    try:
        with torch.inference_mode():
            run.sample_all()
    finally:
        prefixes.put(slot)
    return run.result(cached)


def token_budget(weights: Weights, request: GenerationRequest) -> int:
    """How many tokens may be sampled: the request's wish, clipped to what the context leaves."""
    prompt, limit = len(request.prompt_ids), weights.context_length
    if not prompt:
        raise ValueError("The prompt holds no token; at least one is needed.")
    if prompt >= limit:
        raise ContextOverflowError(
            f"The prompt holds {prompt} tokens and the context of '{weights.name}' is {limit}, the reply included. "
            "Shorten or summarise the conversation, offer fewer tools, or use a model with a longer context."
        )
    return max(1, min(request.max_new_tokens, limit - prompt))


class _Run:
    """The state of one request while it is decoded."""

    def __init__(
        self,
        weights: Weights,
        request: GenerationRequest,
        slot: Slot,
        budget: int,
        emit: Callable[[TokenEvent], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._weights, self._request, self._slot, self._budget = weights, request, slot, budget
        self._emit, self._cancelled = emit, cancelled
        self._device = weights.model.device
        self._generator = _generator(request.seed, self._device)
        self._grammar = request.constraint.start() if request.constraint else None
        self._detokenizer = Detokenizer(weights.decode)
        self._stop = StopText(request.stop)
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._text: list[str] = []
        self._finish: FinishReason | None = None

    def sample_all(self) -> None:
        """Decode until something ends the reply."""
        logits = self._prefill()
        while True:
            token = self._choose(logits[-1])
            forced = list(self._grammar.advance(token)) if self._grammar else []
            if self._accept(token, logits[-1]):
                return
            logits = self._feed([token, *forced], keep=len(forced) + 1)
            if any(self._accept(token, row) for token, row in zip(forced, logits, strict=False)):
                return

    def result(self, cached_tokens: int) -> GenerationResult:
        """The finished reply."""
        rest = self._detokenizer.flush()
        sent = "".join(self._text)
        tail = self._stop.feed(rest) + self._stop.flush()
        ended = self._finish == "end"
        full = self._weights.decode(self._tokens[:-1] if ended else self._tokens)
        return GenerationResult(
            token_ids=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            text=sent + tail,
            full_text=full if self._stop.stopped else sent + tail,
            tail=tail,
            finish_reason=self._finish or "length",
            prompt_tokens=len(self._request.prompt_ids),
            cached_tokens=cached_tokens,
        )

    def _prefill(self) -> torch.Tensor:
        """Read the part of the prompt that the slot lacks; logits of its last token, shape [1, vocab]."""
        new = list(self._request.prompt_ids[len(self._slot.ids) :])
        for start in range(0, len(new), PREFILL_CHUNK):
            logits = self._feed(new[start : start + PREFILL_CHUNK], keep=1)
        return logits

    def _feed(self, token_ids: Sequence[int], *, keep: int) -> torch.Tensor:
        """Read tokens into the slot; logits of the last `keep` ones, shape [keep, vocab]."""
        if self._cancelled():
            raise CancelledError
        ids = torch.tensor([list(token_ids)], device=self._device)
        output = self._weights.model(
            input_ids=ids, past_key_values=self._slot.cache, use_cache=True, logits_to_keep=keep
        )
        self._slot.ids.extend(token_ids)
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _choose(self, logits: torch.Tensor) -> int:
        """Sample one token from logits of shape [vocab]."""
        scores = logits.clone()
        if self._grammar:
            self._grammar.restrict(scores)
        if not self._request.temperature:
            return int(scores.argmax())
        scores = truncate(scores / self._request.temperature, self._request.top_k, self._request.top_p)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))

    def _accept(self, token: int, logits: torch.Tensor) -> bool:
        """Add a sampled token to the reply; True when it ends it. `logits`: [vocab], those it was sampled from."""
        scale = self._request.temperature or 1.0
        logprob = float((logits / scale).log_softmax(-1)[token])
        self._tokens.append(token)
        self._logprobs.append(logprob)
        if token in self._weights.end_token_ids:
            self._finish = "end"
            text = ""
        else:
            text = self._stop.feed(self._detokenizer.feed(token))
            self._text.append(text)
        if self._stop.stopped:
            self._finish = "stop"
        elif len(self._tokens) >= self._budget:
            self._finish = self._finish or "length"
        self._emit(TokenEvent(token, logprob, text))
        return self._finish is not None


def truncate(scores: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """`scores` ([vocab], any scale) with everything outside top-k, then outside top-p, at minus infinity."""
    if 0 < top_k < scores.numel():
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], float("-inf"))
    if top_p < 1.0:
        ordered, order = scores.sort(descending=True)
        probability = ordered.softmax(-1)
        beyond = probability.cumsum(-1) - probability >= top_p
        scores = scores.index_fill(0, order[beyond], float("-inf"))
    return scores


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
