"""The engine's thread: who may use the model, from where, and until when."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.engine import Engine, GenerationRequest
from envtune_agents.errors import EngineError, WeightsError
from envtune_agents.weights import load_weights

torch = pytest.importorskip("torch")

PROMPT = tuple(range(50, 120))
REQUEST = GenerationRequest(PROMPT, max_new_tokens=8)


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine(lambda: load_weights(folder, "fp32"))
    yield engine
    engine.close()


async def test_a_function_runs_with_the_model_in_the_engine_thread(engine: Engine) -> None:
    def where(model: Any) -> tuple[str, str]:
        return threading.current_thread().name, type(model).__name__

    assert await engine.arun(where) == engine.run(where) == ("envtune-engine", "Qwen3ForCausalLM")
    assert engine.run(lambda _: engine.run(where)) == ("envtune-engine", "Qwen3ForCausalLM")
    with pytest.raises(ZeroDivisionError):
        engine.run(lambda _: 1 // 0)
    assert engine.generate(REQUEST).token_ids


async def test_a_function_does_not_wait_for_the_requests_that_run(engine: Engine) -> None:
    await engine.aweights()
    stream = engine.astream(GenerationRequest(PROMPT, max_new_tokens=1500, temperature=1.0, seed=0))
    await anext(stream)
    assert await engine.arun(lambda _: "between two steps") == "between two steps"
    await stream.aclose()


def test_new_weights_are_used_once_the_cache_is_cleared(engine: Engine) -> None:
    before = engine.generate(REQUEST)

    def retrain(model: Any) -> None:
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.3)
        engine.clear_cache()

    engine.run(retrain)
    after = engine.generate(REQUEST)
    assert after.cached_tokens == 0
    fresh = engine.weights.model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False)
    assert list(after.token_ids) == fresh[0, len(PROMPT) :].tolist()
    assert after.token_ids != before.token_ids


def test_a_text_begun_before_the_cache_was_cleared_is_not_kept(engine: Engine) -> None:
    stream = engine.stream(GenerationRequest(PROMPT, max_new_tokens=40, temperature=1.0, seed=0))
    next(stream)
    engine.clear_cache()
    assert engine.generate(REQUEST).cached_tokens == 0
    list(stream)


def test_an_adapter_that_is_not_loaded_is_named(engine: Engine) -> None:
    with pytest.raises(WeightsError, match="adapter 'skill'"):
        engine.generate(GenerationRequest(PROMPT, adapter="skill"))
    assert engine.generate(REQUEST).token_ids


def test_two_event_loops_share_an_engine(engine: Engine) -> None:
    expected = engine.generate(REQUEST).token_ids
    found: list[tuple[int, ...]] = []

    async def many() -> None:
        found.extend(r.token_ids for r in await asyncio.gather(*(engine.agenerate(REQUEST) for _ in range(4))))

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [expected] * 8


def ask_in_child(engine: Engine, answers: Any) -> None:
    try:
        answers.put(repr(engine.generate(REQUEST)))
    except EngineError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_is_told_that_the_engine_stayed_behind(engine: Engine) -> None:
    engine.generate(REQUEST)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=ask_in_child, args=(engine, answers))
    child.start()
    child.join(20)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert "'spawn'" in answers.get()
    assert engine.generate(REQUEST).token_ids


def test_closing_answers_what_waits_and_frees_the_memory(folder: Path) -> None:
    engine = Engine(lambda: load_weights(folder, "fp32"))
    model = weakref.ref(engine.weights.model)
    stream = engine.stream(REQUEST)
    first = next(stream)
    engine.close()
    assert len([first, *stream]) == 9
    assert engine._thread is not None
    engine._thread.join(10)
    assert not engine._thread.is_alive()
    gc.collect()
    assert model() is None
    for use in (lambda: engine.generate(REQUEST), lambda: engine.weights, lambda: engine.run(len)):
        with pytest.raises(EngineError, match="closed"):
            use()
    engine.close()


def test_an_engine_closed_before_its_first_use_says_so(folder: Path) -> None:
    engine = Engine(lambda: load_weights(folder, "fp32"))
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        _ = engine.weights


def test_an_idle_engine_costs_nothing(engine: Engine) -> None:
    engine.generate(REQUEST)
    assert engine._thread is not None
    assert engine._thread.ident is not None
    clock = time.pthread_getcpuclockid(engine._thread.ident)
    before = time.clock_gettime(clock)
    time.sleep(0.3)
    assert time.clock_gettime(clock) - before < 0.1


async def test_memory_that_cannot_be_set_aside_is_reported_at_loading(folder: Path) -> None:
    engine = Engine(lambda: load_weights(folder, "fp32"), cache_bytes=2**60)
    with pytest.raises(WeightsError, match="Lower cache_bytes"):
        await engine.aweights()


def test_a_process_that_ends_in_the_middle_of_a_reply_ends_well(folder: Path) -> None:
    program = (
        "import sys; from envtune_agents.engine import Engine, GenerationRequest\n"
        "from envtune_agents.weights import load_weights\n"
        "engine = Engine(lambda: load_weights(sys.argv[1]))\n"
        "replies = [engine.stream(GenerationRequest((5, 6, n), max_new_tokens=1500)) for n in range(8)]\n"
        "print(*[next(reply).token_id >= 0 for reply in replies])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["True"] * 8)
