"""Run one function of somebody else's, and stop waiting for it after a deadline.

Python cannot stop a thread. A call that hangs is left behind in a daemon thread of its own, so that it blocks neither
the episode, nor the event loop, nor the end of the process, as a worker of a shared pool would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import copy_context
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def call_with_deadline(function: Callable[[], T], timeout_s: float | None) -> T:
    """What `function` returns or raises; `TimeoutError` when that takes longer than `timeout_s` seconds.

    None waits for ever, in the caller's own thread.
    """
    if timeout_s is None:
        return function()
    future = _start(function)
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if future.done():  # the function itself raised TimeoutError
            raise
        raise TimeoutError(f"no answer within {timeout_s:g} seconds") from None


async def acall_with_deadline(function: Callable[[], T], timeout_s: float | None) -> T:
    """`call_with_deadline` for a coroutine: the event loop stays free while the function runs."""
    return await await_with_deadline(asyncio.wrap_future(_start(function)), timeout_s)


async def await_with_deadline(awaitable: Awaitable[T], timeout_s: float | None) -> T:
    """What `awaitable` gives; `TimeoutError` when that takes longer than `timeout_s` seconds.

    `asyncio.wait_for` of Python 3.11 loses a cancellation that arrives as the result does, so that a run which was
    stopped goes on; `asyncio.timeout` does not.
    """
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            return await awaitable
    except TimeoutError:
        if not deadline.expired():  # the awaitable itself raised TimeoutError
            raise
        raise TimeoutError(f"no answer within {timeout_s:g} seconds") from None


def _start(function: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    context = copy_context()  # langgraph's interrupt() and config live in context variables

    def run() -> None:
        try:
            result = context.run(function)
        except BaseException as error:
            if not future.cancelled():
                future.set_exception(error)
        else:
            if not future.cancelled():
                future.set_result(result)

    Thread(target=run, name="envtune-deadline", daemon=True).start()
    return future
