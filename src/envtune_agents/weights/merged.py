"""A LoRA adapter's folder as a checkpoint of its own: its base model with the adapter merged into the weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from envtune_agents.errors import WeightsError, require

ADAPTER_INSTALL = "pip install 'envtune-agents[adapters]'"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def is_adapter(folder: Path) -> bool:
    """Whether `folder` is what peft's `save_pretrained` writes, without a model beside it."""
    return all((folder / file).is_file() for file in ADAPTER_FILES) and not (folder / "config.json").exists()


def base_of(adapter: Path) -> str:
    """The base model that an adapter names: a path beside the adapter's folder where there is one, else the name.

    Raises `WeightsError` when it names none.
    """
    try:
        config = json.loads((adapter / ADAPTER_FILES[0]).read_text())
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    except ValueError as error:
        raise WeightsError(f"'{adapter / ADAPTER_FILES[0]}' is not JSON ({error}); save the adapter again.") from error
    if not base or not isinstance(base, str):
        raise WeightsError(
            f"The LoRA adapter '{adapter}' does not say which model it belongs to. Write that model into "
            "'base_model_name_or_path' of its adapter_config.json, or load the model with adapters={name: folder}."
        )
    beside = (adapter / base).resolve()
    return str(beside) if beside.exists() else base


def merge(model: Any, adapter: Path) -> Any:
    """`model` with the adapter's matrices added to its weights. Raises `WeightsError` when they do not fit."""
    peft = require("peft", feature="A LoRA adapter", install=ADAPTER_INSTALL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers: no one here can act on it
            warnings.simplefilter("error", UserWarning)  # peft only warns of tensors that it cannot place
            return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except Exception as error:  # peft, transformers and safetensors share no base class
        reason = str(error).strip().splitlines()
        raise WeightsError(
            f"The LoRA adapter at '{adapter}' does not fit its base model ({type(error).__name__}: "
            f"{reason[0] if reason else ''})."
        ) from error
