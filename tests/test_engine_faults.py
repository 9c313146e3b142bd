"""What goes wrong for one request is that request's alone, and its memory comes back."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from engine_asking import FEW_TOKENS, endless_engine, free_tokens, reference, server, together, tokens

from envtune_agents.engine import Engine, GenerationRequest, GenerationResult
from envtune_agents.engine.scheduler import Scheduler

pytest.importorskip("torch")


class Breaks:
    """A grammar that admits token 5 only, and fails at the third."""

    def __init__(self) -> None:
        self.steps = 0

    def start(self) -> Breaks:
        return Breaks()

    def restrict(self, logits: Any) -> None:
        self.steps += 1
        if self.steps == 3:
            raise ValueError("the grammar broke")
        logits[:5] = logits[6:] = float("-inf")

    def advance(self, token_id: int) -> list[int]:
        return []


async def test_a_grammar_that_breaks_ends_its_own_request_only(engine: Engine) -> None:
    await engine.aweights()
    good = [GenerationRequest(tokens(seed, 30), max_new_tokens=12) for seed in range(2)]
    bad = GenerationRequest(tokens(5, 30), max_new_tokens=12, constraint=Breaks())
    first, error, second = await asyncio.gather(
        *(engine.agenerate(request) for request in (good[0], bad, good[1])), return_exceptions=True
    )
    assert isinstance(error, ValueError)
    for request, result in zip(good, (first, second), strict=True):
        assert isinstance(result, GenerationResult)
        assert result.token_ids == reference(engine, request.prompt_ids, 12)


async def test_an_error_inside_the_model_ends_the_request_that_causes_it(engine: Engine) -> None:
    """The embedding refuses one token; whoever shares the pass gets the reply that a request alone gets."""
    model = (await engine.aweights()).model

    def refuse(module: Any, inputs: tuple[Any, ...]) -> None:
        if (inputs[0] == 399).any():
            raise RuntimeError("no token 399")

    model.get_input_embeddings().register_forward_pre_hook(refuse)
    good = [GenerationRequest(tokens(seed, 60), max_new_tokens=25) for seed in range(3)]
    bad = GenerationRequest((*tokens(7, 70), 399), max_new_tokens=5)
    stream = engine.astream(good[0])
    await anext(stream)
    answers = await asyncio.gather(*(engine.agenerate(q) for q in (good[1], bad, good[2])), return_exceptions=True)
    last = [event async for event in stream][-1]
    assert isinstance(answers[1], RuntimeError)
    assert "399" in str(answers[1])
    for request, result in zip(good, (last, answers[0], answers[2]), strict=True):
        assert isinstance(result, GenerationResult)
        assert result.token_ids == reference(engine, request.prompt_ids, 25)
    assert free_tokens(engine) == server(engine)._packed.room


@pytest.mark.parametrize("when", ["queued", "reading", "decoding"])
async def test_a_cancelled_request_gives_its_memory_back(engine: Engine, when: str) -> None:
    await engine.aweights()
    gate = threading.Event()
    if when == "queued":
        asyncio.get_running_loop().run_in_executor(None, engine.run, lambda _: gate.wait(10))
    engine.run(lambda _: setattr(server(engine), "_chunk", 16)) if when == "reading" else None
    task = asyncio.create_task(engine.agenerate(GenerationRequest(tokens(1, 1500), max_new_tokens=500)))
    neighbour = asyncio.create_task(engine.agenerate(GenerationRequest(tokens(1, 700), max_new_tokens=5)))
    while when != "queued" and not await engine.arun(lambda _: reached(server(engine), when)):
        await asyncio.sleep(0.001)
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await neighbour).token_ids == reference(engine, tokens(1, 700), 5)
    assert free_tokens(engine) == server(engine)._packed.room


def reached(scheduler: Scheduler, when: str) -> bool:
    """Whether the longest running request is in the middle of its prompt, or of its reply."""
    rows = [row for row in scheduler._rows if len(row.reply.request.prompt_ids) == 1500]
    return bool(rows) and (0 < rows[0].read < 1500 if when == "reading" else bool(rows[0].reply.unread))


async def test_memory_is_bounded_and_requests_wait_for_it(folder: Path) -> None:
    """400 tokens of room and requests of 150: two at a time, all answered, what was used longest ago forgotten."""
    engine = endless_engine(folder, cache_bytes=FEW_TOKENS)
    await engine.aweights()
    assert server(engine)._packed.arena.capacity == 400
    prompts = [tokens(seed, 130) for seed in range(8)]
    results = await together(engine, [GenerationRequest(p, max_new_tokens=20) for p in prompts])
    assert [r.token_ids for r in results] == [reference(engine, p, 20) for p in prompts]
    again = [await engine.agenerate(GenerationRequest(p, max_new_tokens=1)) for p in (prompts[-1], prompts[0])]
    assert [r.cached_tokens for r in again] == [129, 0]
    engine.close()


def test_a_prompt_larger_than_the_memory_says_which_setting_helps(folder: Path) -> None:
    engine = endless_engine(folder, cache_bytes=FEW_TOKENS)
    with pytest.raises(ValueError, match="cache_bytes has room for 400"):
        engine.generate(GenerationRequest(tokens(1, 400)))
    clipped = engine.generate(GenerationRequest(tokens(1, 390), max_new_tokens=50))
    assert (len(clipped.token_ids), clipped.finish_reason) == (10, "length")
    engine.close()


async def test_a_thousand_requests_are_all_answered(engine: Engine) -> None:
    await engine.aweights()
    requests = [GenerationRequest((*tokens(seed % 7, 20), seed % 400), max_new_tokens=2) for seed in range(1000)]
    results = await together(engine, requests)
    assert all(len(r.token_ids) == 2 for r in results)
    assert results[3].token_ids == reference(engine, requests[3].prompt_ids, 2)


def test_a_token_outside_the_vocabulary_is_refused_before_it_reaches_the_model(engine: Engine) -> None:
    with pytest.raises(ValueError, match="outside 0 to"):
        engine.generate(GenerationRequest((1, 10**6)))
    with pytest.raises(ValueError, match="outside 0 to"):
        engine.generate(GenerationRequest((-1,)))
