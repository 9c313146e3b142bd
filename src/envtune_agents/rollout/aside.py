"""Rollouts that ended with an error, taken out of a run so that they are played again."""

from __future__ import annotations

import os
from pathlib import Path

from envtune_agents.errors import RecordError
from envtune_agents.rollout.files import file_of, stored_lines
from envtune_agents.rollout.lines import from_line
from envtune_agents.rollout.store import RolloutStore

ERRORS_NAME = "errors.jsonl"


def set_aside_errors(folder: str | Path) -> int:
    """Moves the rollouts that ended with an error to `errors.jsonl`, so that they are played again; gives how many.

    Reads as a stream, plain or compressed. The file of the run is replaced whole or not at all.
    """
    with RolloutStore(folder, zstd=file_of(folder).suffix == ".zst") as store:
        draft = store.path.with_name(f"{store.path.name}.part")
        try:
            count = _divide(store.path, draft, store.folder / ERRORS_NAME)
            if count:
                draft.replace(store.path)
        except OSError as error:
            raise RecordError(f"Cannot set errors aside in {folder}: {error.strerror}. Make room first.") from error
        finally:
            draft.unlink(missing_ok=True)
    return count


def _divide(path: Path, draft: Path, errors: Path) -> int:
    """Copies what is stored for the good rollouts to `draft` and appends the lines of the others to `errors`."""
    count, start = 0, 0
    with path.open("rb") as stored, draft.open("wb") as good, errors.open("ab") as bad:
        for number, line, end in stored_lines(path):
            piece = stored.read(end - start)
            start = end
            if _failed(line, path, number):
                bad.write(line)
                count += 1
            else:
                good.write(piece)
        for file in (bad, good):
            file.flush()
            os.fsync(file.fileno())
    if not errors.stat().st_size:
        errors.unlink()
    return count


def _failed(line: bytes, path: Path, number: int) -> bool:
    try:
        return from_line(line).error is not None
    except RecordError as error:
        raise RecordError(f"{path}, line {number}: {error}") from error
