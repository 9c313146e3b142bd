"""`rollouts.jsonl`: one rollout a line, written whole, read as a stream.

A line is the JSON of a `Rollout`. Only one thing differs from the record: since each step's prompt nearly always begins
with the step before it, `prompt_token_ids` is stored as `{"keep": n, "then": [...]}`: the first n ids of the previous
step's prompt and completion, followed by the new ids. Reading gives the full ids back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import cache
from io import BufferedWriter
from os import fsync
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pydantic import TypeAdapter, ValidationError

from envtune_agents.errors import RecordError
from envtune_agents.types import Rollout

log = logging.getLogger(__name__)

FILE_NAME = "rollouts.jsonl"
MIN_FREE_BYTES = 64 * 2**20


@cache
def _adapter() -> TypeAdapter[Rollout]:
    return TypeAdapter(Rollout)


def record_schema() -> dict[str, Any]:
    """The JSON Schema of one line of `rollouts.jsonl`."""
    schema = _adapter().json_schema(mode="serialization")
    ids = {"type": "array", "items": {"type": "integer"}}
    difference = {
        "type": "object",
        "properties": {"keep": {"type": "integer", "minimum": 0}, "then": ids},
        "required": ["keep", "then"],
        "additionalProperties": False,
        "description": "The first `keep` ids of the previous step's prompt and completion, then the ids in `then`.",
    }
    schema["$defs"]["RolloutStep"]["properties"]["prompt_token_ids"] = {"anyOf": [ids, difference]}
    return schema


def to_line(rollout: Rollout) -> bytes:
    """One line of the file, newline included."""
    record = _adapter().dump_python(rollout, mode="json")
    before: list[int] = []
    for step in _steps(record):
        prompt = step["prompt_token_ids"]
        keep = _common_prefix(before, prompt)
        if keep:
            step["prompt_token_ids"] = {"keep": keep, "then": prompt[keep:]}
        before = prompt + step["completion_token_ids"]
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes | str) -> Rollout:
    """The rollout of one line; `RecordError` when the line is not one."""
    try:
        record = json.loads(line)
        before: list[int] = []
        for step in _steps(record):
            stored = step.get("prompt_token_ids") or []
            if isinstance(stored, dict):
                stored = before[: stored["keep"]] + stored["then"]
                step["prompt_token_ids"] = stored
            before = stored + list(step.get("completion_token_ids") or ())
        return _adapter().validate_python(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
        raise RecordError(f"Not a rollout record: {_brief(error)}") from error


def read_rollouts(path: str | Path) -> Iterator[Rollout]:
    """The rollouts of a run, oldest first, one at a time: memory does not grow with the file.

    `path` is the file or the folder that holds it. A torn last line (the mark of a killed run) is skipped with a
    warning; any other line that is not a rollout raises `RecordError` with its number.
    """
    file = _file_of(path)
    if not file.is_file():
        raise RecordError(f"No rollouts at {file}. A run writes them there: envtune collect --out {file.parent}")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                log.warning("%s: the last line is torn and was skipped (%d bytes)", file, len(line))
                return
            try:
                yield from_line(line)
            except RecordError as error:
                raise RecordError(f"{file}, line {number}: {error}") from error


class RolloutStore:
    """The open file of one run, for appending. Use it as a context manager; only one process may hold it.

    Opening creates the folder, cuts a torn last line off, and reads which rollouts are finished. Every problem with the
    folder (not writable, full, held by another run) is a `RecordError` before any work is done.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE_NAME
        self.finished: set[str] = set()
        """Ids of the rollouts that are in the file."""
        self._file: BufferedWriter | IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        except OSError as error:
            raise RecordError(
                f"Cannot write rollouts to {self.folder}: {error.strerror}. Choose another folder."
            ) from error
        try:
            self._lock()
            self._check_space()
            self._mend()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def append(self, rollout: Rollout) -> None:
        """Writes one rollout; it is on disk, whole, when this returns."""
        if self._file is None:
            raise RecordError("The rollout store is not open; use it in a `with` block.")
        start = self._file.tell()
        try:
            self._file.write(to_line(rollout))
            self._file.flush()
            fsync(self._file.fileno())
        except OSError as error:
            self._cut(start)
            raise RecordError(
                f"Cannot write to {self.path}: {error.strerror}. {len(self.finished)} finished rollouts are safe; make "
                "room and run the same command again to go on."
            ) from error
        self.finished.add(rollout.rollout_id)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: no advisory lock, the user is on their own
            return
        try:
            fcntl.flock(self._open_file(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RecordError(
                f"Another process is writing to {self.path}. Wait for it or choose another folder."
            ) from error

    def _check_space(self) -> None:
        from shutil import disk_usage

        free = disk_usage(self.folder).free
        if free < MIN_FREE_BYTES:
            raise RecordError(
                f"{self.folder} has {free / 2**20:.0f} MiB free; a run needs at least 64. Make room first."
            )

    def _mend(self) -> None:
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    log.warning("%s: cut a torn last line of %d bytes; its rollout runs again", self.path, len(line))
                    self._cut(end)
                    return
                end += len(line)
                self.finished.add(self._id_of(line, number))

    def _id_of(self, line: bytes, number: int) -> str:
        try:
            return str(json.loads(line)["rollout_id"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecordError(
                f"{self.path}, line {number} is not a rollout: {_brief(error)}. Mend or remove the line, or choose "
                "another folder."
            ) from error

    def _cut(self, size: int) -> None:
        file = self._open_file()
        try:
            file.truncate(size)
            file.seek(size)
        except OSError:
            log.exception("could not cut %s back to %d bytes; the next run will", self.path, size)

    def _open_file(self) -> BufferedWriter | IO[bytes]:
        assert self._file is not None
        return self._file


def _steps(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for turn in record["turns"]:
        yield from turn["steps"]


def _common_prefix(left: list[int], right: list[int]) -> int:
    if right[: len(left)] == left:
        return len(left)
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _file_of(path: str | Path) -> Path:
    path = Path(path)
    return path / FILE_NAME if path.is_dir() or not path.suffix else path


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
