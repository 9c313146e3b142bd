"""What a run was made with: model, template, tasks, settings, versions, command; written beside its rollouts.

Hashes are SHA-256. A local checkpoint is hashed file by file, weights included; a served model cannot be looked into,
so its name and address stand for it. Task data that is not JSON counts by its type's name only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic import TypeAdapter, ValidationError

from envtune_agents.errors import RecordError
from envtune_agents.types import Task

MANIFEST_NAME = "manifest.json"
OLD_MANIFEST_NAME = "run.json"
"""Where version 0.1 kept the settings of a run."""
DECODING = ("temperature", "top_p", "top_k", "max_tokens", "seed", "n", "parse_mode", "enable_thinking", "max_context")
PACKAGES = (
    "envtune-agents", "envtune-bfcl", "bfcl-eval", "langchain-core", "langgraph", "torch", "transformers", "llguidance",
    "langchain-openai", "openai",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelPrint:
    """Which model it was, as far as can be told."""

    name: str
    kind: str
    """The class that was called, such as "ChatTransformers"."""
    sha256: str = ""
    """Over the names and contents of the checkpoint's files; "" for a model whose files cannot be seen."""
    endpoint: str = ""
    """Address of a served model."""
    precision: str = ""
    """What the weights were loaded as."""
    template_hash: str = ""
    """Which chat template renders prompts with tools; "" where the server does it."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """The decoding settings that the model declares; temperature 0 is greedy."""


@dataclass(frozen=True, slots=True)
class RunManifest:
    """What decides the rollouts of a run: with it the same command can be given again."""

    model: ModelPrint
    settings: Mapping[str, Any]
    """Seed, dial, rules, scorer and the other options of `collect`, as plain JSON; a run never changes them."""
    n_tasks: int = 0
    data_sha256: str = ""
    """Over the tasks' ids, messages and data, in order."""
    samples: int = 1
    """Rollouts of each task."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python and of the packages that can change a rollout."""
    command: str = ""
    """The command line; "" when called from Python."""
    started: str = ""
    """UTC, ISO 8601."""

    def decides(self) -> dict[str, Any]:
        """What must be equal for two calls to add to the same run; None where it is not known."""
        model = {"weights": self.model.sha256 or None, "template": self.model.template_hash or None}
        return {**self.settings, "model": self.model.name, **model, "decoding": dict(self.model.decoding)}


