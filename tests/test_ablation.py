"""The training experiment's own machinery: the packed forward pass, its decoder, and the loss of all runs at once."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from envtune_agents.hints import HintDial, HintEngine
from envtune_agents.playground import PLAYGROUND_RULES, Playground, generated_tasks
from envtune_agents.rollout import run_directly
from envtune_agents.testing import ScriptedChatModel, tiny_qwen
from envtune_agents.weights import Weights, load_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "ablation"))
import arms
from decoder import Ask, Decoder
from learn import Optimizer, backward, group_advantages, token_losses
from packed import Adapters, Base, Slots
from publish import publish
from safetensors.torch import save_file
from scripts import script_of
from shared_prompts import Attention, TrainRow, batches
from worker import Job, Played, played_of

END = (1,)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return load_weights(tiny_qwen(tmp_path_factory.mktemp("tiny")), "fp32")


@pytest.fixture
def base(weights: Weights) -> Base:
    return Base(weights.model)


PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13, 14], [20]]


def logits(base: Base, ids: list[int], lora: Any = None) -> Any:
    with torch.no_grad():
        whole = torch.tensor([ids])
        return base.logits(base.hidden(whole, torch.arange(len(ids))[None], lora, base.attend_whole))[0]


def decoded(base: Base, adapters: Adapters | None, runs: list[int], prompts: list[list[int]], length: int) -> list[Any]:
    decoder, found = Decoder(base, len(prompts), 64, END, 4096), {}
    decoder.begin(adapters, runs)
    decoder.run([Ask(i, i, ids, length, 0.0) for i, ids in enumerate(prompts)], lambda a: found.__setitem__(a.key, a))
    return [found[index] for index in range(len(prompts))]


@pytest.mark.parametrize("packed", [False, True])
def test_the_forward_pass_is_transformers_own(weights: Weights, base: Base, packed: bool) -> None:
    if packed:
        base.pack()
    for ids in PROMPTS:
        with torch.no_grad():
            expected = weights.model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits(base, ids), expected)


def test_batched_replies_are_those_of_generate(weights: Weights, base: Base) -> None:
    for ids, answer in zip(PROMPTS, decoded(base, None, [], PROMPTS, 12), strict=True):
        expected = weights.model.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=END[0], pad_token_id=0
        )
        assert answer.ids == expected[0, len(ids) :].tolist()


def test_each_row_has_its_own_adapter(base: Base) -> None:
    adapters = some_adapters(base)
    answers = decoded(base, adapters, [1, 0, 1], PROMPTS, 6)
    for run, ids, answer in zip([1, 0, 1], PROMPTS, answers, strict=True):
        merged = Base.__new__(Base)
        merged.__dict__ = {**base.__dict__, "linears": {name: t.clone() for name, t in base.linears.items()}}
        merged.merge(adapters, run)
        whole = logits(merged, [*ids, *answer.ids]).log_softmax(-1)
        for place, (token, logprob) in enumerate(zip(answer.ids, answer.logprobs, strict=True)):
            row = whole[len(ids) - 1 + place]
            assert token == int(row.argmax())
            assert logprob == pytest.approx(float(row[token]), abs=1e-4)


def test_a_prompt_that_slots_share_is_read_once(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, three conversations each, whose prompts begin alike; the third goes on from its own reply."""
    read: list[int] = []
    whole = Slots.read
    monkeypatch.setattr(
        Slots, "read", lambda self, rows, ids, *rest: (read.append(ids.numel()), whole(self, rows, ids, *rest))[1]
    )
    adapters, same = some_adapters(base), list(range(40, 70))
    prompts = [[*same, 7], [*same, 8], [*same, 9, 10]] * 2
    runs = [0, 0, 0, 1, 1, 1]
    together = decoded(base, adapters, runs, prompts, 6)
    assert sum(read) < 2 * 31 + 4 * 2 + 6 * 6 + 1
    for run, ids, answer in zip(runs, prompts, together, strict=True):
        assert answer.ids == decoded(base, adapters, [run], [ids], 6)[0].ids


def some_adapters(base: Base) -> Adapters:
    adapters = Adapters(base, 2, 4, [0, 1])
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in adapters.b.values():
            tensor.normal_(0, 0.05)
    return adapters


def row(run: int, advantage: float, supervised: bool = False, first: int = 5) -> TrainRow:
    said = [8 + round(4 * advantage) if advantage == advantage else 8, 9, 10, 11]
    return TrainRow(run, [first, 6, 7], said, [1, 1, 0, 1], [-1.0] * 4, advantage, supervised)


