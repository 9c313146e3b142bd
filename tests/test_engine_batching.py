"""Many requests at once: replies equal `generate()`'s, and who joins or leaves changes nothing."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_asking import (
    endless,
    endless_engine,
    free_tokens,
    full_pass,
    reference,
    server,
    together,
    tokens,
)

from envtune_agents.engine import Engine, GenerationRequest, GenerationResult
from envtune_agents.engine import scheduler as scheduling
from envtune_agents.weights import load_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def model_of(architecture: str, **options: Any) -> Any:
    """A tiny model with random weights large enough that its logits differ."""
    sizes = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = getattr(transformers, f"{architecture}Config")(**sizes, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{architecture}ForCausalLM")(config).eval().requires_grad_(False)


MODELS = {
    "llama, tied": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama, untied": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "qwen3, tied": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3, untied": ("Qwen3", {"num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
}


@pytest.mark.parametrize("name", MODELS)
async def test_batched_replies_and_logprobs_equal_the_models_own(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short and long prompts, with and without a common beginning, the long ones read in pieces between the others'
    steps."""
    monkeypatch.setattr(scheduling, "CPU_CHUNK", 64)
    architecture, options = MODELS[name]
    own = replace(endless(load_weights(folder, "fp32")), model=model_of(architecture, **options))
    engine = Engine(lambda: own)
    await engine.aweights()
    system = tokens(0, 90)
    prompts = [tokens(1, 1), tokens(2, 300), (*system, *tokens(3, 20)), (*system, *tokens(4, 150)), tokens(5, 33)]
    wanted = [12, 8, 30, 5, 20]
    results = await together(
        engine, [GenerationRequest(p, max_new_tokens=n) for p, n in zip(prompts, wanted, strict=True)]
    )
    server(engine)
    for prompt, n, result in zip(prompts, wanted, results, strict=True):
        assert result.token_ids == reference(engine, prompt, n)
        assert result.logprobs == pytest.approx(full_pass(engine, prompt, result.token_ids), abs=1e-4)
    engine.close()