def run_manifest(
    model: BaseChatModel | ModelPrint | Any,
    tasks: Sequence[Task] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    samples: int = 1,
) -> RunManifest:
    """The manifest of a run that plays `tasks` with `model` now. Loads the model's weights if they are not yet.

    A model that lives elsewhere is given by its print.
    """
    return RunManifest(
        model=model if isinstance(model, ModelPrint) else print_of(model),
        settings=dict(settings or {}),
        n_tasks=len(tasks),
        data_sha256=data_hash(task_hash(task) for task in tasks),
        samples=samples,
        versions=versions(),
        command=command_line(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def write_manifest(folder: Path, manifest: RunManifest) -> None:
    """Writes `manifest.json`, whole or not at all. One that is there already must decide the same, and is kept.

    Raises `RecordError` naming what differs, for a folder that holds rollouts of other settings.
    """
    known = _decided(folder)
    if known is None:
        path = folder / MANIFEST_NAME
        draft = path.with_suffix(".json.part")
        try:
            draft.write_text(json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n", encoding="utf-8")
            os.replace(draft, path)
        except OSError as error:
            raise RecordError(f"Cannot write {path}: {error.strerror}. Make room or choose another folder.") from error
        return
    now = json.loads(json.dumps(manifest.decides()))
    changed = [key for key in sorted({*known, *now}) if _differs(key, known.get(key), now.get(key))]
    if changed:
        differences = "; ".join(f"{key} was {known.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise RecordError(f"{folder} holds rollouts of other settings: {differences}. Choose another folder.")


def _differs(key: str, was: Any, now: Any) -> bool:
    """What an older manifest did not write down cannot differ."""
    if key in ("weights", "template"):
        return None not in (was, now) and was != now
    if key == "decoding" and isinstance(was, dict):
        return any(was[name] != now[name] for name in was.keys() & now.keys())
    return bool(was != now)


def read_manifest(folder: str | Path) -> RunManifest | None:
    """The manifest of a run; None for a run of version 0.1, which has none. `RecordError` for one that is damaged."""
    path = Path(folder) / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        return TypeAdapter(RunManifest).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecordError(f"Cannot read {path}: {reason}. Mend or remove it, or choose another folder.") from error


def run_settings(run: str | Path) -> dict[str, Any]:
    """What decided a run, from its folder or a file in it; empty where nothing was written down.

    Raises `RecordError` for a damaged manifest.
    """
    path = Path(run)
    return _decided(path if path.is_dir() else path.parent) or {}


def _decided(folder: Path) -> dict[str, Any] | None:
    manifest = read_manifest(folder)
    if manifest is not None:
        return json.loads(json.dumps(manifest.decides()))  # type: ignore[no-any-return]
    old = folder / OLD_MANIFEST_NAME
    if not old.exists():
        return None
    try:
        known = json.loads(old.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"Cannot read {old}: {error}. Choose another folder.") from error
    return known if isinstance(known, dict) else {}


# --- the parts ---


def task_hash(task: Task) -> str:
    """The first 16 hex digits of the hash of a task: id, category, messages and data."""
    fields = [task.task_id, task.category, list(task.turns), dict(task.data)]
    return hashlib.sha256(_canonical(fields).encode()).hexdigest()[:16]


def data_hash(task_hashes: Iterable[str]) -> str:
    """One hash over the hashes of tasks, in order."""
    return hashlib.sha256("\n".join(task_hashes).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of this library, of Python, and of the installed packages that can change a result."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """How the `envtune` command was called; "" in any other program."""
    from shlex import join

    program = Path(sys.argv[0]).name if sys.argv else ""
    return without_secrets(join(["envtune", *sys.argv[1:]])) if program.startswith("envtune") else ""


def without_secrets(text: str) -> str:
    """The text with user names and passwords taken out of its addresses."""
    return re.sub(r"(https?://)[^\s/@]*@", r"\1", text)


def model_name(model: Any) -> str:
    """The name a record gives a model: its `model_name` or `model` field, otherwise its kind."""
    name = getattr(model, "model_name", None) or getattr(model, "model", None)
    return str(name or getattr(model, "_llm_type", type(model).__name__))


def print_of(agent: Any) -> ModelPrint:
    """Which model this is: checkpoint files are read and hashed once in a process."""
    kind = type(agent).__name__
    if not isinstance(agent, BaseChatModel):
        return ModelPrint(model_name(agent), "graph")
    decoding = {name: getattr(agent, name) for name in DECODING if getattr(agent, name, None) is not None}
    endpoint = without_secrets(str(getattr(agent, "openai_api_base", None) or getattr(agent, "base_url", None) or ""))
    if kind != "ChatTransformers":
        return ModelPrint(model_name(agent), kind, endpoint=endpoint, decoding=decoding)
    return ModelPrint(
        name=model_name(agent),
        kind=kind,
        sha256=files_hash(checkpoint_files(agent)),
        precision=agent.engine.weights.precision,  # type: ignore[attr-defined]
        template_hash=_template_hash(agent),
        decoding=decoding,
    )


def checkpoint_files(model: Any) -> list[Path]:
    """The files that make a local checkpoint what it is: weights, configuration, tokenizer."""
    from envtune_agents.weights.source import find_weights

    return find_weights(model.model, revision=model.revision).files


_file_hashes: dict[tuple[str, int, int], str] = {}


def files_hash(files: Sequence[Path]) -> str:
    """SHA-256 over the name and the SHA-256 of each file, in order."""
    return hashlib.sha256("\n".join(f"{path.name} {_file_hash(path)}" for path in files).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    stat = os.stat(path)
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _file_hashes:
        with path.open("rb") as file:
            _file_hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _file_hashes[key]


def _template_hash(model: Any) -> str:
    from envtune_agents.chat_model.template import template_for

    probe = [{"type": "function", "function": {"name": "probe", "parameters": {"type": "object", "properties": {}}}}]
    return template_for(model.engine.weights, model.chat_template, [], probe, model.enable_thinking).hash


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=lambda other: f"<{type(other).__name__}>")
