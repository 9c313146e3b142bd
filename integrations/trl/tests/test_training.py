from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from envtune_agents.chat_model import ChatTransformers, release_engines
from envtune_agents.curriculum import Curriculum, DifficultyController, Move, Silence, Stage
from envtune_agents.errors import CurriculumError, MissingDependencyError, RecordError, ScorerError, WeightsError
from envtune_agents.playground import PLAYGROUND_RULES, Playground, generated_tasks
from envtune_agents.progress import FORMAT_REWARD, RewardMix
from envtune_agents.rollout import collect, run_episode
from envtune_agents.tape import TapeBranch, TapeSpan, branches_of
from envtune_agents.task_source import TaskSource, find_task_source
from envtune_agents.testing import TaughtModel, tiny_qwen
from envtune_agents.types import CallOutcome, RolloutTurn, TurnEvidence
from envtune_trl import EpisodeRollouts, Trained, TrainSettings, task_dataset, train
from envtune_trl.imitation import imitate_rows
from envtune_trl.progress import METRICS, StageProgress, Table, known_signal
from envtune_trl.rollouts import summary_of
from envtune_trl.training import _memory_advice, last_checkpoint
from envtune_trl.warm_up import Lessons, find_lessons, from_file, make_warm_up, read_warm_up
from envtune_trl.weights import Policy, check_prefix_preserving, load_policy

STAGES = (Stage("one", FORMAT_REWARD, max_steps=2), Stage("two", RewardMix(progress=1.0), hint_level=2, max_steps=1))
SETTINGS = TrainSettings(
    lora=4,
    precision="fp32",
    prompts=2,
    samples=2,
    micro_batch=2,
    evaluate_every=1,
    save_every=1,
    validation_tasks=2,
    max_tokens=8,
    max_steps_per_turn=1,
    learning_rate=1e-3,
)


def load(split: str, categories: Any) -> list[Any]:
    return generated_tasks({"train": 0, "validation": 1}[split], 4, "base")


def source() -> TaskSource:
    return TaskSource(load, Playground, rules=lambda: PLAYGROUND_RULES)


class Coin(Playground):
    """Worth something by chance, so that groups of a model that can do nothing still differ."""

    def close_turn(self) -> TurnEvidence:
        return TurnEvidence(super().close_turn().turn, {"coin": next(COIN) % 2 == 0})


COIN = count()


def mixed_source() -> TaskSource:
    return TaskSource(load, Coin)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[tuple[Path, Trained]]:
    """One run through two stages, looked at by several tests."""
    out = tmp_path_factory.mktemp("run")
    test = generated_tasks(2, 4)
    yield out, train(model, source(), out=out, stages=STAGES, settings=SETTINGS, test=test, merge=True)
    release_engines()


def test_all_stages_are_trained_each_from_the_one_before(run: tuple[Path, Trained]) -> None:
    out, done = run
    assert done.finished
    assert done.weights == out / "two" / "adapter"
    assert [(d.stage, d.move) for d in done.curriculum.decisions][1:] == [("one", Move.ADVANCE), ("two", Move.FINISH)]
    records = [json.loads(line) for name in ("one", "two") for line in (out / name / "metrics.jsonl").open()]
    assert [(record["stage"], record["step"]) for record in records] == [("one", 1), ("one", 2), ("two", 1)]
    assert all(math.isfinite(record["grad_norm"]) for record in records)
    assert records[0]["hints"] == records[1]["hints"] == 0


def test_the_same_call_on_a_finished_run_does_nothing_more(run: tuple[Path, Trained], model: Path) -> None:
    out, done = run
    before = (out / "one" / "metrics.jsonl").stat().st_mtime_ns
    again = train(model, source(), out=out, stages=STAGES, settings=SETTINGS)
    assert again.weights == done.weights
    assert (out / "one" / "metrics.jsonl").stat().st_mtime_ns == before


async def test_the_adapter_loads_into_the_chat_model(run: tuple[Path, Trained], model: Path) -> None:
    chat = ChatTransformers(model=str(model), precision="fp32", temperature=0, max_tokens=4)
    chat.load_adapter("tuned", run[1].weights)
    task = load("train", None)[0]
    rollout = await run_episode(chat, Playground(task), hints=0, max_steps=1)
    assert rollout.error is None
    said = chat.invoke("Hello", model="tuned").response_metadata["token_trace"]["completion_token_ids"]
    alone = ChatTransformers(model=str(run[1].weights), precision="fp32", temperature=0, max_tokens=4)
    assert said == alone.invoke("Hello").response_metadata["token_trace"]["completion_token_ids"]