async def test_requests_join_and_leave_while_others_decode(engine: Engine) -> None:
    await engine.aweights()
    long = tokens(1, 40)
    stream = engine.astream(GenerationRequest(long, max_new_tokens=60))
    early = [await anext(stream) for _ in range(5)]
    prompts = [tokens(seed, 10 * seed) for seed in range(2, 8)]
    results = await together(engine, [GenerationRequest(p, max_new_tokens=len(p) // 10) for p in prompts])
    assert server(engine).busy  # the first still decodes
    rest = [event async for event in stream]
    assert isinstance(rest[-1], GenerationResult)
    assert rest[-1].token_ids == reference(engine, long, 60)
    assert [event.token_id for event in early] == list(rest[-1].token_ids[:5])  # type: ignore[union-attr]
    for prompt, result in zip(prompts, results, strict=True):
        assert result.token_ids == reference(engine, prompt, len(prompt) // 10)


async def test_a_common_beginning_is_read_once_even_by_requests_that_come_together(engine: Engine) -> None:
    await engine.aweights()
    system = tokens(0, 600)
    prompts = [(*system, *tokens(seed, 20)) for seed in range(1, 9)]
    results = await together(engine, [GenerationRequest(p, max_new_tokens=4) for p in prompts])
    assert sum(len(p) - r.cached_tokens for p, r in zip(prompts, results, strict=True)) == 600 + 8 * 20
    assert [r.token_ids for r in results] == [reference(engine, p, 4) for p in prompts]


async def test_samples_of_one_prompt_share_it(engine: Engine) -> None:
    await engine.aweights()
    prompt = tokens(0, 200)
    requests = [GenerationRequest(prompt, max_new_tokens=30, temperature=1.0, seed=seed) for seed in range(8)]
    results = await together(engine, requests)
    assert sorted(r.cached_tokens for r in results) == [0] + [199] * 7
    assert len({r.token_ids for r in results}) == 8
    for result in results:
        assert result.logprobs == pytest.approx(full_pass(engine, prompt, result.token_ids), abs=1e-4)


async def test_all_rows_decode_in_one_pass_whatever_their_system_prompt(engine: Engine) -> None:
    await engine.aweights()
    packed = server(engine)._packed
    passes: list[int] = []
    forward = packed.forward

    def counted(ids: Any, *rest: Any) -> Any:
        passes.append(len(ids))
        return forward(ids, *rest)

    engine.run(lambda _: setattr(packed, "forward", counted))
    requests = [GenerationRequest(tokens(seed, 40), max_new_tokens=20, temperature=1.0) for seed in range(8)]
    await together(engine, requests)  # not greedy, so that no guesses make passes longer and fewer
    assert passes.count(8) >= 18
    assert len(passes) <= 24


async def test_a_sample_does_not_depend_on_who_shares_the_batch(engine: Engine) -> None:
    request = GenerationRequest(tokens(1, 50), max_new_tokens=40, temperature=1.0, top_p=0.95, top_k=50, seed=7)
    alone = await engine.agenerate(request)
    engine.clear_cache()
    others = [GenerationRequest(tokens(s, 20 * s), max_new_tokens=30, temperature=1.3, seed=s) for s in range(2, 9)]
    shared, *_ = await together(engine, [request, *others])
    assert shared.token_ids == alone.token_ids
    assert shared.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


class Repeat:
    """A grammar that admits one token only, and forces the next `forced` ones."""

    def __init__(self, token: int, *, forced: int = 0) -> None:
        self.token, self.forced = token, forced

    def start(self) -> Repeat:
        return Repeat(self.token, forced=self.forced)

    def restrict(self, logits: Any) -> None:
        kept = logits[self.token].clone()
        logits.fill_(float("-inf"))
        logits[self.token] = kept

    def advance(self, token_id: int) -> list[int]:
        return [token_id + 1] * self.forced


async def test_constrained_and_free_requests_share_a_batch(engine: Engine) -> None:
    await engine.aweights()
    free = [GenerationRequest(tokens(seed, 30), max_new_tokens=16) for seed in range(3)]
    bound = GenerationRequest(tokens(9, 30), max_new_tokens=16, constraint=Repeat(5))
    forced = GenerationRequest(tokens(10, 30), max_new_tokens=16, constraint=Repeat(5, forced=2))
    results = await together(engine, [*free, bound, forced])
    assert [r.token_ids for r in results[:3]] == [reference(engine, q.prompt_ids, 16) for q in free]
    assert results[3].token_ids == (5,) * 16
    assert results[4].token_ids == ((5, 6, 6) * 6)[:16]
    for request, result in zip((bound, forced), results[3:], strict=True):
        expected = full_pass(engine, request.prompt_ids, result.token_ids)
        assert result.logprobs == pytest.approx(expected, abs=1e-4)


async def test_stop_strings_are_each_requests_own(engine: Engine) -> None:
    await engine.aweights()
    prompt = tokens(1, 30)
    free = await engine.agenerate(GenerationRequest(prompt, max_new_tokens=40))
    stops = [free.text[at : at + 5] for at in (4, 15)]
    results = await together(engine, [GenerationRequest(prompt, max_new_tokens=40, stop=(stop,)) for stop in stops])
    for stop, result in zip(stops, results, strict=True):
        assert (result.text, result.finish_reason) == (free.text[: free.text.index(stop)], "stop")


def test_random_conversations_are_exact(folder: Path) -> None:
    """Eight threads with growing, cut and cancelled conversations over shared system prompts, in scarce memory."""
    engine = endless_engine(folder, cache_bytes=2**20)
    systems = [tokens(seed, length) for seed, length in enumerate((5, 40, 300, 700))]
    answers: list[tuple[tuple[int, ...], GenerationResult]] = []

    def converse(seed: int) -> None:
        rng = random.Random(seed)
        text = rng.choice(systems)
        for _ in range(rng.randint(2, 4)):
            text = (*text, *tokens(rng.randrange(10**6), rng.randint(1, 90)))
            request = GenerationRequest(text, max_new_tokens=rng.randint(1, 25))
            if rng.random() < 0.2:
                stream = engine.stream(request)
                next(stream)
                stream.close()
                continue
            result = engine.generate(request)
            answers.append((text, result))
            text = (*text, *result.token_ids)[: len(text) + rng.randint(1, 25)]

    threads = [threading.Thread(target=converse, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) > 12
    for prompt, result in answers:
        assert result.token_ids == reference(engine, prompt, len(result.token_ids))
    assert free_tokens(engine) == server(engine)._packed.room
    engine.close()
