"""How the engine's tests ask: tiny engines whose replies never end early, random prompts, transformers' own replies."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.engine import Engine, GenerationRequest, GenerationResult
from envtune_agents.engine.job import Job
from envtune_agents.engine.scheduler import Scheduler
from envtune_agents.weights import Weights, load_weights

torch = pytest.importorskip("torch")

FEW_TOKENS = 512 * 400
"""cache_bytes for 400 tokens of the tiny checkpoint, which takes 512 bytes a token."""
_seeds = itertools.count(1)


def endless_engine(folder: Path, **options: Any) -> Engine:
    """An engine over `endless` weights."""
    return Engine(lambda: endless(load_weights(folder, "fp32")), **options)


def endless(weights: Weights) -> Weights:
    """The same without end tokens, so that every reply, `generate()`'s too, has the length asked for."""
    weights.model.generation_config.eos_token_id = None
    return replace(weights, end_token_ids=())


def tokens(seed: int, length: int) -> tuple[int, ...]:
    """A random text of ordinary tokens."""
    rng = random.Random(seed)
    return tuple(rng.randrange(400) for _ in range(length))


def reference(engine: Engine, prompt: Sequence[int], n: int) -> tuple[int, ...]:
    """transformers' own greedy decoding, between two steps of the engine: one thread at a time may use a model."""
    return engine.run(lambda model: greedy(model, prompt, n))


def greedy(model: Any, prompt: Sequence[int], n: int) -> tuple[int, ...]:
    """transformers' own greedy decoding, for whoever is on the engine's thread."""
    ids = torch.tensor([list(prompt)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False)
    return tuple(int(token) for token in output[0, len(prompt) :])


def full_pass(engine: Engine, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Log probabilities of a completion from one forward pass over everything."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = engine.run(lambda model: model(ids).logits[0].detach())
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return [float(row[token]) for row, token in zip(rows, completion, strict=True)]


async def together(engine: Engine, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
    return list(await asyncio.gather(*(engine.agenerate(request) for request in requests)))


def server(engine: Engine) -> Scheduler:
    """The engine's scheduler; these tests are about it, so another way of serving fails them."""
    assert isinstance(engine._server, Scheduler)
    return engine._server


def free_tokens(engine: Engine) -> int:
    """Tokens nobody holds once everything kept for later is forgotten."""
    engine.clear_cache()
    return int(engine.run(lambda _: server(engine)._packed.arena.free_tokens))


def scheduler_of(weights: Weights, cache_bytes: int = 2**26) -> Scheduler:
    """A scheduler that reads at most 128 prompt tokens in a pass, 32 while others sample."""
    from envtune_agents.engine.packed_model import PackedModel

    packed = PackedModel.of(weights.model, cache_bytes)
    assert packed is not None
    scheduler = Scheduler(weights, packed, keep=True)
    scheduler._chunk = 128
    return scheduler


class Asked:
    """A request in a scheduler's hands."""

    def __init__(self, scheduler: Scheduler, length: int, new: int = 1, caller: str = "", **options: Any) -> None:
        """`length`: tokens of the prompt; `new`: tokens of the reply."""
        self.answers: list[Any] = []
        prompt = tokens(next(_seeds), length)
        request = GenerationRequest(prompt, max_new_tokens=new, caller=caller, **options)
        scheduler.add(Job(request, self.answers.append, wants_tokens=False))

    @property
    def done(self) -> bool:
        """Whether the reply is there."""
        assert all(isinstance(answer, GenerationResult) for answer in self.answers)
        return bool(self.answers)


def steps_until(scheduler: Scheduler, asked: Asked, most: int) -> int:
    """Steps until the reply is there; fails after `most`."""
    for step in range(1, most + 1):
        scheduler.step()
        if asked.done:
            return step
    pytest.fail(f"no reply after {most} steps")