def test_the_model_card_has_the_measured_table_and_the_merged_weights_are_a_checkpoint(
    run: tuple[Path, Trained],
) -> None:
    card = (run[1].weights / "README.md").read_text()
    assert "| **OVERALL** | **0** | **4** | **0.00%** | **0.00%** |" in card
    assert "1. **one**: all categories, no hints, 2 steps. The stage's budget of 2 steps is spent." in card
    reply = ChatTransformers(model=str(run[0] / "merged"), precision="fp32", max_tokens=2).invoke("Hello")
    assert reply.response_metadata["token_trace"]["completion_token_ids"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": replace(SETTINGS, learning_rate=2e-3)}, "learning_rate"),
        ({"stages": STAGES[:1]}, "stages"),
        ({"tasks": generated_tasks(7, 4)}, "tasks"),
    ],
)
def test_a_changed_run_is_refused(run: tuple[Path, Trained], model: Path, change: dict[str, Any], named: str) -> None:
    given = {"stages": STAGES, "settings": SETTINGS, **change}
    with pytest.raises(CurriculumError, match=f"another {named}"):
        train(model, source(), out=run[0], **given)


def test_another_model_under_the_same_name_is_refused(run: tuple[Path, Trained], model: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(run[0], out)
    (model / "extra.txt").write_text("x")
    try:
        with pytest.raises(CurriculumError, match="another model files"):
            train(model, source(), out=out, stages=STAGES, settings=SETTINGS)
    finally:
        (model / "extra.txt").unlink()


def test_a_checkpoint_that_a_crash_cut_off_is_passed_over(tmp_path: Path) -> None:
    for step, files in ((1, ("trainer_state.json", "optimizer.pt")), (2, ("optimizer.pt",))):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in files:
            (folder / name).touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert last_checkpoint(tmp_path / "nothing") is None


# --- rows ---


def rollouts_of(model: Path, stage: Stage = STAGES[0]) -> EpisodeRollouts:
    tasks = load("train", None)
    engine = load_policy(model, SETTINGS, None).engine()
    return EpisodeRollouts(engine, {task.task_id: task for task in tasks}, source(), stage, SETTINGS)


def test_rows_are_the_sampled_tokens_with_masks_and_rewards(model: Path) -> None:
    play = rollouts_of(model)
    prompts = [row["prompt"] for row in task_dataset(list(play.tasks.values()))][:2]
    rollouts = play.play([play.tasks[prompt[0]["task_id"]] for prompt in prompts for _ in range(2)])
    rows = play.rows(rollouts)
    assert [rollout.sample for rollout in rollouts] == [0, 1, 0, 1]
    for index, rollout in enumerate(rollouts):
        step = rollout.turns[0].steps[0]
        assert tuple(rows["prompt_ids"][index]) == step.prompt_token_ids
        assert tuple(rows["completion_ids"][index][: len(step.completion_token_ids)]) == step.completion_token_ids
        sampled = sum(len(step.completion_token_ids) for turn in rollout.turns for step in turn.steps)
        assert sum(rows["env_mask"][index]) <= sampled
        assert len(rows["env_mask"][index]) == len(rows["logprobs"][index]) == len(rows["completion_ids"][index])
        assert rows["reward"][index] == FORMAT_REWARD(rollout)
    play.engine.close()


def test_groups_are_told_apart_by_the_stages_own_reward(model: Path) -> None:
    play = rollouts_of(model)
    rollout = play.play([next(iter(play.tasks.values()))])[0]
    play.engine.close()
    outcome = CallOutcome("list_bookings", {}, "{}", "{}")
    called = replace(rollout.turns[0], steps=(replace(rollout.turns[0].steps[0], outcomes=(outcome,)),))
    pair = [replace(rollout, turns=(called,), sample=1), replace(rollout, turns=(replace(called, steps=()),))]
    assert summary_of(pair, FORMAT_REWARD)["mixed_groups"] == 1.0
    assert summary_of(pair, RewardMix(progress=1.0))["mixed_groups"] == 0.0


def test_rollouts_without_a_trainable_token_are_an_error_with_its_cause(model: Path) -> None:
    play = rollouts_of(model)
    rollout = play.play([next(iter(play.tasks.values()))])[0]
    play.engine.close()
    failed = replace(rollout, turns=(), reward=None, error="ContextOverflowError: too long")
    with pytest.raises(ScorerError, match="1 x ContextOverflowError: too long"):
        play.rows([failed])
    rows = play.rows([failed, rollout])
    assert rows["reward"][0] is None
    assert sum(rows["env_mask"][0]) == 0


# --- what can go wrong ---


def progress_of(model: Path, folder: Path) -> StageProgress:
    said: list[str] = []
    table = Table()
    table.note = said.append  # type: ignore[method-assign]
    play = rollouts_of(model)
    play.engine.close()
    progress = StageProgress(Curriculum(STAGES), play, [], SETTINGS, table)
    progress.table.said = said  # type: ignore[attr-defined]
    return progress


class Control:
    should_training_stop = False
    should_save = False


def test_a_gradient_that_is_not_a_number_stops_and_saves_nothing(model: Path, tmp_path: Path) -> None:
    progress, control = progress_of(model, tmp_path), Control()
    progress.logged(3, {"grad_norm": float("nan"), "loss": 0.1}, control, tmp_path)
    assert progress.move is Move.STOP
    assert control.should_training_stop
    assert not control.should_save


def test_equal_rewards_are_an_event_with_advice(model: Path, tmp_path: Path) -> None:
    progress = progress_of(model, tmp_path)
    progress.rollouts.notes.append({"mixed_groups": 0.0, "solved": 0.0})
    for step in (1, 2, 3, 4):
        progress.logged(step, {"grad_norm": 0.1, "loss": 0.0, "reward": 0.0}, Control(), tmp_path)
    said = progress.table.said  # type: ignore[attr-defined]
    assert said[0] == (
        "step 1: every group's rewards are equal, so this step teaches nothing. "
        "All of them are 0: the model earns no reward yet."
    )
    event = progress.curriculum.decisions[0]
    assert (event.move, event.step) == (Move.STAY, 3)
    assert "--warm-up auto" in event.reasons[1]
    assert len(progress.curriculum.decisions) == 1
    progress.logged(5, {"grad_norm": 0.1, "loss": 0.0, "reward": 0.5}, Control(), tmp_path)
    assert "All of them are 0" not in said[-1]


def test_broken_numbers_in_a_real_run_end_it_with_the_last_good_weights(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    table = Table()
    table.note = said.append  # type: ignore[method-assign]
    settings = replace(SETTINGS, learning_rate=1e30, max_grad_norm=1e30, kl=0.0, lora=0)
    stage = Stage("one", RewardMix(progress=1.0), max_steps=4)
    done = train(model, mixed_source(), out=tmp_path, stages=(stage,), settings=settings, table=table)
    assert not done.finished
    assert done.curriculum.decisions[-1].move is Move.STOP
    assert "lower learning rate (now 1e+30)" in said[-1]
    assert done.weights.name == "checkpoint-1"


def test_a_model_that_cannot_begin_is_warmed_up_and_begins_again(model: Path, tmp_path: Path) -> None:
    stage = replace(STAGES[0], max_steps=3)
    settings = replace(SETTINGS, evaluate_every=3, save_every=3, validation_tasks=1)
    known = replace(source(), solution=find_task_source("playground").solution)
    done = train(model, known, out=tmp_path, stages=(stage,), settings=settings, warm_up="auto")
    assert done.finished
    restart = done.curriculum.decisions[0]
    assert (restart.move, restart.step) == (Move.RESTART, 3)
    assert restart.reasons[0].startswith("steps 1 to 3: every group's rewards are equal")
    assert restart.reasons[1].startswith("Warmed up by imitating 4 rollouts (the solutions of training tasks); loss ")
    assert (tmp_path / "one.cold" / METRICS).exists()
    assert [json.loads(line)["step"] for line in (tmp_path / "one" / METRICS).open()] == [1, 2, 3]


def test_a_restart_that_was_cut_off_is_made_when_the_run_goes_on(model: Path, tmp_path: Path) -> None:
    rollouts = rollouts_of(model)
    rollout = rollouts.play([next(iter(rollouts.tasks.values()))])[0]
    rollouts.engine.close()
    made = make_warm_up(
        tmp_path,
        load_policy(model, SETTINGS, None),
        Lessons([rollout], "x"),
        SETTINGS,
        because=Silence(3, 3, 0.0, True),
    )
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / METRICS).write_text("{}")
    given: dict[str, Any] = {"stages": (replace(STAGES[0], max_steps=1),), "settings": SETTINGS, "warm_up": "auto"}
    done = train(model, source(), out=tmp_path, **given)
    assert [(one.step, one.move) for one in done.curriculum.decisions] == [(3, Move.RESTART), (1, Move.FINISH)]
    assert (tmp_path / "one.cold" / METRICS).read_text() == "{}"
    assert read_warm_up(tmp_path) == made


def test_what_the_model_says_under_a_grammar_is_imitated_where_no_solution_is_known(model: Path) -> None:
    settings = replace(SETTINGS, max_tokens=64)
    policy = load_policy(model, settings, None)
    lessons = find_lessons(policy, load("train", None)[:2], source(), STAGES[0], settings)
    assert lessons is not None
    assert lessons.origin == "the model's own calls under a grammar"
    assert all(rollout.turns[0].steps[0].outcomes for rollout in lessons.rollouts)
    rewarded_for_solving = replace(STAGES[0], reward=RewardMix(solved=1.0))
    assert find_lessons(policy, load("train", None)[:2], source(), rewarded_for_solving, settings) is None


def test_a_stage_that_has_learnt_is_never_cold_when_it_goes_on(tmp_path: Path) -> None:
    records = [{"step": 1, "mixed_groups": 0.5, "reward": 0.2}, {"step": 2, "mixed_groups": 0.0, "reward": 0.0}]
    (tmp_path / METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))
    silence = known_signal(tmp_path).observe(3, 0.0, 0.0)
    assert silence is not None
    assert (silence.steps, silence.cold) == (2, False)
    fresh = known_signal(tmp_path / "nothing").observe(1, 0.0, 0.0)
    assert fresh is not None
    assert fresh.cold


