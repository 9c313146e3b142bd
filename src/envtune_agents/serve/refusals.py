"""What goes wrong with a request, as the JSON that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from envtune_agents.errors import (
    ConstraintError,
    ContextOverflowError,
    EngineError,
    EnvTuneError,
    MessageError,
    RequestError,
    TaskError,
    WeightsError,
)

_BAD_REQUEST = (ConstraintError, MessageError, RequestError, TaskError, TypeError)


class Refusal(Exception):  # noqa: N818  (an answer, not a failure of ours)
    """A request that is answered by a status and a sentence."""

    def __init__(self, status: int, message: str, code: str | None = None, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.retry_after_s = retry_after_s

    def as_plain(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


def refusal_of(error: BaseException) -> Refusal:
    """The answer to a request that ended with `error`. What is not the caller's doing is not told in detail."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ContextOverflowError):
        return Refusal(400, str(error), "context_length_exceeded")
    if isinstance(error, WeightsError):
        return Refusal(404, str(error), "model_not_found")
    if isinstance(error, _BAD_REQUEST):
        return Refusal(400, str(error))
    if isinstance(error, EngineError):
        return Refusal(503, str(error), "stopping", retry_after_s=5)
    if isinstance(error, EnvTuneError):
        return Refusal(500, str(error))
    return Refusal(500, f"The server failed on this request ({type(error).__name__}); its log says why.")
