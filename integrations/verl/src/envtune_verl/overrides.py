"""One stage of the curriculum as Hydra overrides of verl's `ppo_trainer`, and the agent loop file they point to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from envtune_agents.curriculum import Stage
from envtune_verl.dataset import AGENT_NAME
from envtune_verl.settings import VerlSettings


@dataclass(frozen=True, slots=True)
class StageFiles:
    """Where a stage's inputs and outputs are."""

    model: Path | str
    """The weights that the stage begins with: a folder, or a hub id."""
    train: Path
    validation: Path
    agent_loop: Path
    checkpoints: Path


def stage_overrides(stage: Stage, settings: VerlSettings, files: StageFiles) -> list[str]:
    """The overrides of one stage; `settings.overrides` come last. Only the number of steps is left open."""
    stage = settings.stage(stage)
    whole = stage.max_prompt_tokens + stage.max_response_tokens
    values: dict[str, object] = {
        **_algorithm(settings),
        **_data(stage, settings, files),
        **_model(settings, files),
        **_actor(stage, settings, whole),
        **_rollout(stage, settings, files, whole),
        **_trainer(stage, settings, files),
    }
    return [*hydra_lines(values), *settings.overrides]


def hydra_lines(values: Mapping[str, object]) -> list[str]:
    """The values as overrides."""
    return [f"{key}={_hydra(value)}" for key, value in values.items()]


def agent_loop_entry(settings: VerlSettings, rewards: Path | None = None) -> str:
    """The text of the agent loop file (`agent_loop_config_path`); `rewards` is where rollouts leave their rewards."""
    entry: dict[str, object] = {
        "name": AGENT_NAME,
        "_target_": "envtune_verl.agent_loop.EnvTuneAgentLoop",
        "max_tokens": settings.max_tokens,
        "max_steps_per_turn": settings.max_steps_per_turn,
        "seed": settings.seed,
        "rewards": str(rewards) if rewards else None,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in entry.items()]
    return "- " + "\n  ".join(lines) + "\n"


def _algorithm(settings: VerlSettings) -> dict[str, object]:
    return {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": True,
        "algorithm.use_kl_in_reward": False,
    }


def _data(stage: Stage, settings: VerlSettings, files: StageFiles) -> dict[str, object]:
    return {
        "data.train_files": files.train,
        "data.val_files": files.validation,
        "data.train_batch_size": stage.prompts,
        "data.max_prompt_length": stage.max_prompt_tokens,
        "data.max_response_length": stage.max_response_tokens,
        "data.filter_overlong_prompts": False,  # it cannot see the tools; the dataset was filtered when written
        "data.dataloader_num_workers": 0,
        "data.seed": settings.seed,
    }


def _model(settings: VerlSettings, files: StageFiles) -> dict[str, object]:
    model = "actor_rollout_ref.model"
    values: dict[str, object] = {f"{model}.path": files.model, f"{model}.enable_gradient_checkpointing": True}
    if settings.lora:
        values |= {
            f"{model}.lora_rank": settings.lora,
            f"{model}.lora_alpha": 2 * settings.lora,
            f"{model}.target_modules": "all-linear",
            f"{model}.lora.merge": True,  # the servers get whole weights: nothing of theirs has to know of LoRA
        }
    return values


def _actor(stage: Stage, settings: VerlSettings, whole: int) -> dict[str, object]:
    actor = "actor_rollout_ref.actor"
    return {
        f"{actor}.optim.lr": settings.learning_rate,
        f"{actor}.optim.lr_scheduler_type": "constant",
        f"{actor}.optim.weight_decay": 0.01,
        f"{actor}.grad_clip": settings.max_grad_norm,
        f"{actor}.optim.clip_grad": settings.max_grad_norm,
        f"{actor}.ppo_mini_batch_size": stage.prompts,
        f"{actor}.ppo_epochs": 1,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": whole,
        f"{actor}.clip_ratio": settings.clip_low,
        f"{actor}.clip_ratio_low": settings.clip_low,
        f"{actor}.clip_ratio_high": settings.clip_high,
        f"{actor}.clip_ratio_c": settings.dual_clip,
        f"{actor}.loss_agg_mode": "seq-mean-token-mean",
        f"{actor}.use_kl_loss": settings.kl > 0,
        f"{actor}.kl_loss_coef": settings.kl,
        f"{actor}.kl_loss_type": "low_var_kl",
        f"{actor}.entropy_coeff": settings.entropy,
        f"{actor}.fsdp_config.param_offload": settings.offload,
        f"{actor}.fsdp_config.optimizer_offload": settings.offload,
        "actor_rollout_ref.ref.fsdp_config.param_offload": settings.offload,
    }


def _rollout(stage: Stage, settings: VerlSettings, files: StageFiles, whole: int) -> dict[str, object]:
    rollout = "actor_rollout_ref.rollout"
    return {
        f"{rollout}.name": settings.server,
        f"{rollout}.n": stage.samples,
        f"{rollout}.temperature": settings.temperature,
        f"{rollout}.top_p": 1.0,
        f"{rollout}.prompt_length": stage.max_prompt_tokens,
        f"{rollout}.response_length": stage.max_response_tokens,
        f"{rollout}.max_model_len": whole,
        f"{rollout}.tensor_model_parallel_size": settings.tensor_parallel,
        f"{rollout}.gpu_memory_utilization": settings.gpu_memory,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.val_kwargs.temperature": 0,
        f"{rollout}.val_kwargs.top_p": 1.0,
        f"{rollout}.val_kwargs.n": 1,
        f"{rollout}.val_kwargs.do_sample": False,
        f"{rollout}.multi_turn.enable": True,
        f"{rollout}.agent.num_workers": settings.workers,
        f"{rollout}.agent.default_agent_loop": AGENT_NAME,
        f"{rollout}.agent.agent_loop_config_path": files.agent_loop,
    }


def _trainer(stage: Stage, settings: VerlSettings, files: StageFiles) -> dict[str, object]:
    return {
        "trainer.use_v1": True,  # the older trainer takes one row for each rollout
        "trainer.project_name": "envtune",
        "trainer.experiment_name": stage.name,
        "trainer.logger": [*settings.loggers, "file"],
        "trainer.n_gpus_per_node": settings.gpus,
        "trainer.nnodes": settings.nodes,
        "trainer.total_epochs": 1_000_000,  # the number of steps decides
        "trainer.val_before_train": False,
        "trainer.test_freq": settings.evaluate_every,
        "trainer.save_freq": settings.save_every,
        "trainer.max_actor_ckpt_to_keep": settings.keep_checkpoints,
        "trainer.resume_mode": "auto",
        "trainer.default_local_dir": files.checkpoints,
        "+ray_kwargs.ray_init.runtime_env.env_vars.TENSORBOARD_DIR": files.checkpoints.with_name("tensorboard"),
        "hydra.run.dir": files.checkpoints.with_name("hydra"),
    }


def _hydra(value: object) -> str:
    """A value in Hydra's override grammar; text is quoted where it holds more than plain characters."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(_hydra(part) for part in value)}]"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if text.replace("_", "").replace("-", "").replace("/", "").replace(".", "").isalnum():
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
