"""Each export opened by what reads it in real life: `datasets`, TRL's SFTTrainer and DPOTrainer, verl's dataset."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.export import export_rollouts
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import RolloutStore, read_rollouts, run_episode
from envtune_agents.tape import branches_of
from envtune_agents.testing import tiny_qwen
from envtune_agents.testing.token_script import TokenScript, tokenizer_only

LOOK = '<tool_call>\n{"arguments":{"room":"annex"},"name":"list_items"}\n</tool_call>'
WRONG = '<tool_call>\n{"name": "pick_items", "arguments": {"item_id": "X"}}\n</tool_call>'


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rollouts with the checkpoint's own tokens: of each task one that looks first, and one that fails first."""
    folder, weights = tmp_path_factory.mktemp("runs") / "run", tokenizer_only(str(checkpoint))

    async def play() -> None:
        with RolloutStore(folder) as store:
            for task in playground_tasks(0, 3):
                for sample, script in enumerate(([LOOK, "I see."], [WRONG, "I give up."])):
                    model = TokenScript(model="scripted", script=script, scripted_weights=weights, split_seed=sample)
                    rollout = await run_episode(model, Playground(task), hints=3, sample=sample)
                    store.append(_worth(rollout, 1.0 - sample))

    asyncio.run(play())
    return folder


def _worth(rollout: Any, reward: float) -> Any:
    from dataclasses import replace

    return replace(rollout, reward=reward)


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "max_length": 2048,
        "save_strategy": "no",
        "bf16": False,
    }


def test_sft_trainer_sees_exactly_the_sampled_tokens(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    exported = export_rollouts(run, "trl", tmp_path / "sft.jsonl")
    rows = datasets.load_dataset(
        "json", data_files=str(exported.path), split="train", cache_dir=str(tmp_path / "cache")
    )
    config = trl.SFTConfig(**settings(tmp_path / "out"))
    trainer = trl.SFTTrainer(model=str(checkpoint), args=config, train_dataset=rows)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    (branch,) = branches_of(next(read_rollouts(run)))
    assert batch["input_ids"][0].tolist() == [*branch.prompt_ids, *branch.completion_ids]
    said = [token for token, mask in zip(branch.completion_ids, branch.loss_mask, strict=True) if mask]
    assert [token for token in batch["labels"][0].tolist() if token != -100] == said
    assert trainer.train().training_loss > 0


def test_sft_trainer_reads_conversations(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    exported = export_rollouts(run, "sft", tmp_path / "sft.jsonl", hints="strip")
    rows = datasets.load_dataset(
        "json", data_files=str(exported.path), split="train", cache_dir=str(tmp_path / "cache")
    )
    config = trl.SFTConfig(**settings(tmp_path / "out"))
    trainer = trl.SFTTrainer(model=str(checkpoint), args=config, train_dataset=rows.select_columns(["messages"]))
    assert trainer.train().training_loss > 0


def test_dpo_trainer_reads_pairs(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    exported = export_rollouts(run, "dpo", tmp_path / "dpo.jsonl")
    rows = datasets.load_dataset(
        "json", data_files=str(exported.path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == 3
    config = trl.DPOConfig(**settings(tmp_path / "out"))
    pairs = rows.select_columns(["prompt", "chosen", "rejected"])
    trainer = trl.DPOTrainer(model=str(checkpoint), args=config, train_dataset=pairs)
    assert trainer.train().training_loss > 0


def test_datasets_opens_the_folder(run: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("pyarrow")
    exported = export_rollouts(run, "hf", tmp_path / "set")
    rows = datasets.load_dataset(str(exported.path), split="train", cache_dir=str(tmp_path / "cache"))
    (branch,) = branches_of(next(read_rollouts(run)))
    assert rows[0]["completion_ids"] == list(branch.completion_ids)
    assert rows[0]["loss_mask"] == list(branch.loss_mask)
    assert len(rows) == exported.rows == sum(len(branches_of(rollout)) for rollout in read_rollouts(run))


def test_verl_opens_conversations(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    dataset = pytest.importorskip("verl.utils.dataset.multiturn_sft_dataset")
    transformers = pytest.importorskip("transformers")
    exported = export_rollouts(run, "verl", tmp_path / "sft.parquet")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    config = {"max_length": 2048, "truncation": "right", "pad_mode": "no_padding"}
    rows = dataset.MultiTurnSFTDataset(str(exported.path), tokenizer, config)
    row = rows[0]
    said = tokenizer.decode(row["input_ids"][row["loss_mask"].bool()])
    assert "list_items" in said
    assert "annex" not in tokenizer.decode(row["input_ids"][~row["loss_mask"].bool()]).partition("user")[0]
