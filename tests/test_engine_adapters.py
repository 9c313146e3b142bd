"""LoRA adapters in the engine: each request gets its own, callers take turns, also in a model that peft wrapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_asking import Asked, endless, greedy, scheduler_of, steps_until, together, tokens

from envtune_agents.engine import Engine, GenerationRequest
from envtune_agents.engine.job import use_adapter
from envtune_agents.errors import WeightsError
from envtune_agents.weights import load_weights

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


async def test_requests_of_different_adapters_get_each_its_own(engine: Engine) -> None:

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


def test_requests_of_different_adapters_take_turns_by_caller(folder: Path) -> None:
    """A caller's nine requests and another's one, each with an adapter: every second pass is the other's."""
    own = endless(load_weights(folder, "fp32"))
    for name in ("nine", "one"):
        own.model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]), adapter_name=name)
    scheduler = scheduler_of(own)
    for _ in range(9):
        Asked(scheduler, 10, 100, "a", adapter="nine")
    assert steps_until(scheduler, Asked(scheduler, 10, 10, "b", adapter="one"), 20) == 20


def test_a_model_that_peft_wrapped_switches_its_adapters(folder: Path) -> None:
    model = load_weights(folder, "fp32").model
    prompt = torch.tensor([tokens(0, 20)])

    def logits() -> Any:
        with torch.inference_mode():
            return model(prompt).logits

    plain = logits()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model, config, adapter_name="first")
    model.add_adapter("second", config)
    said = {}
    for name in ("first", None, "second", None):
        use_adapter(model, name)
        said[name] = logits()
        if name is None:
            assert torch.equal(said[name], plain)
    assert not any(
        torch.equal(said[one], said[other]) for one, other in (("first", None), ("second", None), ("first", "second"))
    )
    with pytest.raises(WeightsError, match="Known: first, second"):
        use_adapter(model, "third")