ROWS = [row(0, 1.0), row(1, -1.0), row(0, -0.5, first=4), row(1, 0.0, supervised=True), row(0, 2.0), row(0, -1.0)]
"""Rows of two runs; three rows of the first share a prompt."""


def gradients(base: Base, adapters: Adapters, rows: list[TrainRow], max_tokens: int) -> list[Any]:
    backward(base, adapters, rows, max_tokens)
    found = [tensor.grad.clone() for tensor in adapters.parameters() if tensor.grad is not None]
    for tensor in adapters.parameters():
        tensor.grad = None
    return found


def test_gradients_do_not_depend_on_how_rows_are_batched(base: Base) -> None:
    adapters = some_adapters(base)
    for one, two in zip(gradients(base, adapters, ROWS, 8), gradients(base, adapters, ROWS, 10_000), strict=True):
        torch.testing.assert_close(one, two)


def test_a_batch_is_its_rows_one_by_one(weights: Weights, base: Base) -> None:
    """Log-probabilities under shared prompts against transformers' own, row by row."""
    (batch,) = batches([item for item in ROWS if item.run == 0], 10_000)
    assert batch.length == 2 * 3 + 4 * 4
    with torch.no_grad():
        states = base.hidden(torch.tensor([batch.ids]), torch.tensor([batch.positions]), None, Attention(base, batch))
        shared = base.logits(states[0, batch.sources]).log_softmax(-1)
    for place, (target, owner) in enumerate(zip(batch.targets, batch.owner, strict=True)):
        item = batch.rows[owner]
        before = batch.owner[:place].count(owner)
        index = [i for i, learn in enumerate(item.mask) if learn][before]
        assert item.completion[index] == target
        with torch.no_grad():
            alone = weights.model(torch.tensor([[*item.prompt, *item.completion]])).logits[0].log_softmax(-1)
        torch.testing.assert_close(shared[place], alone[len(item.prompt) + index - 1])


def test_runs_do_not_touch_each_other(base: Base) -> None:
    adapters = some_adapters(base)
    both = gradients(base, adapters, ROWS, 10_000)
    alone = gradients(base, adapters, [item for item in ROWS if item.run == 0], 10_000)
    for one, two in zip(both, alone, strict=True):
        torch.testing.assert_close(one[0], two[0])
        assert not two[1].any()


def test_the_loss_is_verls() -> None:
    torch.manual_seed(0)
    old = torch.randn(400)
    new, reference = old + torch.empty(400).uniform_(-3, 3.5), torch.randn(400)
    advantage = torch.randn(400)
    ratio = (new - old).exp()
    expected = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.28))
    expected = torch.where(advantage < 0, torch.minimum(expected, -advantage * 10), expected)
    loss, kl = token_losses(new, old, reference, advantage)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(kl, (reference - new).exp() - (reference - new) - 1)
    assert (kl >= 0).all()


def test_equal_rewards_give_no_advantage_and_a_broken_run_is_skipped(base: Base) -> None:
    assert group_advantages([0.5, 0.5]) == [0.0, 0.0]
    assert group_advantages([0.0, 1.0])[1] == pytest.approx(0.707, abs=1e-3)
    adapters = some_adapters(base)
    before = [tensor.detach().clone() for tensor in adapters.parameters()]
    optimizer = Optimizer(adapters, 1e-2)
    backward(base, adapters, [row(0, float("nan")), row(1, 1.0)], 10_000)
    norms = optimizer.step()
    assert norms[0] != norms[0]
    for old, new in zip(before, adapters.parameters(), strict=True):
        assert torch.equal(old[0], new[0])
    assert any(not torch.equal(old[1], new[1]) for old, new in zip(before, adapters.parameters(), strict=True))


