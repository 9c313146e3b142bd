"""One line of JSON for each request: what it cost and how it ended, never what was said."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO


@dataclass(slots=True)
class RequestLog:
    """What is to be told of one request."""

    logger: logging.Logger
    path: str
    request_id: str
    model: str = ""
    stream: bool = False
    _started: float = field(default_factory=time.perf_counter)

    def about(self, model: str, stream: bool) -> None:
        """What the request asked for."""
        self.model, self.stream = model, stream

    def done(self, status: int, answer: Mapping[str, Any]) -> None:
        """It was answered; `answer` is the answer, or the last chunk that says something of it."""
        counts = answer.get("usage") or {}
        details = counts.get("prompt_tokens_details") or {}
        choices = answer.get("choices") or [{}]
        self._tell(
            logging.INFO,
            status,
            finish_reason=choices[0].get("finish_reason"),
            prompt_tokens=counts.get("prompt_tokens"),
            cached_tokens=details.get("cached_tokens"),
            completion_tokens=counts.get("completion_tokens"),
        )

    def failed(self, status: int, error: BaseException) -> None:
        """It was refused, or failed. The traceback goes along where the fault is ours."""
        ours = error if status >= 500 and status != 503 else None
        self._tell(logging.ERROR if ours else logging.WARNING, status, ours, error=type(error).__name__)

    def gone(self) -> None:
        """The client went away, or the server stops."""
        self._tell(logging.INFO, 499)

    def _tell(self, level: int, status: int, fault: BaseException | None = None, **facts: Any) -> None:
        told = {
            "id": self.request_id,
            "path": self.path,
            "status": status,
            "duration_s": round(time.perf_counter() - self._started, 4),
            "model": self.model,
            "stream": self.stream,
            **{name: fact for name, fact in facts.items() if fact is not None},
        }
        self.logger.log(level, "request", extra={"facts": told}, exc_info=fault)


class JsonLines(logging.Formatter):
    """Log records as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line |= {"event": record.getMessage(), **getattr(record, "facts", {})}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to(stream: TextIO, logger: logging.Logger) -> None:
    """Writes what `logger` is told to `stream`, as lines of JSON, and nowhere else."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
