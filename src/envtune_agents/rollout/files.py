"""The lines of a rollout file, plain or zstd, one at a time: memory does not grow with the file.

A zstd file holds one frame for each line, so that appending is atomic there too and any zstd program reads the whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from envtune_agents.errors import RecordError, require
from envtune_agents.rollout.lines import from_line
from envtune_agents.types import Rollout

log = logging.getLogger(__name__)

FILE_NAME = "rollouts.jsonl"
ZSTD_NAME = "rollouts.jsonl.zst"
ZSTD_INSTALL = "pip install 'envtune-agents[zstd]'"
_CHUNK_BYTES = 1 << 20


class StoredLine(NamedTuple):
    """One line of a file."""

    number: int
    """1-based."""
    line: bytes
    """Without compression, newline included; b"" for what is torn."""
    end: int
    """Offset in the file after it."""


def file_of(path: str | Path) -> Path:
    """The rollout file that `path` means: the file itself, or the one in a folder."""
    path = Path(path)
    if path.is_dir() or not path.suffix:
        plain, packed = path / FILE_NAME, path / ZSTD_NAME
        if plain.exists() and packed.exists():
            raise RecordError(
                f"{path} holds both {FILE_NAME} and {ZSTD_NAME}. Name the one you mean, or move the other away."
            )
        return packed if packed.exists() else plain
    return path


def stored_lines(file: Path) -> Iterator[StoredLine]:
    """The lines of `file`, oldest first; a torn end comes last, with an empty line and the offset where it begins."""
    yield from _zstd_lines(file) if file.suffix == ".zst" else _plain_lines(file)


def read_rollouts(path: str | Path) -> Iterator[Rollout]:
    """The rollouts of a run, oldest first, one at a time: memory does not grow with the file.

    `path` is the file or the folder that holds it; a file that ends in `.zst` is read through zstd. A torn last line
    (the mark of a killed run) is skipped with a warning; any other line that is not a rollout raises `RecordError` with
    its number.
    """
    for number, line in read_lines(path):
        try:
            yield from_line(line)
        except RecordError as error:
            raise RecordError(f"{file_of(path)}, line {number}: {error}") from error


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of each whole line of a run; see `read_rollouts`."""
    file = file_of(path)
    if not file.is_file():
        raise RecordError(f"No rollouts at {file}. A run writes them there: envtune collect --out {file.parent}")
    for number, line, end in stored_lines(file):
        if not line:
            log.warning("%s: the last line is torn and was skipped (%d bytes)", file, file.stat().st_size - end)
            return
        yield number, line


def _plain_lines(file: Path) -> Iterator[StoredLine]:
    end = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                yield StoredLine(number, b"", end)
                return
            end += len(line)
            yield StoredLine(number, line, end)


def _zstd_lines(file: Path) -> Iterator[StoredLine]:
    zstandard = zstd_of(file)
    with file.open("rb") as stream:
        rest, end, number = b"", 0, 0
        while rest or (rest := stream.read(_CHUNK_BYTES)):
            number += 1
            frame, text, size = zstandard.ZstdDecompressor().decompressobj(), [], 0
            while not frame.eof:
                if not rest and not (rest := stream.read(_CHUNK_BYTES)):
                    yield StoredLine(number, b"", end)
                    return
                text.append(_unpacked(frame, rest, file, number, zstandard))
                size += len(rest)
                rest = frame.unused_data if frame.eof else b""
            end += size - len(rest)
            yield StoredLine(number, b"".join(text), end)


def _unpacked(frame: Any, data: bytes, file: Path, number: int, zstandard: Any) -> bytes:
    try:
        return bytes(frame.decompress(data))
    except zstandard.ZstdError as error:
        raise RecordError(f"{file}, line {number} is damaged: {error}. Mend or remove it, or use a copy.") from error


def zstd_of(file: Path) -> Any:
    """The zstandard package, or a `MissingDependencyError` that names the file which needs it."""
    return require("zstandard", feature=f"{file.name}", install=ZSTD_INSTALL)
