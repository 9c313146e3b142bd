"""A finished experiment with the tiny subject -> what others can load: the warmed-up model, and an adapter of each arm.

The adapters are those of seed 0 of every arm, whatever their results, in the files that peft writes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from arms import ARMS, Run
from packed import LINEARS
from safetensors.torch import load_file, save_file
from torch import Tensor

SUBJECT = "warmed-up"
_KEPT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def publish(out: Path, target: Path) -> None:
    """Writes `warmed-up/` and one folder for each arm to `target`."""
    settings = json.loads((out / "settings.json").read_text())
    (target / SUBJECT).mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        shutil.copyfile(out / "subject" / name, target / SUBJECT / name)
    runs = [Run(arm, seed) for arm in ARMS if arm in settings["arms"] for seed in range(settings["seeds"])]
    tensors = {
        name.removeprefix("adapter."): tensor
        for name, tensor in load_file(out / "state.safetensors").items()
        if name.startswith("adapter.")
    }
    for index, run in enumerate(runs):
        if run.seed == 0:
            _write_adapter(target / run.arm, tensors, index, settings["rank"])


def _write_adapter(folder: Path, tensors: dict[str, Tensor], run: int, rank: int) -> None:
    """One run's A [d_in, r] and B [r, d_out], as peft keeps them: transposed, with alpha = 2 r (`Adapters.scale`)."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {}
    for key, tensor in tensors.items():
        path, kind = key.rsplit(".", 1)
        named[f"base_model.model.model.{path}.lora_{kind.upper()}.weight"] = tensor[run].T.contiguous()
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": f"../{SUBJECT}",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(LINEARS),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
