"""Which failures of a model call are worth another try, and how patiently."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from langgraph.types import RetryPolicy

from envtune_agents.errors import EnvTuneError

T = TypeVar("T")

TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP answers that a later try may not get: time-outs, too many requests, a server that is restarting."""
_TRANSIENT_NAMES = frozenset({"APIConnectionError", "APITimeoutError", "TransportError", "RateLimitError"})
"""Of openai, anthropic and httpx, whose connection errors inherit no standard type."""


def transient(error: BaseException) -> bool:
    """Whether the same call may well succeed later: the network, a time-out, a busy or restarting server."""
    if isinstance(error, EnvTuneError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status in TRANSIENT_STATUS
    return any(kind.__name__ in _TRANSIENT_NAMES for kind in type(error).__mro__)


def patient(attempts: int = 5, first_wait_s: float = 1.0) -> RetryPolicy:
    """Makes a model call again after 1, 2, 4 and 8 seconds and some jitter, where the failure is transient.

    `collect` and `run_episode` use it unless `model_retry` is given; `model_retry=None` never tries again. Any
    `RetryPolicy` of LangGraph will do: its `retry_on` takes exception types or a function such as `transient`.
    """
    return RetryPolicy(
        initial_interval=first_wait_s, backoff_factor=2.0, max_interval=60.0, max_attempts=attempts, retry_on=transient
    )


async def with_retries(call: Callable[[], Awaitable[T]], policy: RetryPolicy | None) -> T:
    """What `call` gives, made again as `policy` says: LangGraph's rule for a node, without the graph."""
    attempt = 0
    while True:
        try:
            return await call()
        except Exception as error:
            attempt += 1
            if policy is None or attempt >= policy.max_attempts or not _covers(policy, error):
                raise
        wait_s = min(policy.max_interval, policy.initial_interval * policy.backoff_factor ** (attempt - 1))
        await asyncio.sleep(wait_s + random.random() * policy.jitter)


def _covers(policy: RetryPolicy, error: Exception) -> bool:
    kinds = policy.retry_on
    if isinstance(kinds, type):
        return isinstance(error, kinds)
    return kinds(error) if callable(kinds) else isinstance(error, tuple(kinds))
