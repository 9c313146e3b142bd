"""Appending to a file that one process owns: whole pieces or nothing.

The file is opened without a buffer: what a full disk leaves in a buffer is written again at the next chance.
"""

from __future__ import annotations

import logging
from io import FileIO
from pathlib import Path

from envtune_agents.errors import RecordError

log = logging.getLogger(__name__)


def open_to_append(path: Path) -> FileIO:
    """The file at `path`, made when there is none, at its end."""
    return path.open("ab", buffering=0)


def own(file: FileIO, path: Path) -> None:
    """Makes this process the only one that writes to `path`; `RecordError` when another one does."""
    try:
        import fcntl
    except ImportError:  # Windows: no advisory lock, the user is on their own
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RecordError(f"Another process is writing to {path}. Wait for it or choose another folder.") from error


def append_whole(file: FileIO, piece: bytes, path: Path) -> None:
    """Writes `piece` at the end; after an `OSError`, such as a full disk, the file is as before."""
    start = file.tell()
    try:
        left = memoryview(piece)
        while left:
            left = left[file.write(left) :]
    except OSError:
        cut(file, start, path)
        raise


def cut(file: FileIO, size: int, path: Path) -> None:
    """Takes off what lies behind `size`; where that fails it is logged, and the next run does it."""
    try:
        file.truncate(size)
        file.seek(size)
    except OSError:
        log.exception("could not cut %s back to %d bytes; the next run will", path, size)
