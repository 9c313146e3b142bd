"""The engine against `generate()` and full forward passes, with and without its prefix cache."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.engine import Engine, GenerationRequest, GenerationResult, TokenEvent
from envtune_agents.engine.scheduler import Scheduler
from envtune_agents.engine.text import Detokenizer, StopText
from envtune_agents.errors import ContextOverflowError, RequestError, WeightsError
from envtune_agents.testing.tiny import tiny_qwen
from envtune_agents.weights import Weights, load_weights

torch = pytest.importorskip("torch")

CHAT = "<|im_start|>user\nWhat is the weather like in Paris?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine(lambda: load_weights(folder, "fp32"))
    yield engine
    engine.close()


def ids(engine: Engine, text: str) -> tuple[int, ...]:
    return tuple(engine.weights.encode(text))


def reference(engine: Engine, prompt: tuple[int, ...], n: int) -> list[int]:
    """What transformers' own greedy decoding gives."""
    ids = torch.tensor([prompt])
    output = engine.run(lambda model: model.generate(ids, max_new_tokens=n, do_sample=False))
    return [int(token) for token in output[0, len(prompt) :]]


def full_pass(engine: Engine, prompt: tuple[int, ...], completion: tuple[int, ...], scale: float) -> list[float]:
    """Log probabilities of a completion from one forward pass over everything."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = engine.run(lambda model: model(ids).logits[0].detach().float()) / scale
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return [float(row[token]) for row, token in zip(rows, completion, strict=True)]


@pytest.mark.parametrize("text", [CHAT, "a", CHAT * 60], ids=["chat", "one token", "several chunks"])
def test_greedy_equals_generate(engine: Engine, text: str) -> None:
    prompt = ids(engine, text)
    result = engine.generate(GenerationRequest(prompt, max_new_tokens=40))
    assert list(result.token_ids) == reference(engine, prompt, 40)
    assert result.cached_tokens == 0


def test_a_conversation_costs_only_its_new_tokens_and_says_the_same(engine: Engine) -> None:
    prompt = ids(engine, CHAT)
    for _ in range(4):
        first = engine.generate(GenerationRequest(prompt, max_new_tokens=12))
        assert list(first.token_ids) == reference(engine, prompt, 12)
        extended = (*prompt, *first.token_ids, *ids(engine, CHAT))
        result = engine.generate(GenerationRequest(extended, max_new_tokens=12))
        assert result.cached_tokens == len(prompt) + 11  # the last sampled token was never read
        assert list(result.token_ids) == reference(engine, extended, 12)
        prompt = extended


def test_conversations_that_share_a_beginning_share_its_cost(engine: Engine) -> None:
    system = ids(engine, "<|im_start|>system\n" + "Be brief. " * 50 + "<|im_end|>\n")
    prompts = [(*system, *ids(engine, text + CHAT)) for text in ("One. ", "Two. ", "Three. ")]
    results = [engine.generate(GenerationRequest(prompt, max_new_tokens=10)) for prompt in prompts * 2]
    assert all(result.cached_tokens >= len(system) for result in results[1:])
    for prompt, result in zip(prompts * 2, results, strict=True):
        assert list(result.token_ids) == reference(engine, prompt, 10)


def test_a_sliding_window_model_is_right_too(tmp_path: Path) -> None:
    """Its past cannot be cut, so only a prompt that continues the whole of it is cached, and nothing is batched."""
    folder = tiny_qwen(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}
    (folder / "config.json").write_text(json.dumps(config))
    engine = Engine(lambda: load_weights(folder, "fp32"))
    prompt = ids(engine, CHAT)
    assert not engine.batches
    first, again = (engine.generate(GenerationRequest(prompt, max_new_tokens=10)) for _ in range(2))
    longer = (*prompt, *first.token_ids, *prompt)
    continued = engine.generate(GenerationRequest(longer, max_new_tokens=10))
    assert [first.cached_tokens, again.cached_tokens, continued.cached_tokens] == [0, 0, len(prompt) + 9]
    assert list(again.token_ids) == reference(engine, prompt, 10)
    assert list(continued.token_ids) == reference(engine, longer, 10)
    engine.close()


def test_the_same_prompt_again_reads_one_token(engine: Engine) -> None:
    prompt = ids(engine, CHAT)
    first, second = (engine.generate(GenerationRequest(prompt, max_new_tokens=20)) for _ in range(2))
    assert second.cached_tokens == len(prompt) - 1
    assert first.token_ids == second.token_ids
    assert first.logprobs == pytest.approx(second.logprobs, abs=1e-4)


def test_the_cache_keeps_its_memory_budget(folder: Path) -> None:
    engine = Engine(lambda: load_weights(folder, "fp32"), cache_bytes=0)
    prompt = ids(engine, CHAT)
    results = [engine.generate(GenerationRequest(prompt, max_new_tokens=10)) for _ in range(2)]
    assert [result.cached_tokens for result in results] == [0, 0]
    assert results[0] == results[1]
    engine.close()


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.7])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm cache"])
def test_logprobs_equal_a_full_pass(engine: Engine, temperature: float, warm: bool) -> None:
    prompt = ids(engine, CHAT)
    if warm:
        engine.generate(GenerationRequest(prompt[:-5], max_new_tokens=3))
    request = GenerationRequest(prompt, max_new_tokens=50, temperature=temperature, top_k=20, top_p=0.9, seed=1)
    result = engine.generate(request)
    expected = full_pass(engine, prompt, result.token_ids, temperature or 1.0)
    assert result.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_seed_fixes_a_sample(engine: Engine) -> None:
    prompt = ids(engine, CHAT)

    def sampled(seed: int | None) -> tuple[int, ...]:
        return engine.generate(GenerationRequest(prompt, max_new_tokens=30, temperature=1.0, seed=seed)).token_ids

    assert sampled(1) == sampled(1)
    assert len({sampled(1), sampled(2), sampled(None), sampled(None)}) == 4


def test_top_k_one_is_greedy(engine: Engine) -> None:
    prompt = ids(engine, CHAT)
    greedy = engine.generate(GenerationRequest(prompt, max_new_tokens=20))
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        sampled = engine.generate(GenerationRequest(prompt, max_new_tokens=20, temperature=1.0, **options))  # type: ignore[arg-type]
        assert sampled.token_ids == greedy.token_ids


def test_stop_strings_span_tokens_and_are_cut(engine: Engine) -> None:
    prompt = ids(engine, CHAT)
    free = engine.generate(GenerationRequest(prompt, max_new_tokens=40))
    stop = free.text[10:16]
    at = free.text.index(stop)
    request = GenerationRequest(prompt, max_new_tokens=40, stop=("never said", stop))
    cut = engine.generate(request)
    assert (cut.text, cut.finish_reason) == (free.text[:at], "stop")
    assert cut.full_text.startswith(free.text[:at] + stop)
    assert cut.token_ids == free.token_ids[: len(cut.token_ids)]
    assert text_of(list(engine.stream(request))) == cut.text


def test_an_end_token_ends_and_is_cut_from_the_text(engine: Engine) -> None:
    prompt = ids(engine, CHAT)
    results = [
        engine.generate(GenerationRequest(prompt, max_new_tokens=300, temperature=1.5, seed=seed)) for seed in range(4)
    ]
    ended = [result for result in results if result.finish_reason == "end"]
    assert ended
    for result in ended:
        assert result.token_ids[-1] in engine.weights.end_token_ids
        assert not set(result.token_ids[:-1]) & set(engine.weights.end_token_ids)
        assert "<|im_end|>" not in result.text


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_is_the_result_in_pieces(engine: Engine, seed: int) -> None:
    request = GenerationRequest(ids(engine, CHAT), max_new_tokens=60, temperature=1.5, seed=seed, stop=("th",))
    whole = engine.generate(request)
    events = list(engine.stream(request))
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    assert [event.token_id for event in tokens] == list(whole.token_ids)
    assert [event.logprob for event in tokens] == pytest.approx(whole.logprobs, abs=1e-4)
    assert text_of(events) == whole.text


def text_of(events: list[Any]) -> str:
    *tokens, result = events
    assert isinstance(result, GenerationResult)
    return "".join(event.text for event in tokens) + result.tail


def test_a_prompt_that_does_not_fit_says_what_to_do(engine: Engine) -> None:
    limit = engine.weights.context_length
    with pytest.raises(ContextOverflowError, match=rf"{limit} tokens .* is {limit}.*Shorten"):
        engine.generate(GenerationRequest((1,) * limit))
    assert len(engine.generate(GenerationRequest((1,) * (limit - 3), max_new_tokens=50)).token_ids) <= 3


@pytest.mark.parametrize(
    "setting",
    [
        {"prompt_ids": ()},
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
    ],
)
def test_a_setting_out_of_its_range_is_named(setting: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=rf"{next(iter(setting))} is .*wanted"):
        GenerationRequest(**({"prompt_ids": (1,)} | setting))


def test_a_failed_load_is_raised_to_everyone(tmp_path: Path) -> None:
    engine = Engine(lambda: load_weights(tmp_path / "nowhere"))
    with pytest.raises(WeightsError):
        _ = engine.weights
    with pytest.raises(WeightsError):
        engine.generate(GenerationRequest((1,)))
    assert engine.failed


async def test_a_failed_load_is_raised_to_everyone_async(tmp_path: Path) -> None:
    engine = Engine(lambda: load_weights(tmp_path / "nowhere"))
    with pytest.raises(WeightsError):
        await engine.aweights()
    with pytest.raises(WeightsError):
        await engine.agenerate(GenerationRequest((1,)))


def test_a_closed_stream_frees_the_engine(engine: Engine) -> None:
    prompt = ids(engine, CHAT)
    stream = engine.stream(GenerationRequest(prompt, max_new_tokens=1900, temperature=1.0, stop=("\0",)))
    next(stream)
    stream.close()
    assert_soon_free(engine, prompt)


async def test_a_cancelled_task_frees_the_engine_and_its_prompt_stays_cached(engine: Engine) -> None:
    prompt = ids(engine, CHAT * 20)
    task = asyncio.create_task(engine.agenerate(GenerationRequest(prompt, max_new_tokens=1900)))
    while not await engine.arun(lambda _: sampling(engine)):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    result = await engine.agenerate(GenerationRequest(prompt, max_new_tokens=1))
    assert result.cached_tokens == len(prompt) - 1


def sampling(engine: Engine) -> bool:
    """Whether a request has its whole prompt read."""
    assert isinstance(engine._server, Scheduler)
    return any(row.reply.unread for row in engine._server._rows)


async def test_a_request_cancelled_in_the_queue_is_never_run(engine: Engine) -> None:
    await engine.aweights()
    gate = threading.Event()
    held = asyncio.create_task(engine.arun(lambda _: gate.wait(10)))
    await asyncio.sleep(0)
    task = asyncio.create_task(engine.agenerate(GenerationRequest((9, 8, 7), max_new_tokens=50)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    gate.set()
    assert await held
    assert (await engine.agenerate(GenerationRequest((9, 8, 7, 6), max_new_tokens=1))).cached_tokens == 0


async def test_the_event_loop_stays_free(engine: Engine) -> None:
    prompt = ids(engine, CHAT)
    task = asyncio.create_task(engine.agenerate(GenerationRequest(prompt, max_new_tokens=200, temperature=1.0, seed=4)))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 10  # a blocked loop gets one


async def test_many_callers_are_all_served(engine: Engine) -> None:
    prompt = ids(engine, CHAT)
    requests = [GenerationRequest(prompt, max_new_tokens=8, temperature=1.0, seed=seed) for seed in range(8)]
    results = await asyncio.gather(*(engine.agenerate(request) for request in requests))
    assert [result.token_ids for result in results] == [engine.generate(request).token_ids for request in requests]


async def test_astream_gives_the_same_events(engine: Engine) -> None:
    request = GenerationRequest(ids(engine, CHAT), max_new_tokens=20, temperature=1.0, seed=1)
    events = [event async for event in engine.astream(request)]
    assert text_of(events) == engine.generate(request).text


def assert_soon_free(engine: Engine, prompt: tuple[int, ...]) -> None:
    started = time.perf_counter()
    engine.generate(GenerationRequest(prompt, max_new_tokens=1))
    assert time.perf_counter() - started < 5


def test_text_arrives_in_whole_characters(engine: Engine) -> None:
    text = "naïve 🙂🙃 日本語 <tool_call> \ufffd end"
    detokenizer = Detokenizer(engine.weights.decode)
    pieces = [detokenizer.feed(token) for token in engine.weights.encode(text)]
    assert "".join(pieces) + detokenizer.flush() == text
    assert sum("\ufffd" in piece for piece in pieces) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_stop_text_is_found_however_it_is_cut(size: int) -> None:
    text = "one, two, tw, three; two! four"
    watch = StopText(["two!", "never"])
    pieces = [watch.feed(text[at : at + size]) for at in range(0, len(text), size) if not watch.stopped]
    assert "".join(pieces) + watch.flush() == "one, two, tw, three; "
    assert watch.stopped


def test_text_held_back_for_a_stop_string_is_released() -> None:
    watch = StopText(["END"])
    assert watch.feed("the EN") == "the "
    assert watch.flush() == "EN"
    assert not watch.stopped


@pytest.mark.model
def test_the_demo_model_equals_generate(small_weights: Weights) -> None:
    engine = Engine(lambda: small_weights)
    prompt = ids(engine, CHAT)
    result = engine.generate(GenerationRequest(prompt, max_new_tokens=16))
    assert list(result.token_ids) == reference(engine, prompt, 16)
    assert result.text.strip()
    engine.close()


async def test_a_model_served_alone_answers_many_callers_too(tmp_path: Path) -> None:
    folder = tiny_qwen(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}
    (folder / "config.json").write_text(json.dumps(config))
    engine = Engine(lambda: load_weights(folder, "fp32"))
    await engine.aweights()
    prompts = [ids(engine, CHAT * 3)[:length] for length in (5, 20, 60)]
    stream = engine.astream(GenerationRequest(prompts[0], max_new_tokens=500))
    await anext(stream)
    await stream.aclose()
    answers = await asyncio.gather(
        engine.agenerate(GenerationRequest((10**6,))),
        *(engine.agenerate(GenerationRequest(prompt, max_new_tokens=9)) for prompt in prompts),
        return_exceptions=True,
    )
    assert isinstance(answers[0], RequestError)
    for prompt, answer in zip(prompts, answers[1:], strict=True):
        assert isinstance(answer, GenerationResult)
        assert list(answer.token_ids) == reference(engine, prompt, 9)
    engine.clear_cache()
    assert (await engine.agenerate(GenerationRequest(prompts[2], max_new_tokens=1))).cached_tokens == 0
    engine.close()
