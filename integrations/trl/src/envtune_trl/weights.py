"""The trainer's model at a stage: loaded, wrapped in LoRA where asked for, and written back."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from envtune_agents.chat_model.prefixes import prefix_preserving
from envtune_agents.engine import Engine
from envtune_agents.errors import WeightsError
from envtune_agents.weights import Weights, checkpoint_files, load_weights
from envtune_trl.settings import QUANTISED, TrainSettings

ADAPTER, FULL = "adapter", "model"
"""Names of the folders that weights are written to: a LoRA adapter, or all weights."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that can be trained, and the engine that speaks for it."""

    weights: Weights
    model: Any
    """The transformers model, or the PEFT model around it."""

    def engine(self) -> Engine:
        """An engine over this very model: it decodes with whatever weights the trainer has written."""
        bare = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return Engine(lambda: replace(self.weights, model=_AsItIs(bare)))


class _AsItIs:
    """A model whose adapters are the trainer's business: the engine must neither choose one nor switch them off."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "peft_config":
            raise AttributeError(name)
        return getattr(self._model, name)


def load_policy(model: str | Path, settings: TrainSettings, start: Path | None) -> Policy:
    """The policy to train: `model`, or the weights in folder `start` when a stage has been trained before."""
    full = start is not None and not settings.lora
    source = str(start) if full else model
    weights = load_weights(source, settings.precision, max_context=settings.max_context)
    loaded = _trainable_form(weights.model)
    if not settings.lora:
        if settings.precision in QUANTISED:
            raise WeightsError(f"Weights held in {settings.precision} cannot be trained; give lora a rank.")
        return Policy(weights, loaded.requires_grad_(True))
    return Policy(weights, _with_adapter(loaded, settings, start))


@contextmanager
def own_warnings_only() -> Iterator[None]:
    """Without what peft and TRL call forth by transformers' old name for activation checkpointing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


@own_warnings_only()
def _with_adapter(model: Any, settings: TrainSettings, start: Path | None) -> Any:
    peft: Any = import_module("peft")  # its types are incomplete
    if settings.precision in QUANTISED:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=settings.gradient_checkpointing)
    if start is not None:
        return peft.PeftModel.from_pretrained(model, str(start), is_trainable=True)
    config = peft.LoraConfig(
        r=settings.lora,
        lora_alpha=2 * settings.lora,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with _seeded(settings.seed):
        return peft.get_peft_model(model, config)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers that follow from the seed, and none used up outside: an adapter's first weights are drawn."""
    import torch

    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _trainable_form(model: Any) -> Any:
    """Weights read from a GGUF file are dense, but transformers 5 still calls them quantised and refuses to save."""
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", None)
    if "gguf" in str(method).lower():
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    return model


def trainable_base(model: str | Path, settings: TrainSettings, copy: Path) -> str | Path:
    """The checkpoint to train from: `model`, or a safetensors copy of a GGUF file, written to the folder `copy` once.

    bitsandbytes quantises safetensors only, and the trainer reads the reference weights of a full-weight run anew from
    safetensors. A LoRA run in whole numbers trains beside the GGUF weights as they are.
    """
    needed = settings.precision in QUANTISED or (not settings.lora and settings.kl > 0)
    if not needed or not any(file.suffix == ".gguf" for file in checkpoint_files(str(model))):
        return model
    if not copy.exists():
        weights = load_weights(model, "bf16" if settings.precision in QUANTISED else settings.precision)
        with _written_whole(copy) as part:
            _trainable_form(weights.model).save_pretrained(part, safe_serialization=True)
            weights.tokenizer.save_pretrained(part)
    return copy


def save_policy(policy: Policy, model: Any, folder: Path, settings: TrainSettings) -> Path:
    """Writes the weights so that `load_policy` and `ChatTransformers` find them; gives their folder."""
    target = folder / (ADAPTER if settings.lora else FULL)
    with _written_whole(target) as part:
        if settings.lora:
            model.peft_config["default"].base_model_name_or_path = _lasting_name(policy.weights.name)
            model.save_pretrained(part, selected_adapters=["default"])
            Path(part, "README.md").unlink(missing_ok=True)  # peft's empty form; ours comes when it can be filled in
        else:
            model.save_pretrained(part, safe_serialization=True)
            policy.weights.tokenizer.save_pretrained(part)
    return target


def _lasting_name(model: str) -> str:
    """The name under which the base model is found from any folder: paths become absolute."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


@contextmanager
def _written_whole(target: Path) -> Iterator[str]:
    """A folder to write into, which becomes `target` at the end: a crash never leaves half of one."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    yield str(part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def weights_in(folder: Path) -> Path | None:
    """The folder of the weights that were written below `folder`, or None when they were not."""
    return next((folder / name for name in (ADAPTER, FULL) if (folder / name).is_dir()), None)


def merged(policy: Policy, model: Any, folder: Path) -> Path:
    """Writes the weights with the adapter merged in, as a checkpoint of its own."""
    whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    with _written_whole(folder) as part:
        whole.save_pretrained(part, safe_serialization=True)
        policy.weights.tokenizer.save_pretrained(part)
    return folder


def check_prefix_preserving(policy: Policy) -> None:
    """Raises `WeightsError` when the chat template rewrites earlier replies, with what follows from it and what to do.

    Such a template breaks a conversation into many branches; each is trained right, but a row holds only one reply.
    """
    if not prefix_preserving(policy.weights):
        raise WeightsError(
            f"The chat template of '{policy.weights.name}' is not prefix-preserving: it writes earlier replies anew "
            "when the conversation goes on, so sampled tokens cannot be trained as they stand. Use an Instruct "
            "checkpoint without hidden thoughts, such as Qwen3-4B-Instruct-2507, or give the checkpoint a chat "
            "template that keeps every earlier message."
        )
