"""Against verl's real classes on a CPU: dataset, Hydra composition, metrics, log, and its workers in Ray processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envtune_agents.curriculum import FOUR_STAGES, Curriculum, Stage
from envtune_agents.errors import ScorerError
from envtune_agents.export import export_rollouts
from envtune_agents.rollout import collect
from envtune_agents.task_source import find_task_source
from envtune_agents.testing import solution_model
from envtune_agents.types import Task
from envtune_verl import EpisodeTerms, VerlSettings, dataset_rows, stage_overrides, write_dataset
from envtune_verl.log import evaluation_at, merged, read_log
from envtune_verl.overrides import StageFiles, agent_loop_entry
from envtune_verl.plan import RunPlan
from envtune_verl.rewards import reward_groups
from envtune_verl.run_folder import Commands, StageFolder, write_stage
from envtune_verl.testing import ScriptedClient, playground_scripts, solution_replies
from envtune_verl.warm_up import WarmUpFolder, solutions, write_warm_up

pytest.importorskip("verl")
STAGE = Stage("s", max_prompt_tokens=1600, max_response_tokens=2400, prompts=2, samples=2, max_steps=2)


def tasks_of(*categories: str, count: int = 4) -> list[Task]:
    found = find_task_source("playground").load("train", list(categories))
    return found[:: max(1, len(found) // count)][:count]


def composed(overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="module")
def files(model: Path, tmp_path_factory: pytest.TempPathFactory) -> StageFiles:
    folder = tmp_path_factory.mktemp("it's a run, 'x' = 1")
    files = StageFiles(
        model, folder / "train.parquet", folder / "validation.parquet", folder / "agent_loop.yaml", folder / "saved"
    )
    write_dataset(files.train, "playground", "train", EpisodeTerms("s", 3), tasks=tasks_of("base", "miss_param"))
    terms = EpisodeTerms("s", validation=True)
    write_dataset(files.validation, "playground", "train", terms, tasks=tasks_of("base", "miss_func", count=2))
    files.agent_loop.write_text(agent_loop_entry(VerlSettings(max_tokens=512, max_steps_per_turn=7, seed=5)))
    return files


@pytest.fixture(scope="module")
def config(files: StageFiles) -> Any:
    return composed(stage_overrides(STAGE, VerlSettings(workers=2), files))


def batch_of(path: Path, tokenizer: Any, config: Any, *, validate: bool = False) -> Any:
    from verl.protocol import DataProto
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    dataset = RLHFDataset(str(path), tokenizer, config.data)
    batch = DataProto.from_single_dict(collate_fn([dataset[index] for index in range(len(dataset))]))
    batch.meta_info = {"validate": validate, "global_steps": 3}
    return batch


def check_batch(output: Any, tokenizer: Any, n: int) -> None:
    """Every row is solved, and what is under its mask decodes to whole replies."""
    assert len(output) == n
    batch = output.batch
    assert batch["rm_scores"].sum(1).tolist() == [1.0] * n
    assert list(output.non_tensor_batch["acc"]) == [1.0] * n
    assert list(output.non_tensor_batch["drifted"]) == [0.0] * n
    assert (batch["rollout_log_probs"][batch["response_mask"] == 1] < 0).all()
    assert (batch["rollout_log_probs"][batch["response_mask"] == 0] == 0).all()
    for row in range(n):
        said = tokenizer.decode(batch["responses"][row][batch["response_mask"][row] == 1])
        replies = said.split("<|im_end|>")
        assert replies[-1] == ""
        assert all(reply == "Done." or reply.startswith("<tool_call>") for reply in replies[:-1])


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
    from omegaconf import OmegaConf
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
        key, text = override.split("=", 1)
        assert key.split(".")[0] in (*found, "hydra"), key
        assert "???" not in text
    assert found.data.train_files == str(files.train)
    assert found.trainer.default_local_dir == str(files.checkpoints)
    assert found.trainer.logger == ["console", "tensorboard", "file"]
    assert found.actor_rollout_ref.ref.log_prob_max_token_len_per_gpu == found.actor_rollout_ref.rollout.max_model_len


def test_lora_composes_and_verl_trains_beside_the_base(files: StageFiles) -> None:
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    found = composed(stage_overrides(FOUR_STAGES[0], VerlSettings(lora=32, learning_rate=2e-5), files))
    validate_config(found, use_reference_policy=True, use_critic=False)
    model = omega_conf_to_dataclass(found.actor_rollout_ref.model)
    assert (model.lora_rank, model.lora_alpha, model.target_modules) == (32, 64, "all-linear")
    assert model.lora["merge"] is True
    assert composed(stage_overrides(FOUR_STAGES[0], VerlSettings(), files)).actor_rollout_ref.model.lora_rank == 0


@pytest.mark.parametrize("lora", [0, 16])
async def test_the_warm_up_composes_and_verl_reads_its_dataset(model: Path, tmp_path: Path, lora: int) -> None:
    from hydra import compose, initialize_config_module
    from transformers import AutoTokenizer
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    tasks = tasks_of("base", count=8)
    plan = RunPlan.made(model, "playground", (STAGE,), VerlSettings(gpus=2, lora=lora), tasks, None)
    folder = WarmUpFolder(tmp_path / "it's a run, 'x' = 1")
    rollouts = await asyncio.to_thread(solutions, plan, STAGE, folder.rollouts)
    show = (
        sys.executable,
        "-c",
        "import json, os, sys; print(json.dumps([os.environ['VERL_FILE_LOGGER_PATH'], sys.argv]))",
    )
    assert write_warm_up(folder.stage, plan, rollouts, Commands(imitator=show, imitation=("trainer",))) == 2
    shown = subprocess.run(["bash", folder.stage.script, "log"], capture_output=True, text=True, check=True).stdout
    log, arguments = json.loads(shown)
    assert (log, arguments[1:3]) == ("log", ["--nproc_per_node=2", "trainer"])
    with initialize_config_module("verl.trainer.config", version_base=None):
        found = compose("sft_trainer_engine", arguments[3:])
    assert found.trainer.default_local_dir == str(folder.stage.checkpoints)
    assert (found.model.path, found.model.lora_rank, found.model.lora_alpha) == (str(model), lora, 2 * lora)
    assert found.optim.lr == (5e-4 if lora else 1e-5)
    dataset = MultiTurnSFTDataset(found.data.train_files, AutoTokenizer.from_pretrained(model), found.data)
    assert len(dataset) == 8
    text = AutoTokenizer.from_pretrained(model).decode(dataset[0]["input_ids"])
    assert "<tools>" in text
    assert text.index("<tools>") < text.index('<tool_call>\n{"name": "')


def test_a_lora_checkpoint_becomes_one_checkpoint_by_verls_merger(model: Path, tmp_path: Path) -> None:
    """The layout that verl's FSDP engine saves on one GPU, merged by the commands of `merge.sh`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    saved = tmp_path / "global_step_1" / "actor"
    (saved / "huggingface").mkdir(parents=True)
    torch.save(tuned.state_dict(), saved / "model_world_size_1_rank_0.pt")
    (saved / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 1, "world_size": 1}))
    base.config.save_pretrained(saved / "huggingface")
    AutoTokenizer.from_pretrained(model).save_pretrained(saved / "huggingface")
    plan = RunPlan.made(model, "playground", (STAGE,), VerlSettings(lora=4), tasks_of("base"), None)
    folder = StageFolder(tmp_path / "it's a run" / "s")
    write_stage(folder, plan, 0, model, lambda task: 0, Commands())
    command = ["bash", str(folder.merge_script), str(saved)]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert "does not say its lora_alpha" in failed.stderr  # a checkpoint without its scale is never merged wrongly
    assert not folder.model.exists()
    (saved / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}))
    subprocess.run(command, capture_output=True, check=True)
    assert not (folder.model / "lora_adapter").exists()
    merged_model = AutoModelForCausalLM.from_pretrained(folder.model, dtype=torch.float32)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted, got = tuned(ids).logits, merged_model(ids).logits
        untrained = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids).logits
    assert (got - wanted).abs().max() < 0.1 * (untrained - wanted).abs().max()  # verl's merger writes bf16


