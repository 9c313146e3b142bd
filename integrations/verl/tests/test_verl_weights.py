"""The warm-up and LoRA with verl's real classes on a CPU: what is trained, from which rows, and how it is merged."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from verl_batches import STAGE, composed, tasks_of

from envtune_agents.curriculum import FOUR_STAGES
from envtune_verl import VerlSettings, stage_overrides
from envtune_verl.overrides import StageFiles
from envtune_verl.plan import RunPlan
from envtune_verl.run_folder import Commands, StageFolder, write_stage
from envtune_verl.warm_up import WarmUpFolder, solutions, write_warm_up

pytest.importorskip("verl")


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
