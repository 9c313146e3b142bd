"""Against verl's real classes on a CPU: its datasets read our files, and its configuration takes our overrides."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl_batches import batch_of, composed, tasks_of

from envtune_agents.curriculum import FOUR_STAGES
from envtune_agents.export import export_rollouts
from envtune_agents.rollout import collect
from envtune_agents.task_source import find_task_source
from envtune_agents.testing import solution_model
from envtune_verl import VerlSettings, stage_overrides
from envtune_verl.outputs import summable
from envtune_verl.overrides import StageFiles
from envtune_verl.testing import solution_replies

pytest.importorskip("verl")


def test_the_dataset_class_reads_our_parquet(files: StageFiles, tokenizer: Any, config: Any) -> None:
    batch = batch_of(files.train, tokenizer, config)
    assert set(batch.non_tensor_batch["data_source"]) == {"base", "miss_param"}
    assert batch.non_tensor_batch["agent_name"][0] == "envtune"
    assert list(batch.non_tensor_batch["index"]) == list(range(len(batch)))
    assert batch.non_tensor_batch["raw_prompt"][0][0]["role"] == "user"
    assert json.loads(batch.non_tensor_batch["extra_info"][0]["episode"])["terms"]["hint_level"] == 3


async def test_the_dataset_class_reads_an_export(tmp_path: Path, tokenizer: Any, config: Any) -> None:
    from verl.utils.dataset.rl_dataset import RLHFDataset

    tasks = tasks_of("base")
    await collect(
        tasks, solution_model(tasks), find_task_source("playground").environment, out=tmp_path / "run", concurrency=1
    )
    export_rollouts(tmp_path / "run", "verl", tmp_path / "rows.parquet")
    dataset = RLHFDataset(str(tmp_path / "rows.parquet"), tokenizer, config.data)
    rows = [dataset[index] for index in range(len(dataset))]
    assert [row["raw_prompt"][0]["content"] for row in rows] == [task.turns[0] for task in tasks]
    assert [json.loads(row["extra_info"]["rollout"])["task_id"] for row in rows] == [task.task_id for task in tasks]


async def test_the_sft_dataset_class_reads_an_export(tmp_path: Path, tokenizer: Any) -> None:
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    tasks = tasks_of("base")
    await collect(
        tasks, solution_model(tasks), find_task_source("playground").environment, out=tmp_path / "run", concurrency=1
    )
    export_rollouts(tmp_path / "run", "verl", tmp_path / "rows.parquet")
    # verl renders message by message, and a Qwen template writes the results of several calls into one user turn
    settings = {"max_length": 8_000, "pad_mode": "no_padding", "ignore_input_ids_mismatch": True}
    dataset = MultiTurnSFTDataset(str(tmp_path / "rows.parquet"), tokenizer, OmegaConf.create(settings))
    for index, task in enumerate(tasks):
        row = dataset[index]
        taught = tokenizer.decode(row["input_ids"][row["loss_mask"] == 1])
        for reply in solution_replies(task):
            assert reply in taught
        assert task.turns[0] not in taught


@pytest.mark.parametrize("index", range(4))
def test_the_overrides_compose_and_verl_accepts_them(index: int, files: StageFiles) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    settings = VerlSettings(loggers=("console", "tensorboard"), tensor_parallel=2, offload=True)
    overrides = [*stage_overrides(FOUR_STAGES[index], settings, files), "trainer.total_training_steps=10"]
    found = composed(overrides)
    assert need_reference_policy(found)
    assert not need_critic(found)
    validate_config(found, use_reference_policy=True, use_critic=False)
    for override in overrides:
        key, text = override.removeprefix("+").split("=", 1)
        assert key.startswith("hydra.") or OmegaConf.select(found, key) is not None, key
        assert "???" not in text
    assert found.data.train_files == str(files.train)
    assert found.trainer.default_local_dir == str(files.checkpoints)
    assert found.trainer.logger == ["console", "tensorboard", "file"]
    told = found.ray_kwargs.ray_init.runtime_env.env_vars
    assert str(files.checkpoints.with_name("tensorboard")) == told.TENSORBOARD_DIR
    assert found.actor_rollout_ref.ref.log_prob_max_token_len_per_gpu == found.actor_rollout_ref.rollout.max_model_len


def test_every_override_that_the_documentation_names_is_one_of_verl(files: StageFiles) -> None:
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    root = Path(__file__).parents[3]
    pages = [root / "integrations" / "verl" / "README.md", root / "docs" / "training.md"]
    named = {found for page in pages for found in re.findall(r"--override\s+([a-z][\w.]+=[\w.]*\w)", page.read_text())}
    assert len(named) >= 8
    found = composed(stage_overrides(FOUR_STAGES[2], VerlSettings(overrides=tuple(sorted(named))), files))
    validate_config(found, use_reference_policy=True, use_critic=False)
    actor = omega_conf_to_dataclass(found.actor_rollout_ref.actor)
    for override in named:
        key, value = override.split("=")
        assert str(OmegaConf.select(found, key)) == value
    assert actor.fsdp_config.entropy_from_logits_with_chunking is actor.fsdp_config.param_offload is True


@pytest.mark.parametrize("size", [15, 16, 32])
def test_a_group_of_equal_rewards_has_no_advantage(size: int) -> None:
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    def largest(*rewards: float) -> float:
        last = torch.tensor([[0.0, reward] for reward in rewards])
        advantages, _ = compute_grpo_outcome_advantage(last, torch.ones_like(last), np.array(["u"] * len(rewards)))
        return float(advantages.abs().max())

    rewards = sorted({part / whole for whole in range(1, 12) for part in range(1, 2 * whole + 1)})
    noise = [largest(*[reward] * size) for reward in rewards]
    assert max(noise) > 0.1  # why rewards are made summable; 0 says that verl does without
    assert max(noise) < 0.5
    assert [largest(*[summable(reward)] * size) for reward in rewards] == [0.0] * len(rewards)
    assert max(abs(summable(reward) - reward) / reward for reward in rewards) < 2e-6
    assert largest(*[summable(2 / 3)] * (size - 1), summable(1 / 3)) > 0.5


def test_verls_filter_of_equal_groups_is_one_override_away(files: StageFiles) -> None:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    for overrides, metric in (((), None), (("algorithm.filter_groups.enable=True",), "reward")):
        found = composed(stage_overrides(FOUR_STAGES[1], VerlSettings(overrides=overrides), files))
        assert PPOTrainer._resolve_filter_groups_metric(SimpleNamespace(config=found)) == metric