def test_running_out_of_memory_names_the_knobs() -> None:
    with pytest.raises(CurriculumError, match=r"micro_batch \(now 2\)"), _memory_advice(SETTINGS):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(KeyError), _memory_advice(SETTINGS):
        raise KeyError("x")


def test_unsupported_versions_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("envtune_agents.curriculum.training_run.version", lambda name: "1.99.0")
    with pytest.raises(MissingDependencyError, match=r"trl 1\.99\.0 is installed.*\n.*trl>=1\.16,<1\.17"):
        train("nowhere", source(), out=tmp_path)


def test_a_template_that_rewrites_replies_is_refused(model: Path) -> None:
    policy = load_policy(model, SETTINGS, None)
    check_prefix_preserving(policy)
    rewriting = policy.weights.chat_template.replace(  # type: ignore[union-attr]
        "{%- for message in messages %}", "{{- messages | length }}{%- for message in messages %}"
    )
    changed = Policy(replace(policy.weights, chat_template=rewriting), policy.model)
    with pytest.raises(WeightsError, match="not prefix-preserving"):
        check_prefix_preserving(changed)


def test_quantised_weights_need_an_adapter() -> None:
    with pytest.raises(CurriculumError, match="give lora a rank"):
        TrainSettings(lora=0, precision="4bit")


