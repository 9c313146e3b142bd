"""The open file of a run: one rollout a line, written whole, by one process at a time."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from io import FileIO
from os import fsync
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from envtune_agents.errors import RecordError
from envtune_agents.rollout.append import append_whole, cut, open_to_append, own
from envtune_agents.rollout.files import FILE_NAME, ZSTD_NAME, stored_lines, zstd_of
from envtune_agents.rollout.lines import brief, to_line
from envtune_agents.tape import tape_facts
from envtune_agents.types import Rollout

log = logging.getLogger(__name__)

MIN_FREE_BYTES = 64 * 2**20
SYNC_INTERVAL_S = 1.0
"""A line outlives the process as soon as it is written, and a power cut at most this much later."""
_ID_START, _LINE_END = b'{"rollout_id":', b"}\n"


class RolloutStore:
    """The open file of one run, for appending. Use it as a context manager; only one process may hold it.

    Opening creates the folder, cuts a torn last line off, and reads which rollouts are finished. Every problem with the
    folder (not writable, full, held by another run) is a `RecordError` before any work is done. `zstd` writes
    `rollouts.jsonl.zst`, about a third of the size.
    """

    def __init__(self, folder: str | Path, *, zstd: bool = False) -> None:
        self.folder = Path(folder)
        self.path = self.folder / (ZSTD_NAME if zstd else FILE_NAME)
        self.finished: set[str] = set()
        """Ids of the rollouts that are in the file."""
        self._other = self.folder / (FILE_NAME if zstd else ZSTD_NAME)
        self._pack = zstd_of(self.path).ZstdCompressor(level=3).compress if zstd else None
        self._file: FileIO | None = None
        self._synced = 0.0

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._other.exists():
                advice = "pass --zstd (zstd=True)" if self._pack is None else "leave --zstd out"
                raise RecordError(f"{self.folder} holds {self._other.name}, and a run keeps its form: {advice}.")
            self._file = open_to_append(self.path)
        except OSError as error:
            raise RecordError(
                f"Cannot write rollouts to {self.folder}: {error.strerror}. Choose another folder."
            ) from error
        try:
            own(self._file, self.path)
            self._check_space()
            self._mend()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            fsync(self._file.fileno())
            self._file.close()
        except OSError as failed:
            if error is None:
                raise RecordError(f"The last lines of {self.path} may be lost: {failed.strerror}.") from failed
        finally:
            self._file = None

    def append(self, rollout: Rollout) -> Rollout:
        """Writes one rollout, with its tape checked, and gives it as written; it is in the file, whole, by then."""
        if self._file is None:
            raise RecordError("The rollout store is not open; use it in a `with` block.")
        checked = rollout if rollout.tape else replace(rollout, tape=tape_facts(rollout))
        line = to_line(checked)
        try:
            append_whole(self._file, self._pack(line) if self._pack else line, self.path)
            self._sync()
        except OSError as error:
            raise RecordError(
                f"Cannot write to {self.path}: {error.strerror}. {len(self.finished)} finished rollouts are safe; make "
                "room and run the same command again to go on."
            ) from error
        self.finished.add(rollout.rollout_id)
        return checked

    def _sync(self) -> None:
        now = time.monotonic()
        if now - self._synced >= SYNC_INTERVAL_S:
            fsync(self._open_file().fileno())
            self._synced = now

    def _check_space(self) -> None:
        from shutil import disk_usage

        free = disk_usage(self.folder).free
        if free < MIN_FREE_BYTES:
            raise RecordError(
                f"{self.folder} has {free / 2**20:.0f} MiB free; a run needs at least 64. Make room first."
            )

    def _mend(self) -> None:
        for number, line, end in stored_lines(self.path):
            if not line:
                torn = self.path.stat().st_size - end
                log.warning("%s: cut a torn last line of %d bytes; its rollout runs again", self.path, torn)
                cut(self._open_file(), end, self.path)
                return
            self.finished.add(self._id_of(line, number))

    def _id_of(self, line: bytes, number: int) -> str:
        try:
            if line.startswith(_ID_START) and line.endswith(_LINE_END):  # our own line: read no more of it than the id
                found: Any = json.JSONDecoder().raw_decode(
                    line[len(_ID_START) : 4096].decode(errors="replace").lstrip()
                )[0]
            else:
                found = json.loads(line)["rollout_id"]
            return str(found)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecordError(
                f"{self.path}, line {number} is not a rollout: {brief(error)}. Mend or remove the line, or choose "
                "another folder."
            ) from error

    def _open_file(self) -> FileIO:
        assert self._file is not None
        return self._file