def test_a_run_whose_reward_has_a_signal_rises_and_one_without_does_not(base: Base) -> None:
    """Run 0 is paid for even token ids, run 1 always the same."""
    torch.manual_seed(0)
    adapters, share = Adapters(base, 2, 8, [0, 1]), [0.0, 0.0]
    optimizer, decoder = Optimizer(adapters, 1e-2), Decoder(base, 64, 32, (), 4096)
    runs, prompts = [index % 2 for index in range(64)], [[100 + index // 16, 7, 9] for index in range(64)]
    for _ in range(25):
        said: dict[Any, Any] = {}
        decoder.begin(adapters, runs)
        decoder.run(
            [Ask(i, i, ids, 8, 1.0) for i, ids in enumerate(prompts)], lambda a, s=said: s.__setitem__(a.key, a)
        )
        even = [sum(token % 2 == 0 for token in said[i].ids) / 8 for i in range(64)]
        share = [sum(even[run::2]) / 32 for run in (0, 1)]
        rows = []
        for start in range(0, 64, 16):
            for run in (0, 1):
                members = range(start + run, start + 16, 2)
                advantages = group_advantages([even[i] if run == 0 else 0.5 for i in members])
                rows += [
                    TrainRow(run, prompts[i], said[i].ids, [1] * 8, said[i].logprobs, advantage)
                    for i, advantage in zip(members, advantages, strict=True)
                ]
        backward(base, adapters, rows, 4096)
        optimizer.step()
    assert share[0] > 0.75
    assert 0.35 < share[1] < 0.65


def played(task: Any, script: str, level: int, seed: int = 0) -> Played:
    job = Job(0, task, level, 1.0, 32, 7, script, seed=seed)
    hints = HintEngine(PLAYGROUND_RULES, HintDial(level))
    rollout = run_directly(ScriptedChatModel(script=script_of(job)), Playground(task), hints=hints)
    return played_of(job, asyncio.run(rollout))


def test_the_expert_solves_every_task_and_the_clumsy_one_needs_hints() -> None:
    tasks = generated_tasks(0, 24)
    expert = [played(task, "expert", 0) for task in tasks]
    assert all(item.solved and not item.failures and not item.hints for item in expert)
    alone, helped = ([played(task, "clumsy", level) for task in tasks] for level in (0, 3))
    assert sum(item.solved for item in helped) > sum(item.solved for item in alone)
    assert not any(item.hints for item in alone)
    assert 0 < sum(item.fixed for item in helped) <= sum(item.hints for item in helped)


@pytest.mark.parametrize("other", [{"other_names": True}, {"domains": ("stock",)}])
def test_the_clumsy_one_is_clumsy_with_held_out_tools_too(other: dict[str, Any]) -> None:
    tasks = generated_tasks(0, 24, **other)
    assert all(played(task, "expert", 0).solved for task in tasks)
    assert sum(played(task, "clumsy", 0).solved for task in tasks) < 18


def test_the_published_adapter_is_the_warm_up_and_the_run_in_one(tmp_path: Path) -> None:
    """The arm that solved most, loaded as a user loads it, against both adapters merged one after the other."""
    model = tiny_qwen(tmp_path / "tiny")
    base, out = Base(load_weights(model, "fp32").model), tmp_path / "run"
    warm_up, runs = Adapters(base, 1, 3, [5]), some_adapters(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in (*warm_up.parameters(), *runs.parameters()):
            tensor.copy_(tensor.normal_(0, 0.05).bfloat16())
    (out / "subject").mkdir(parents=True)
    save_file(warm_up.state(), out / "subject" / "warmup.safetensors")
    save_file({f"adapter.{name}": tensor for name, tensor in runs.state().items()}, out / "state.safetensors")
    settings = {"model": "../tiny", "arms": ["four", "no_hints"], "seeds": 1, "steps": 20, "prompts": 2, "samples": 4}
    (out / "settings.json").write_text(json.dumps(settings | {"lr": 1e-3, "test": 4, "warmup_steps": 5}))
    tasks = [task.task_id for task in arms.test_sets(4)["held_out"]]
    none, one = ({"each": {task: [float(task in best), 0.5] for task in tasks}} for best in ([], tasks[:1]))
    (out / "baseline.json").write_text(json.dumps({"held_out/0": none}))
    (out / "final.json").write_text(
        json.dumps({"held_out/0": {"four-0": {"solved": 0.1} | none, "no_hints-0": {"solved": 0.3} | one}})
    )
    publish(out, tmp_path / "published")
    base.merge(warm_up)
    base.merge(runs, 1)
    published = Base(load_weights(tmp_path / "published", "fp32").model)
    torch.testing.assert_close(logits(published, PROMPTS[1]), logits(base, PROMPTS[1]), atol=1e-4, rtol=1e-4)
    card = (tmp_path / "published" / "README.md").read_text()
    assert "LoRA adapter, rank 7" in card
    assert "| **OVERALL** | **1** | **4** | **25.00%** | **0.00%** |" in card
