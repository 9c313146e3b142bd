"""What a checkpoint says about itself before it is loaded: sizes from config.json, safetensors and GGUF headers.

Comes in: a name as `load_weights` takes it. Goes out: a few numbers. It imports nothing heavy, reads no tensor and asks
no network; of a hub id it knows what the local hub cache holds.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from envtune_agents.errors import WeightsError
from envtune_agents.weights.source import WeightsSource, find_local

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_TEXT = 1 << 26
_GGUF_KEYS = {
    "context": "context_length",
    "layers": "block_count",
    "hidden": "embedding_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_size": "attention.key_length",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    context: int
    """Most tokens of prompt and completion together; 0 when unknown."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint."""

    name: str
    size: int
    """Numbers in it."""
    dimensions: int


def checkpoint_files(model: str) -> list[Path]:
    """The files of a checkpoint on this disk; [] when it is not here."""
    source = find_local(model)
    return source.files if source else []


def context_length(model: str) -> int | None:
    """Tokens of context of a checkpoint on this disk; None when it is not here or does not say."""
    try:
        source = find_local(model)
        return (shape_of(source).context or None) if source else None
    except (WeightsError, OSError, ValueError, KeyError):
        return None


def shape_of(source: WeightsSource) -> Shape:
    """The sizes of a checkpoint."""
    file = source.folder / (source.gguf_file or "config.json")
    return (_gguf_shape if source.gguf_file else _config_shape)(str(file), file.stat().st_mtime_ns)


def tensors_of(source: WeightsSource) -> list[Tensor]:
    """Every tensor of a checkpoint; tied ones count once."""
    if source.gguf_file:
        with (source.folder / source.gguf_file).open("rb") as stream:
            return list(_gguf_tensors(stream))
    found: dict[str, Tensor] = {}
    for file in sorted(source.folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= file.stat().st_size:
                raise ValueError(f"{file.name} is no safetensors file, or a damaged one")
            header = json.loads(stream.read(length))
        for name, facts in header.items():
            if name != "__metadata__":
                found[name] = Tensor(name, prod(facts["shape"]), len(facts["shape"]))
    return list(found.values())


@lru_cache(maxsize=64)
def _config_shape(file: str, mtime_ns: int) -> Shape:
    config = json.loads(Path(file).read_text())
    text = config.get("text_config") or config
    heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
    return Shape(
        layers=int(text["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_size=int(text.get("head_dim") or hidden // heads),
        context=int(text.get("max_position_embeddings") or 0),
    )


@lru_cache(maxsize=64)
def _gguf_shape(file: str, mtime_ns: int) -> Shape:
    found: dict[str, Any] = {}
    with Path(file).open("rb") as stream:
        for key, value in _gguf_fields(stream):
            found[key] = value
            if key.startswith("tokenizer."):
                break  # sizes stand in front of the vocabulary, which is most of the header
    architecture = str(found.get("general.architecture"))
    sizes = {name: int(found.get(f"{architecture}.{key}") or 0) for name, key in _GGUF_KEYS.items()}
    sizes["kv_heads"] = sizes["kv_heads"] or sizes["heads"]
    sizes["head_size"] = sizes["head_size"] or sizes["hidden"] // max(1, sizes["heads"])
    return Shape(**sizes)


def _gguf_fields(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Keys and values of a GGUF header; arrays come as their length."""
    magic, version, _, fields = _unpack(stream, "<4sIQQ")
    if magic != b"GGUF" or version < 2:
        raise WeightsError(f"'{stream.name}' is no GGUF file of version 2 or later (got {magic!r}, {version}).")
    for _ in range(fields):
        key = _text(stream)
        (kind,) = _unpack(stream, "<I")
        yield key, _value(stream, kind)


def _gguf_tensors(stream: BinaryIO) -> Iterator[Tensor]:
    count = _unpack(stream, "<4sIQQ")[2]
    stream.seek(0)
    for _ in _gguf_fields(stream):
        pass
    for _ in range(count):
        name = _text(stream)
        (dimensions,) = _unpack(stream, "<I")
        sizes = _unpack(stream, f"<{min(dimensions, 8)}Q")
        _unpack(stream, "<IQ")  # its type and offset
        yield Tensor(name, prod(sizes), dimensions)


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(stream)
    if kind == _ARRAY:
        item, length = _unpack(stream, "<IQ")
        if item in _SCALARS:
            stream.seek(length * struct.calcsize("<" + _SCALARS[item]), 1)
        else:
            for _ in range(length):
                _value(stream, item)
        return length
    if kind not in _SCALARS:
        raise WeightsError(f"'{stream.name}' has a GGUF field of unknown type {kind}: it is damaged.")
    return _unpack(stream, "<" + _SCALARS[kind])[0]


def _text(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "<Q")
    data = stream.read(length) if length < _LONGEST_TEXT else b""
    if len(data) < length:
        raise WeightsError(f"'{stream.name}' ends inside its header: it is damaged or was not copied whole.")
    return data.decode("utf-8", "replace")


def _unpack(stream: BinaryIO, code: str) -> tuple[Any, ...]:
    size = struct.calcsize(code)
    data = stream.read(size)
    if len(data) < size:
        raise WeightsError(f"'{stream.name}' ends inside its header: it is damaged or was not copied whole.")
    return struct.unpack(code, data)
