"""A LoRA adapter with random weights, in the files that peft writes, for tests of loading and choosing adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from envtune_agents.errors import WeightsError, require
from envtune_agents.testing.tiny import INSTALL
from envtune_agents.weights.header import shape_of
from envtune_agents.weights.source import find_local

RANK = 4


def random_adapter(folder: str | Path, model: str | Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """An adapter on every query projection of the checkpoint at `model`, written to `folder`.

    `scale` is the standard deviation of its weights: large ones change every reply, 0 changes none.
    """
    torch = require("torch", feature="random_adapter", install=INSTALL)
    saving = require("safetensors.torch", feature="random_adapter", install=INSTALL)
    source = find_local(model)
    if source is None:
        raise WeightsError(f"There is no checkpoint '{model}' on this disk to make an adapter for.")
    shape, path = shape_of(source), Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(shape.layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for part, sizes in {"A": (RANK, shape.hidden), "B": (shape.heads * shape.head_size, RANK)}.items():
            tensors[f"{name}.lora_{part}.weight"] = scale * torch.randn(*sizes, generator=generator)
    saving.save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "inference_mode": True,
    }
    config |= {"target_modules": ["q_proj"], "base_model_name_or_path": str(model)}
    (path / "adapter_config.json").write_text(json.dumps(config, indent=1))
    return path
