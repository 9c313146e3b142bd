"""Run one function of somebody else's, and stop waiting for it after a deadline.

Python cannot stop a thread. A call that hangs is left behind in its daemon thread, which gets no other work, so that it
blocks neither the episode, nor the event loop, nor the end of the process, as a worker of a shared pool would.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar, cast

T = TypeVar("T")


def call_with_deadline(function: Callable[[], T], timeout_s: float | None) -> T:
    """What `function` returns or raises; `TimeoutError` when that takes longer than `timeout_s` seconds.

    None waits for ever, in the caller's own thread.
    """
    if timeout_s is None:
        return function()
    answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()  # half the cost of a Future
    context = copy_context()

    def run() -> None:
        try:
            answers.put((context.run(function), None))
        except BaseException as error:
            answers.put((None, error))

    _hand_over(run)
    try:
        result, error = answers.get(timeout=timeout_s)
    except Empty:
        raise TimeoutError(f"no answer within {timeout_s:g} seconds") from None
    try:
        if error is not None:
            raise error
        return cast("T", result)
    finally:
        del error  # it holds this frame


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

    _hand_over(run)
    return future


def _hand_over(job: Callable[[], None]) -> None:
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
    worker.jobs.put(job)


class _Worker:
    """A daemon thread that runs one job after another; one whose job hangs is never given another."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        Thread(target=self._work, name="envtune-deadline", daemon=True).start()

    def _work(self) -> None:
        while True:
            self.jobs.get()()
            if len(_idle) >= _MOST_IDLE:
                return
            _idle.append(self)


_MOST_IDLE = 32
_idle: list[_Worker] = []  # starting a thread for every call took a sixth of an episode's time
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # threads do not survive a fork
