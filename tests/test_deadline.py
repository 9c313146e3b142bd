from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextvars import ContextVar

import pytest

from envtune_agents.deadline import acall_with_deadline, call_with_deadline

seen: ContextVar[str] = ContextVar("seen", default="")


def test_results_errors_and_context_come_through() -> None:
    seen.set("here")
    assert call_with_deadline(seen.get, 5) == "here"
    assert call_with_deadline(seen.get, None) == "here"
    with pytest.raises(ZeroDivisionError):
        call_with_deadline(lambda: 1 / 0, 5)


def test_a_hanging_call_is_left_behind() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError, match="no answer within"):
        call_with_deadline(release.wait, 0.05)
    release.set()


async def test_the_event_loop_stays_free() -> None:
    release = threading.Event()
    waiting = asyncio.create_task(acall_with_deadline(release.wait, 5))
    await asyncio.sleep(0)
    release.set()
    assert await waiting is True
    with pytest.raises(TimeoutError, match="no answer within"):
        await acall_with_deadline(threading.Event().wait, 0.05)


def test_a_hanging_call_does_not_keep_the_process_alive() -> None:
    program = (
        "import threading; from envtune_agents.deadline import call_with_deadline\n"
        "try: call_with_deadline(threading.Event().wait, 0.05)\n"
        "except TimeoutError: print('gave up')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stdout == "gave up\n"
