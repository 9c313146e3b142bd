"""LoRA adapters by name: which ones a chat model knows, and how they get into the shared model."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from envtune_agents.engine import Engine
from envtune_agents.errors import WeightsError, require, unknown
from envtune_agents.weights.merged import ADAPTER_FILES, ADAPTER_INSTALL

_loaded: WeakKeyDictionary[Engine, set[str]] = WeakKeyDictionary()
_lock = threading.Lock()


def adapter_path(wanted: str, base: str, adapters: Mapping[str, str]) -> str | None:
    """The folder of the adapter that `model=wanted` names; None for the base model itself.

    Raises `WeightsError` with the known names. The base model goes by its whole name and by the last part of it.
    """
    if wanted in adapters:
        return adapters[wanted]
    if wanted in (base, Path(base).name):
        return None
    raise WeightsError(
        f"{unknown('model', wanted, [base, *adapters])} An adapter gets a name by adapters={{name: folder}} or "
        "load_adapter(name, folder)."
    )


def adapter_key(path: str) -> str:
    """The name of an adapter inside the model: one for each state of its files, whoever calls it what.

    Raises `WeightsError` when `path` holds no adapter in safetensors.
    """
    folder = Path(path).expanduser()
    files = [folder / file for file in ADAPTER_FILES]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(
            f"'{folder.absolute()}' holds no LoRA adapter: {' and '.join(missing)} missing. Wanted: a folder as peft's "
            "`save_pretrained` writes it; pickled adapters are refused."
        )
    state = "|".join(f"{file.resolve()}:{file.stat().st_mtime_ns}:{file.stat().st_size}" for file in files)
    return f"lora_{hashlib.sha256(state.encode()).hexdigest()[:16]}"


def loaded_adapter(engine: Engine, path: str) -> str:
    """The name under which the engine's model has the adapter at `path`; loads it in the engine's thread if need be."""
    key = adapter_key(path)
    with _lock:
        if key not in _loaded.setdefault(engine, set()):
            require("peft", feature="A LoRA adapter", install=ADAPTER_INSTALL)
            engine.run(lambda model: _load(model, path, key))
            _loaded[engine].add(key)
    return key


def _load(model: Any, path: str, key: str) -> None:
    if key in (getattr(model, "peft_config", None) or {}):
        return
    logging = require("transformers.utils.logging", feature="A LoRA adapter", install=ADAPTER_INSTALL)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is what is wanted
            model.load_adapter(str(Path(path).expanduser()), adapter_name=key)
    except Exception as error:  # peft, transformers and safetensors share no base class
        reason = str(error).strip().splitlines()
        raise WeightsError(
            f"The LoRA adapter at '{path}' does not fit this model ({type(error).__name__}: "
            f"{reason[0] if reason else ''}). Was it trained on another base model?"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
