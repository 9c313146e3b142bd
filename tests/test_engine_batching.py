"""Many requests at once: replies equal `generate()`'s, who joins or leaves changes nothing, and memory comes back."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.engine import Engine, GenerationRequest, GenerationResult
from envtune_agents.engine import scheduler as scheduling
from envtune_agents.engine.scheduler import Scheduler
from envtune_agents.testing.tiny import tiny_qwen
from envtune_agents.weights import Weights, load_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FEW_TOKENS = 512 * 400
"""cache_bytes for 400 tokens of the tiny checkpoint, which takes 512 bytes a token."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def weights(folder: Path) -> Weights:
    """Never run by these tests' own thread while an engine runs it."""
    return endless(load_weights(folder, "fp32"))


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine(lambda: endless(load_weights(folder, "fp32")))
    yield engine
    engine.close()


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
    name: str, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short and long prompts, with and without a common beginning, the long ones read in pieces between the others'
    steps."""
    monkeypatch.setattr(scheduling, "CPU_CHUNK", 64)
    architecture, options = MODELS[name]
    engine = Engine(lambda: replace(weights, model=model_of(architecture, **options)))
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


async def test_long_prompts_leave_room_for_the_decoding_of_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of 1,900 tokens takes many passes, and a short request that comes later is done before it."""
    monkeypatch.setattr(scheduling, "CPU_CHUNK", 128)
    await engine.aweights()
    engine.run(lambda _: setattr(server(engine), "_chunk", 128))
    order: list[str] = []

    async def ask(name: str, length: int) -> None:
        await engine.agenerate(GenerationRequest(tokens(len(name), length), max_new_tokens=4))
        order.append(name)

    long = asyncio.create_task(ask("long", 1900))
    await asyncio.sleep(0)
    await asyncio.gather(*(ask(name, 30) for name in ("a", "bc", "def")))
    await long
    assert order[-1] == "long"


async def test_a_sample_does_not_depend_on_who_shares_the_batch(engine: Engine) -> None:
    request = GenerationRequest(tokens(1, 50), max_new_tokens=40, temperature=1.0, top_p=0.95, top_k=50, seed=7)
    alone = await engine.agenerate(request)
    engine.clear_cache()
    others = [GenerationRequest(tokens(s, 20 * s), max_new_tokens=30, temperature=1.3, seed=s) for s in range(2, 9)]
    shared, *_ = await together(engine, [request, *others])
    assert shared.token_ids == alone.token_ids
    assert shared.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


class Repeat:
    """A grammar that admits one token only, or fails at the third."""

    def __init__(self, token: int, *, breaks: bool = False, forced: int = 0) -> None:
        self.token, self.breaks, self.forced, self.steps = token, breaks, forced, 0

    def start(self) -> Repeat:
        return Repeat(self.token, breaks=self.breaks, forced=self.forced)

    def restrict(self, logits: Any) -> None:
        self.steps += 1
        if self.breaks and self.steps == 3:
            raise ValueError("the grammar broke")
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


async def test_a_grammar_that_breaks_ends_its_own_request_only(engine: Engine) -> None:
    await engine.aweights()
    good = [GenerationRequest(tokens(seed, 30), max_new_tokens=12) for seed in range(2)]
    bad = GenerationRequest(tokens(5, 30), max_new_tokens=12, constraint=Repeat(5, breaks=True))
    first, error, second = await asyncio.gather(
        *(engine.agenerate(request) for request in (good[0], bad, good[1])), return_exceptions=True
    )
    assert isinstance(error, ValueError)
    for request, result in zip(good, (first, second), strict=True):
        assert isinstance(result, GenerationResult)
        assert result.token_ids == reference(engine, request.prompt_ids, 12)


async def test_stop_strings_are_each_requests_own(engine: Engine) -> None:
    await engine.aweights()
    prompt = tokens(1, 30)
    free = await engine.agenerate(GenerationRequest(prompt, max_new_tokens=40))
    stops = [free.text[at : at + 5] for at in (4, 15)]
    results = await together(engine, [GenerationRequest(prompt, max_new_tokens=40, stop=(stop,)) for stop in stops])
    for stop, result in zip(stops, results, strict=True):
        assert (result.text, result.finish_reason) == (free.text[: free.text.index(stop)], "stop")


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
    engine = Engine(lambda: endless(load_weights(folder, "fp32")), cache_bytes=FEW_TOKENS)
    await engine.aweights()
    assert server(engine)._packed.arena.capacity == 400
    prompts = [tokens(seed, 130) for seed in range(8)]
    results = await together(engine, [GenerationRequest(p, max_new_tokens=20) for p in prompts])
    assert [r.token_ids for r in results] == [reference(engine, p, 20) for p in prompts]
    again = [await engine.agenerate(GenerationRequest(p, max_new_tokens=1)) for p in (prompts[-1], prompts[0])]
    assert [r.cached_tokens for r in again] == [129, 0]
    engine.close()


def test_a_prompt_larger_than_the_memory_says_which_setting_helps(folder: Path) -> None:
    engine = Engine(lambda: endless(load_weights(folder, "fp32")), cache_bytes=FEW_TOKENS)
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


def test_random_conversations_are_exact(folder: Path) -> None:
    """Eight threads with growing, cut and cancelled conversations over shared system prompts, in scarce memory."""
    engine = Engine(lambda: endless(load_weights(folder, "fp32")), cache_bytes=2**20)
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


async def test_requests_of_different_adapters_get_each_its_own(engine: Engine) -> None:
    peft = pytest.importorskip("peft")

    def load(model: Any) -> None:
        for seed, name in enumerate(("a", "b")):
            config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
            torch.manual_seed(seed)
            model.add_adapter(config, adapter_name=name)

    await engine.arun(load)
    model = engine.weights.model
    prompts = [tokens(0, 120)] * 2 + [tokens(1, 30)]
    requests = [GenerationRequest(p, max_new_tokens=10, adapter=a) for p in prompts for a in (None, "a", "b")]
    results = await together(engine, requests)

    def expected(request: GenerationRequest) -> tuple[int, ...]:
        if request.adapter is None:
            model.disable_adapters()
        else:
            model.enable_adapters()
            model.set_adapter(request.adapter)
        return greedy(model, request.prompt_ids, 10)

    assert [r.token_ids for r in results] == [engine.run(lambda _, q=q: expected(q)) for q in requests]
    assert len({r.token_ids for r in results[:3]}) == 3
    assert [r.cached_tokens for r in results[:6]] == [0, 0, 0, 119, 119, 119]
