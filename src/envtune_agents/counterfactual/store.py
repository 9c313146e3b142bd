"""`replays.jsonl`: one replayed failure a line, written as it is finished, so that a stopped replay goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from envtune_agents.counterfactual.branch import Branch
from envtune_agents.errors import RecordError
from envtune_agents.rollout.append import append_whole, open_to_append, own
from envtune_agents.types import FailureKind

log = logging.getLogger(__name__)

FILE_NAME = "replays.jsonl"
SETTINGS_NAME = "replay.json"


@dataclass(frozen=True, slots=True)
class Replay:
    """One failed call, and its turn played on with the hint and without it."""

    replay_id: str
    """`<rollout id>#<turn>.<step>.<call>/<sample>`, all counted from 0."""
    rollout_id: str
    task_id: str
    turn: int
    step: int
    call: int
    sample: int
    tool: str
    kind: FailureKind
    rule: str
    level: int
    """Level at which the hint was shown, 1 to 3."""
    hint: str
    """The words that one branch saw and the other did not."""
    prompt: tuple[dict[str, Any], ...] = ()
    """The conversation up to the failed call and its raw answer, in OpenAI's form, without any hint."""
    tools: tuple[dict[str, Any], ...] = ()
    """The tools visible at that point, in OpenAI's form."""
    with_hint: Branch | None = None
    without_hint: Branch | None = None
    error: str | None = None
    """Why there is no pair of scores, in one line; None when there is one. Such a replay is tried again."""

    @property
    def gap(self) -> float | None:
        """Score with the hint minus score without it, in [-1, 1]; None after an error."""
        if self.with_hint is None or self.without_hint is None:
            return None
        if self.with_hint.score is None or self.without_hint.score is None:
            return None
        return self.with_hint.score - self.without_hint.score


@cache
def _adapter() -> TypeAdapter[Replay]:
    return TypeAdapter(Replay)


def read_replays(path: str | Path) -> list[Replay]:
    """The replays of a folder or file, each once, in the order of their first try; of several tries the last."""
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise RecordError(f"No replays at {file}. Make some: envtune hints replay RUN --model …")
    found = {replay.replay_id: replay for _, replay in _lines(file)}
    return list(found.values())


class ReplayStore:
    """The open file of one replay, for appending; a context manager. Only one process may hold it."""

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE_NAME
        self.finished: set[str] = set()
        """Ids of the replays that have ended without an error."""
        self._settings = json.loads(json.dumps(settings))
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_settings()
            self._file = open_to_append(self.path)
        except OSError as error:
            raise RecordError(
                f"Cannot write replays to {self.folder}: {error.strerror}. Choose another folder."
            ) from error
        try:
            own(self._file, self.path)
            self._mend(self._file)
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

    def append(self, replay: Replay) -> None:
        """Writes one replay; it is on disk when this returns."""
        if self._file is None:
            raise RecordError("The replay store is not open; use it in a `with` block.")
        try:
            append_whole(self._file, _adapter().dump_json(replay) + b"\n", self.path)
        except OSError as error:
            raise RecordError(
                f"Cannot write to {self.path}: {error.strerror}. Make room and run the same command again to go on."
            ) from error
        if replay.error is None:
            self.finished.add(replay.replay_id)

    def _check_settings(self) -> None:
        path = self.folder / SETTINGS_NAME
        if not path.exists():
            path.write_text(json.dumps(self._settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RecordError(f"Cannot read {path}: {error}. Choose another folder.") from error
        changed = [key for key in sorted({*known, *self._settings}) if known.get(key) != self._settings.get(key)]
        if changed:
            differences = "; ".join(f"{key} was {known.get(key)!r}, is {self._settings.get(key)!r}" for key in changed)
            raise RecordError(f"{self.folder} holds replays of other settings: {differences}. Choose another folder.")

    def _mend(self, file: FileIO) -> None:
        end = 0
        for size, replay in _lines(self.path):
            end += size
            if replay.error is None:
                self.finished.add(replay.replay_id)
        if end < self.path.stat().st_size:
            file.truncate(end)


def _lines(file: Path) -> Iterator[tuple[int, Replay]]:
    """The size in bytes and the replay of each whole line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                log.warning("%s: the last line is torn and was skipped (%d bytes)", file, len(line))
                return
            try:
                yield len(line), _adapter().validate_json(line)
            except ValidationError as error:
                reason = " ".join(str(error).split())[:300]
                raise RecordError(
                    f"{file}, line {number} is not a replay: {reason}. Mend or remove the line."
                ) from error
