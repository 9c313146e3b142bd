"""One engine for each set of loaded weights in this process, whoever asks for it."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envtune_agents.engine import Engine
from envtune_agents.weights import load_weights


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What makes two chat models share their weights: all of this is equal."""

    model: str
    precision: str
    device_map: str
    """JSON of the device map."""
    max_context: int | None
    revision: str | None
    cache_bytes: int

    @classmethod
    def of(
        cls,
        model: str | Path,
        *,
        precision: str,
        device_map: str | dict[str, Any] | None,
        max_context: int | None,
        revision: str | None,
        cache_bytes: int,
    ) -> EngineKey:
        """The key of these settings; an existing path is resolved first, so that two spellings are one checkpoint."""
        path = Path(model).expanduser()
        name = str(path.resolve()) if path.exists() else str(model)
        return cls(name, precision, json.dumps(device_map, sort_keys=True), max_context, revision, cache_bytes)


_engines: dict[EngineKey, Engine] = {}
_lock = threading.Lock()


def shared_engine(key: EngineKey) -> Engine:
    """The engine of `key`, made on first use; loading starts only when it is asked for something.

    An engine whose loading failed is replaced, so that a repaired checkpoint can be tried again.
    """
    with _lock:
        engine = _engines.get(key)
        if engine is not None and engine.failed:
            engine.close()
        if engine is None or engine.failed:
            engine = _engines[key] = Engine(lambda: _load(key), cache_bytes=key.cache_bytes)
        return engine


def release_engines() -> None:
    """Forget every loaded checkpoint; memory is freed when the requests under way are done."""
    with _lock:
        for engine in _engines.values():
            engine.close()
        _engines.clear()


def _load(key: EngineKey) -> Any:
    return load_weights(
        key.model,
        key.precision,
        device_map=json.loads(key.device_map),
        max_context=key.max_context,
        revision=key.revision,
        packed=True,
    )
