"""Guessed tokens: fewer passes, the same replies, and nothing left of a wrong guess."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.engine import Engine, GenerationRequest, GenerationResult
from envtune_agents.engine.guess import FIRST, LONGEST_REST, MOST, Guesser
from envtune_agents.engine.scheduler import Scheduler
from envtune_agents.testing import tiny_qwen
from envtune_agents.weights import load_weights

pytest.importorskip("torch")


def test_a_guess_is_what_followed_before() -> None:
    guesser = Guesser([1, 2, 3, 4, 5, 9, 1, 2, 3])
    assert guesser.guess(8) == [4, 5, 9][:FIRST]
    assert guesser.guess(1) == [4]
    assert guesser.guess(0) == []
    guesser.add(4)
    guesser.add(7)
    assert guesser.guess(8) == []


def test_a_guess_of_a_repetition_goes_on_with_itself() -> None:
    guesser = Guesser([1, 2] * 3)
    guesser.learn(2, 2)
    guesser.learn(4, 4)
    assert guesser.guess(8) == [1, 2] * 4


def test_guesses_grow_when_they_are_right_and_rest_when_they_are_wrong() -> None:
    guesser = Guesser([7] * 40)
    assert len(guesser.guess(100)) == FIRST
    for _ in range(5):
        guesser.learn(len(guesser.guess(100)), len(guesser.guess(100)))
    assert len(guesser.guess(100)) == MOST
    rests = []
    for _ in range(7):
        guesser.learn(len(guesser.guess(100)), 0)
        rests.append(0)
        while not guesser.guess(100):
            guesser.add(7)
            rests[-1] += 1
    assert rests == [2, 4, 8, 16, LONGEST_REST, LONGEST_REST, LONGEST_REST]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tiny_qwen(tmp_path_factory.mktemp("tiny"))
    engine = Engine(lambda: replace(load_weights(folder, "fp32", device_map="cpu"), end_token_ids=()))
    yield engine
    engine.close()


def replies(engine: Engine, requests: list[GenerationRequest], *, full_pass: int) -> tuple[list[GenerationResult], int]:
    """The replies from an empty cache, and the forward passes they took."""
    server = engine._server
    assert isinstance(server, Scheduler)
    passes = 0
    forward = type(server._packed).forward

    def counted(*columns: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(server._packed, *columns)

    def prepare(_: Any) -> None:
        server._full_pass = full_pass
        vars(server._packed)["forward"] = counted

    async def together() -> list[GenerationResult]:
        return list(await asyncio.gather(*(engine.agenerate(request) for request in requests)))

    engine.clear_cache()
    engine.run(prepare)
    return asyncio.run(together()), passes


@pytest.mark.parametrize("rows", [1, 3])
def test_replies_are_the_same_in_fewer_passes(engine: Engine, rows: int) -> None:
    assert engine.batches
    rng = random.Random(rows)
    prompts = [tuple(rng.randrange(400) for _ in range(30)) * 2 for _ in range(rows)]
    requests = [GenerationRequest(prompt, max_new_tokens=60) for prompt in prompts]
    plain, many = replies(engine, requests, full_pass=0)
    guessed, few = replies(engine, requests, full_pass=16)
    assert [reply.token_ids for reply in guessed] == [reply.token_ids for reply in plain]
    for one, other in zip(guessed, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert few < many if rows == 1 else few <= many  # the row that repeats itself least sets the number


def test_the_text_that_is_kept_holds_no_wrong_guess(engine: Engine) -> None:
    """The next turn finds exactly what was said, and goes on as if nothing had been guessed."""
    assert engine.batches
    prompt = tuple(random.Random(0).randrange(400) for _ in range(40)) * 2
    [first], _ = replies(engine, [GenerationRequest(prompt, max_new_tokens=60)], full_pass=16)
    longer = GenerationRequest((*prompt, *first.token_ids, 5, 6, 7), max_new_tokens=20)
    second = engine.generate(longer)
    assert second.cached_tokens == len(prompt) + len(first.token_ids) - 1
    engine.clear_cache()
    assert engine.generate(longer).token_ids == second.token_ids


@pytest.mark.parametrize("setting", [{"temperature": 1.0, "seed": 3}, {"stop": ("a",)}, {"max_new_tokens": 1}])
def test_samples_stops_and_short_replies_are_the_same(engine: Engine, setting: dict[str, Any]) -> None:
    assert engine.batches
    prompt = tuple(random.Random(5).randrange(400) for _ in range(20)) * 3
    request = replace(GenerationRequest(prompt, max_new_tokens=60), **setting)
    assert (
        replies(engine, [request], full_pass=16)[0][0].token_ids
        == replies(engine, [request], full_pass=0)[0][0].token_ids
    )
