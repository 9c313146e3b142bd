"""Logits of many requests -> the next token of each with its log probability, none of them depending on the others.

Imports torch: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from envtune_agents.engine.reply import Reply

Tokens = list[tuple[int, float]]
"""The tokens a reply gets from one forward pass, each with its log probability: the forced or rightly guessed
ones, then a sampled one."""


def choose(logits: torch.Tensor, replies: Sequence[Reply]) -> list[Tokens | Exception]:
    """What each reply gets; the exception, where its grammar raised one.

    `logits`: [rows, vocab]; for each reply in order, a row for each of its forced or guessed tokens and one to sample
    from.
    """
    logits = logits.float()
    given = [len(reply.forced) + len(reply.guessed) + 1 for reply in replies]
    right = [
        _right(logits[end - rows : end], reply)
        for reply, rows, end in zip(replies, given, accumulate(given), strict=True)
    ]
    sizes = [len(reply.forced) + kept + 1 for reply, kept in zip(replies, right, strict=True)]
    if sizes != given:
        begins = (end - rows for rows, end in zip(given, accumulate(given), strict=True))
        logits = logits[[first + i for first, size in zip(begins, sizes, strict=True) for i in range(size)]]
    ends = torch.tensor(sizes).cumsum(0)
    scores = logits[(ends - 1).to(logits.device)]
    failures: dict[int, Exception] = {}
    for i, reply in enumerate(replies):
        if reply.grammar:
            try:
                reply.grammar.restrict(scores[i])
            except Exception as error:  # this caller's grammar failed; the others' replies go on
                failures[i] = error
    sampled = _sample(scores, replies)
    chosen = [
        token
        for reply, kept, last in zip(replies, right, sampled, strict=True)
        for token in (*reply.forced, *reply.guessed[:kept], last)
    ]
    scales = [scale for reply, size in zip(replies, sizes, strict=True) for scale in [_scale(reply)] * size]
    pairs = list(zip(chosen, _logprobs(logits, scales, chosen), strict=True))
    return [failures.get(i) or pairs[end - sizes[i] : end] for i, end in enumerate(ends.tolist())]


def _right(logits: torch.Tensor, reply: Reply) -> int:
    """How many of the guessed tokens, which are greedy replies' only, are the best ones at their places."""
    if not reply.guessed:
        return 0
    best = logits[: len(reply.guessed)].argmax(-1).tolist()
    return next((i for i, token in enumerate(reply.guessed) if token != best[i]), len(best))


def _sample(scores: torch.Tensor, replies: Sequence[Reply]) -> list[int]:
    """One token from each row: the best, or a drawn one where there is a temperature."""
    tokens: list[int] = scores.argmax(-1).tolist()
    warm = [i for i, reply in enumerate(replies) if reply.request.temperature]
    if warm:
        for i, token in zip(warm, _draw(scores[warm], [replies[i] for i in warm]), strict=True):
            tokens[i] = token
    return tokens


def _draw(scores: torch.Tensor, replies: Sequence[Reply]) -> list[int]:
    """One token from each row by its own random number: where the cumulated probability passes it."""
    scaled = scores / torch.tensor([[_scale(reply)] for reply in replies], device=scores.device)
    for row, reply in zip(scaled, replies, strict=True):
        if reply.request.top_k or reply.request.top_p < 1.0:
            row.copy_(truncate(row, reply.request.top_k, reply.request.top_p))
    cumulated = scaled.softmax(-1).cumsum(-1, dtype=torch.float64)
    at = torch.tensor([[reply.random.random()] for reply in replies], dtype=torch.float64, device=scores.device)
    found = torch.searchsorted(cumulated, at * cumulated[:, -1:], right=True)
    tokens: list[int] = found.clamp_(max=scores.shape[-1] - 1).flatten().tolist()
    return tokens


def _logprobs(logits: torch.Tensor, scales: Sequence[float], tokens: Sequence[int]) -> list[float]:
    """log softmax(logits / scale) at one token of each row."""
    if any(scale != 1.0 for scale in scales):
        logits = logits / torch.tensor([scales], device=logits.device).T
    picked = logits.gather(1, torch.tensor([tokens], device=logits.device).T).flatten()
    values: list[float] = (picked - logits.logsumexp(-1)).tolist()
    return values


def _scale(reply: Reply) -> float:
    return reply.request.temperature or 1.0


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