def test_a_worker_leaves_the_rewards_that_adaptive_help_wants(
    files: StageFiles, tokenizer: Any, tmp_path: Path
) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    entry = tmp_path / "agent_loop.yaml"
    entry.write_text(agent_loop_entry(VerlSettings(max_tokens=512), tmp_path / "rewards"))
    settings = VerlSettings(workers=1)
    found = composed(stage_overrides(STAGE, settings, replace(files, agent_loop=entry)))
    tasks = tasks_of("base", "miss_param")
    worker = AgentLoopWorker(found, ScriptedClient(tokenizer, playground_scripts(tasks)))
    batch = batch_of(files.train, tokenizer, found).repeat(2)
    asyncio.run(worker.generate_sequences(batch))
    groups = reward_groups([tmp_path / "rewards"], -1, 3)  # this older worker of verl tells no step
    assert groups == [(task_id, [1.0, 1.0]) for task_id in sorted(task.task_id for task in tasks)]


def test_a_script_hands_verl_what_the_folder_says(model: Path, tmp_path: Path) -> None:
    plan = RunPlan.made(model, "playground", (STAGE,), VerlSettings(), tasks_of("base"), None)
    folder = StageFolder(tmp_path / "it's a run, 'x' = 1" / "s")
    show = (sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))")
    write_stage(folder, plan, 0, model, lambda task: 0, Commands(trainer=show))
    log = folder.next_log(5)
    command = ["bash", str(folder.script), "5", str(log), "trainer.val_only=True"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = composed(json.loads(shown))
    assert str(log) == found.ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH
    assert (found.trainer.total_training_steps, found.trainer.val_only) == (5, True)
    assert found.data.train_files == str(folder.path / "train.parquet")


def test_a_worker_plays_our_episodes(files: StageFiles, tokenizer: Any, config: Any) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    client = ScriptedClient(tokenizer, playground_scripts(tasks_of("base", "miss_param")))
    worker = AgentLoopWorker(config, client)
    batch = batch_of(files.train, tokenizer, config)
    check_batch(asyncio.run(worker.generate_sequences(batch)), tokenizer, len(batch))
    assert {settings["max_tokens"] for _, _, settings in client.asked} == {512}
    assert {settings["temperature"] for _, _, settings in client.asked} == {1.0}


def test_validation_is_greedy_and_a_failure_counts_as_zero(files: StageFiles, tokenizer: Any, config: Any) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    client = ScriptedClient(tokenizer, {})
    batch = batch_of(files.validation, tokenizer, config, validate=True)
    output = asyncio.run(AgentLoopWorker(config, client).generate_sequences(batch))
    assert list(output.non_tensor_batch["acc"]) == [0.0, 0.0]
    assert {settings["temperature"] for _, _, settings in client.asked} == {0}


def test_an_untrainable_rollout_fails_its_group(files: StageFiles, tokenizer: Any) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    small = Stage("s", max_prompt_tokens=20, max_response_tokens=100, prompts=2, samples=2)
    config = composed(stage_overrides(small, VerlSettings(), files))
    batch = batch_of(files.train, tokenizer, config)
    with pytest.raises(ScorerError, match="no token to train on"):
        asyncio.run(AgentLoopWorker(config, ScriptedClient(tokenizer, {})).generate_sequences(batch))


def test_several_branches_reach_the_trainer_as_rows_of_one_rollout(
    files: StageFiles, tokenizer: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker of verl's present trainer, in this process; only its queue is replaced by a list."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
    from verl.trainer.ppo.v1 import agent_loop_tq

    kept: list[dict[str, Any]] = []

    async def keep(**given: Any) -> None:
        kept.append(given)

    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_batch_put", keep)
    task = tasks_of("miss_func")[0]
    row = dataset_rows([task], "playground", "train", EpisodeTerms("s", 3))[0]
    kind = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    worker = kind.__new__(kind)
    AgentLoopWorker.__init__(worker, config, ScriptedClient(tokenizer, playground_scripts([task])))
    trajectory = {"step": 3, "sample_index": 0, "rollout_n": 0, "validate": False}
    about = {"uid": "u", "session_id": 1, "global_steps": 3, "raw_prompt": row["prompt"]}
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
    asyncio.run(worker._run_agent_loop(sampling, trajectory, trace=False, **row, **about))
    assert [given["keys"] for given in kept] == [["u_1_0", "u_1_1"]]
    fields = kept[0]["fields"]
    rewards = [float(scores.sum()) for scores in fields["rm_scores"].unbind()]
    assert rewards == [1.0, 1.0]
    masks = [int(mask.sum()) for mask in fields["response_mask"].unbind()]
    said = [tokenizer.encode(text, add_special_tokens=False) for text in solution_replies(task)]
    assert sum(masks) == sum(len(ids) + 1 for ids in said)
    assert [len(ids) for ids in fields["responses"].unbind()] == [
        len(one) for one in fields["rollout_log_probs"].unbind()
    ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    # a cluster of its own, also where another one runs on this machine
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_manager_spreads_episodes_over_two_processes(
    cluster: None, files: StageFiles, tokenizer: Any, config: Any
) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopManager

    client = ScriptedClient(tokenizer, playground_scripts(tasks_of("base", "miss_param")))
    manager = AgentLoopManager.create(config, client)
    assert len(manager.agent_loop_workers) == 2
    batch = batch_of(files.train, tokenizer, config).repeat(2)
    output = manager.generate_sequences(batch)
    check_batch(output, tokenizer, len(batch))
    assert output.meta_info["timing"]["agent_loop/num_preempted/max"] == 0


def test_the_log_of_the_real_logger_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils.tracking import FileLogger

    sources = ["base", "base", "miss/func", "base with hints", "miss/func with hints"]
    infos = {"acc": [1.0, 0.0, 1.0, 1.0, 1.0], "progress": [1.0, 0.5, 1.0, 1.0, 1.0], "reward": [0.0] * 5}
    validated = PPOTrainer._val_metrics_update(None, sources, list("abcde"), infos, [3] * 5)
    path = tmp_path / "log.jsonl"
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(path))
    logger = FileLogger("envtune", "s")
    logger.log({"actor/grad_norm": np.float32(0.5), "critic/score/mean": 0.1}, step=1)
    logger.log({"actor/grad_norm": float("nan"), "text": "x", **validated}, step=2)
    found = evaluation_at(merged([read_log(path)[0]]), 2, 0, {"base": 2, "miss/func": 1})
    assert found is not None
    assert found.score == pytest.approx(2 / 3)
    assert found.hint_gap == pytest.approx(1 - 2.5 / 3)
    decision = Curriculum((STAGE,)).observe(found)
    assert str(decision) == "s, step 2: stop. A gradient norm is nan. Go back to the last good weights."
    logger.finish()


def test_the_scripted_trainer_writes_what_the_real_logger_writes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("scripted_trainer.py")
    (tmp_path / "script.json").write_text("{}")
    (tmp_path / "t.parquet").touch()
    arguments = {
        "trainer.experiment_name": "s", "trainer.total_training_steps": "2", "trainer.save_freq": "2",
        "trainer.default_local_dir": str(tmp_path), "data.train_files": str(tmp_path / "t.parquet"),
    }  # fmt: skip
    logs = []
    for real in ("", "1"):
        (tmp_path / "latest_checkpointed_iteration.txt").unlink(missing_ok=True)
        log = tmp_path / f"log{real}.jsonl"
        told = {"SCRIPT": str(tmp_path / "script.json"), "REAL_LOGGER": real}
        arguments["+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"] = f"'{log}'"
        command = [sys.executable, str(script), *(f"{key}={value}" for key, value in arguments.items())]
        subprocess.run(command, env=os.environ | told, check=True, capture_output=True)
        logs.append(read_log(log)[0])
    assert logs[0] == logs[1]


def test_verls_commands_take_the_arguments_that_the_scripts_give() -> None:
    from verl.model_merger.base_model_merger import parse_args

    given = ["merger", "merge", "--backend", "fsdp", "--local_dir", "a/actor", "--target_dir", "b"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", given)
        parsed = parse_args()
    assert (parsed.operation, parsed.local_dir, parsed.target_dir) == ("merge", "a/actor", "b")
