"""One run through two stages: what it leaves behind, how it goes on, and when it refuses to."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import SETTINGS, STAGES, load, source

from envtune_agents.chat_model import ChatTransformers, release_engines
from envtune_agents.curriculum import Move
from envtune_agents.errors import CurriculumError
from envtune_agents.playground import Playground, generated_tasks
from envtune_agents.rollout import run_episode
from envtune_agents.testing import tiny_gguf, tiny_qwen
from envtune_trl import Trained, train
from envtune_trl.progress import rewind
from envtune_trl.trainer import last_checkpoint
from envtune_trl.weights import load_policy


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


def test_the_weights_of_a_stage_that_is_over_must_be_there(
    run: tuple[Path, Trained], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(run[0], out)
    shutil.rmtree(out / "two" / "adapter")
    with pytest.raises(CurriculumError, match="holds no weights"):
        train(model, source(), out=out, stages=STAGES, settings=SETTINGS)


def test_another_model_under_the_same_name_is_refused(run: tuple[Path, Trained], model: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(run[0], out)
    (model / "extra.txt").write_text("x")
    try:
        with pytest.raises(CurriculumError, match="another model files"):
            train(model, source(), out=out, stages=STAGES, settings=SETTINGS)
    finally:
        (model / "extra.txt").unlink()


@pytest.mark.parametrize("change", [{"precision": "4bit"}, {"lora": 0}], ids=["qlora", "all weights"])
def test_a_gguf_file_is_unpacked_where_training_needs_it(tmp_path: Path, change: dict[str, Any]) -> None:
    """bitsandbytes and the reference of a full-weight run read safetensors; the result loads by its folder."""
    file = tiny_gguf(tiny_qwen(tmp_path / "tiny", head_dim=128), tmp_path / "tiny.gguf")
    settings = replace(SETTINGS, prompts=1, validation_tasks=1, **change)
    done = train(file, source(), out=tmp_path / "run", stages=(replace(STAGES[0], max_steps=1),), settings=settings)
    assert done.finished
    assert (tmp_path / "run" / "base" / "model.safetensors").exists()
    reply = ChatTransformers(model=str(done.weights), precision="fp32", max_tokens=2).invoke("Hello")
    assert reply.response_metadata["token_trace"]["completion_token_ids"]
    release_engines()


def test_a_fresh_adapter_follows_from_the_seed(model: Path) -> None:
    before = torch.get_rng_state()
    first, same, other = (
        load_policy(model, replace(SETTINGS, seed=seed), None).model.state_dict() for seed in (1, 1, 2)
    )
    drawn = [name for name in first if ".lora_A." in name]
    assert drawn
    assert all(torch.equal(first[name], same[name]) for name in drawn)
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_that_a_crash_cut_off_is_passed_over(tmp_path: Path) -> None:
    for step, files in ((1, ("trainer_state.json", "optimizer.pt")), (2, ("optimizer.pt",))):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in files:
            (folder / name).touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert last_checkpoint(tmp_path / "nothing") is None


def test_steps_that_are_made_again_are_in_the_metrics_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "gra')
    rewind(tmp_path, 2)
    assert [json.loads(line)["step"] for line in path.open()] == [1, 2]
    rewind(tmp_path, 0)
    assert path.read_text() == ""
    rewind(tmp_path / "nothing", 2)