# --- learning ---


def test_a_warm_up_makes_the_rollouts_likelier(model: Path) -> None:
    policy = load_policy(model, SETTINGS, None)
    row = TapeBranch((5, 6, 7), (8, 9, 10, 11), (1, 1, 0, 1), (0.0,) * 4, (TapeSpan(0, 0, 0, 2), TapeSpan(0, 1, 3, 4)))
    losses = imitate_rows(policy, [row] * 8, SETTINGS, epochs=12)
    assert losses[-1] < 0.9 * losses[0]
    with pytest.raises(ScorerError, match="No rollout has tokens"):
        imitate_rows(policy, [], SETTINGS)


def shifted(turns: tuple[RolloutTurn, ...]) -> tuple[RolloutTurn, ...]:
    """The same replies in the token ids of another tokenizer."""
    return tuple(
        replace(
            turn,
            steps=tuple(
                replace(step, completion_token_ids=tuple(token + 1 for token in step.completion_token_ids))
                for step in turn.steps
            ),
        )
        for turn in turns
    )


async def test_a_rollout_file_is_imitated_and_its_failures_are_not(model: Path, tmp_path: Path) -> None:
    """Stage 1 of a model that cannot call tools yet begins so."""
    tasks = [task for task in generated_tasks(0, 400, "base", domains=("travel",)) if "booked" in task.turns[0]]
    call = '<tool_call>\n{"name": "list_bookings", "arguments": {}}\n</tool_call>'
    taught = TaughtModel(
        model=str(model), precision="fp32", answer=lambda prompt: "Done." if "<tool_response>" in prompt else call
    )
    silent = TaughtModel(model=str(model), precision="fp32", answer=lambda prompt: "No.")
    chosen = [task for task in tasks if len(task.turns) == 1][:3]
    good = await collect(chosen, taught, Playground, out=tmp_path / "good")
    bad = await collect(chosen, silent, Playground, out=tmp_path / "bad")
    lessons = from_file(good.path)
    rows = [row for rollout in lessons.rollouts for row in branches_of(rollout)]
    losses = imitate_rows(load_policy(model, SETTINGS, None), rows, SETTINGS, epochs=8)
    assert losses[-1] < losses[0]
    assert from_file(bad.path).rollouts == []
    other = [replace(rollout, turns=shifted(rollout.turns)) for rollout in lessons.rollouts]
    with pytest.raises(RecordError, match="another tokenizer"):
        make_warm_up(tmp_path, load_policy(model, SETTINGS, None), replace(lessons, rollouts=other), SETTINGS)
    with pytest.raises(ScorerError, match="No rollout has tokens"):
        train(model, source(), out=tmp_path / "run", stages=STAGES, settings=SETTINGS, warm_up=bad.path)


