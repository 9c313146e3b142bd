"""`python -m envtune_verl.adapter FOLDER`: a LoRA adapter into the checkpoint it lies in, as one checkpoint again.

verl's merger leaves the base weights in FOLDER and the adapter in FOLDER/lora_adapter. The next stage begins with both
together, so that its KL is to the weights that the stage began with.
"""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from envtune_agents.errors import WeightsError

ADAPTER = "lora_adapter"
"""verl's name of the adapter's folder."""


def merge_adapter(folder: Path) -> None:
    """Merges `folder/lora_adapter` into the weights of `folder` and removes it; both stay when that fails.

    Raises `WeightsError` when there is none, or when its scale is not known.
    """
    adapter = folder / ADAPTER
    if not (adapter / "adapter_config.json").is_file():
        raise WeightsError(
            f"'{folder}' holds no {ADAPTER}. A run with a LoRA rank writes one; look at the trainer's log."
        )
    peft: Any = import_module("peft")
    transformers: Any = import_module("transformers")
    if not peft.LoraConfig.from_pretrained(str(adapter)).lora_alpha:
        raise WeightsError(
            f"'{adapter}' does not say its lora_alpha, and merged without it the training would be lost. Write the "
            "value of actor_rollout_ref.model.lora_alpha into its adapter_config.json and run the same command again."
        )
    base = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", use_safetensors=True)
    whole = peft.PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    part = folder / "merged.part"
    whole.save_pretrained(str(part), safe_serialization=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    for file in part.iterdir():
        file.replace(folder / file.name)
    part.rmdir()
    shutil.rmtree(adapter)


if __name__ == "__main__":
    merge_adapter(Path(sys.argv[1]))
