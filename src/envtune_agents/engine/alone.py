"""One request after another, each with the model's own attention and cache: for models that cannot be packed.

Imports torch: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from envtune_agents.engine.job import Job, check_adapter, token_budget, use_adapter
from envtune_agents.engine.kv_cache import PrefixCache, Slot
from envtune_agents.engine.reply import Reply
from envtune_agents.engine.sampling import choose
from envtune_agents.engine.turns import Waiting
from envtune_agents.weights import Weights

CHUNK = 512
"""Prompt tokens read in one pass."""


@dataclass(slots=True)
class _Row:
    """The request that runs."""

    job: Job
    reply: Reply
    slot: Slot
    cached: int


class Alone:
    """Serves one job at a time, callers in turn: for sliding windows, linear attention, whatever cannot be packed."""

    batches: ClassVar[bool] = False

    def __init__(self, weights: Weights, cache_bytes: int) -> None:
        self._weights = weights
        self._cache_bytes = cache_bytes
        self._prefixes = PrefixCache(weights.model.config, cache_bytes)
        self._waiting = Waiting()
        self._row: _Row | None = None

    def add(self, job: Job) -> None:
        """Take a job into the queue."""
        self._waiting.add(job)

    @property
    def busy(self) -> bool:
        """Whether a job waits or runs."""
        return bool(self._waiting or self._row)

    def clear_cache(self) -> None:
        """Forget the keys and values of finished requests, and of the running one when it ends."""
        self._prefixes = PrefixCache(self._weights.model.config, self._cache_bytes)
        if self._row is not None:
            self._row.slot.stale = True

    def model_touched(self) -> None:
        """A caller's function had the model; the adapter is set for every pass anyway."""

    def fail(self, error: Exception) -> None:
        """Tell every caller that `error` ended their request."""
        if self._row is not None:
            self._row.job.emit(error)
            self._end(self._row)
        for job in self._waiting.leave():
            job.emit(error)

    def step(self) -> None:
        """One forward pass of the request that runs, or of the next one."""
        job = self._row.job if self._row else self._waiting.take()
        try:
            if not job.cancelled.is_set():
                self._row = self._row or self._begin(job)
                if not self._advance(self._row):
                    return
        except Exception as error:  # this caller's request failed; the engine goes on with the next one
            job.emit(error)
        if self._row is not None:
            self._end(self._row)

    def _begin(self, job: Job) -> _Row:
        request = job.request
        check_adapter(self._weights.model, request.adapter)
        budget = token_budget(self._weights, request)
        reply = job.reply(self._weights, budget)
        slot = self._prefixes.take(request.prompt_ids, len(request.prompt_ids) + min(budget, 256), request.adapter)
        return _Row(job, reply, slot, len(slot.ids))

    def _advance(self, row: _Row) -> bool:
        """Read the next tokens and take what they lead to; True when the reply is over."""
        reply, request = row.reply, row.reply.request
        tokens = reply.unread or request.prompt_ids[len(row.slot.ids) :][:CHUNK]
        logits = self._read(row, tokens)
        if not reply.unread and len(row.slot.ids) < len(request.prompt_ids):
            return False
        [chosen] = choose(logits, [reply])
        if isinstance(chosen, Exception):
            raise chosen
        *forced, sampled = chosen
        if not any(reply.accept(*token) for token in forced) and not reply.take(*sampled):
            return False
        row.job.emit(reply.result(row.cached))
        return True

    def _read(self, row: _Row, tokens: Sequence[int]) -> torch.Tensor:
        """Read tokens into the slot; the logits that are wanted, [forced + 1, vocab]."""
        use_adapter(self._weights.model, row.reply.request.adapter)
        ids = torch.tensor([list(tokens)], device=self._weights.model.device)
        keep = len(row.reply.forced) + 1
        with torch.inference_mode():
            output = self._weights.model(
                input_ids=ids, past_key_values=row.slot.cache, use_cache=True, logits_to_keep=keep
            )
        row.slot.ids.extend(tokens)
        logits: torch.Tensor = output.logits[0]
        return logits

    def _end(self, row: _Row) -> None:
        self._row = None
        self._prefixes.put(row.slot)