def test_adaptive_help_follows_each_tasks_success(model: Path) -> None:
    play = rollouts_of(model, STAGES[1])
    play.difficulty = DifficultyController(start=1, patience=1)
    task, other = list(play.tasks.values())[:2]
    play.play([task] * 2)
    play.engine.close()
    assert play.level(task) == 2  # it fails, and gets one level more, up to the stage's
    assert play.level(other) == 1
    play.difficulty.observe(task.task_id, [0.0])
    assert play.level(task) == 2


def verl_loss(logp: Any, old: Any, ref: Any, advantages: Any, mask: Any) -> Any:
    """verl's policy loss and k3 KL, written from its documented formula: clip, dual clip, mean over each sequence's
    tokens, mean over sequences."""
    ratio = torch.exp(logp - old)
    plain, clipped = -advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.28)
    loss = torch.maximum(plain, clipped)
    loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * 10.0), loss)
    kl = torch.exp(ref - logp) - (ref - logp) - 1
    each = ((loss + 0.1 * kl) * mask).sum(-1) / mask.sum(-1)
    return each.mean()


def test_the_loss_and_its_gradient_are_verls(model: Path, tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    policy = load_policy(model, replace(SETTINGS, lora=0), None)
    options = replace(SETTINGS, lora=0, entropy=0.0).grpo_options(replace(STAGES[0], prompts=2, samples=2), tmp_path, 1)
    options.pop("gradient_checkpointing")
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(**options, bf16=False, use_cpu=True),
        train_dataset=task_dataset(load("train", None)),
        processing_class=policy.weights.tokenizer,
    )
    torch.manual_seed(0)
    rows, width = 4, 12
    prompt, completion = torch.randint(0, 400, (rows, 5)), torch.randint(0, 400, (rows, width))
    completion_mask = torch.ones(rows, width, dtype=torch.long)
    completion_mask[1, 9:] = 0
    tool_mask = (torch.rand(rows, width) < 0.6).long()
    tool_mask[:, 0] = 1
    model_now = trainer.model.eval()
    with torch.no_grad():
        now = _logprobs(model_now, prompt, completion)
    old = now - torch.empty(rows, width).uniform_(-3.0, 3.5)  # ratios from 0.05 to 33: every branch of the formula
    ref = now + torch.empty(rows, width).uniform_(-1.0, 1.0)
    advantages = torch.tensor([1.0, -1.0, 0.5, -2.0])
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": tool_mask.sum(),
    }
    theirs = trainer._compute_loss(model_now, inputs)
    gradients = torch.autograd.grad(theirs, list(model_now.parameters()))
    ours = verl_loss(
        _logprobs(model_now, prompt, completion), old, ref, advantages[:, None], completion_mask * tool_mask
    )
    expected = torch.autograd.grad(ours, list(model_now.parameters()))
    assert float(theirs) == pytest.approx(float(ours), rel=1e-5)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)


def _logprobs(model: Any, prompt: Any, completion: Any) -> Any:
    ids = torch.cat([prompt, completion], 1)
    logits = model(input_ids=ids[:, :-1]).logits[:, prompt.shape[1] - 1 :]
    return logits.log_softmax(-1).gather(2, completion[..., None])[..., 0]
