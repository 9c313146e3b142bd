"""Start a server, wait until it is healthy, stay with it until it ends or is told to."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from envtune_agents.chat_model import ChatTransformers
from envtune_agents.errors import ServerError, require
from envtune_agents.serve.app import DEFAULT_CONCURRENCY, serving_app
from envtune_agents.serve.installed import SERVE_INSTALL, check_installed
from envtune_agents.serve.logs import log_to
from envtune_agents.serve.plan import ServePlan, server_command
from envtune_agents.serve.ports import check_port, listening_socket

START_S = 1800.0
"""How long a foreign server may take until it is healthy: it loads, compiles and records graphs."""
GRACE_S = 30
"""How long requests under way may go on once the server is told to stop, in seconds."""
_POLL_S = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Ready = Callable[[ServePlan], None]


def serve(
    plan: ServePlan,
    *,
    ready: Ready,
    api_key: str | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
    max_tokens: int = 1024,
    start_s: float = START_S,
) -> int:
    """Serve until the server ends or a signal stops it; the exit code.

    `ready` is called once, when the server is healthy. `api_key` is asked of clients. `concurrency` and `max_tokens`,
    of a reply whose request names no number, are for the backend "transformers"; `start_s`, the seconds until it must
    be healthy, for the others. SIGINT and SIGTERM end it gracefully: requests under way get `GRACE_S` seconds. Raises
    `ServerError` for a port in use and for a backend that does not come up, `MissingDependencyError` for one that is
    not installed, and what `load_weights` raises.
    """
    if plan.backend == "transformers":
        return _serve_here(plan, ready, api_key, concurrency, max_tokens)
    check_port(plan.host, plan.port)
    check_installed(plan)
    return _serve_there(plan, ready, api_key, start_s)


def _serve_here(plan: ServePlan, ready: Ready, api_key: str | None, concurrency: int, max_tokens: int) -> int:
    """Our own engine, in this process."""
    uvicorn = require("uvicorn", feature="The server", install=SERVE_INSTALL)
    require("starlette", feature="The server", install=SERVE_INSTALL)
    with listening_socket(plan.host, plan.port) as taken:
        plan = replace(plan, port=taken.getsockname()[1])
        model = ChatTransformers(
            model=plan.model,
            precision=plan.precision,
            max_context=plan.max_context,
            adapters=dict(plan.adapters) or None,
            max_tokens=max_tokens,
            parse_mode="repair",
        )
        _ = model.engine.weights  # before the first request can come; raises what is wrong with them
        for name in plan.adapters:
            model.adapter_named(name)
        log_to(sys.stderr, logging.getLogger("envtune_agents.serve"))
        app = serving_app(model, name=plan.served_name, api_key=api_key, concurrency=concurrency)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S)
        with _signals_ignored():  # uvicorn raises those it was stopped by once more, when it has ended
            _announcing(uvicorn.Server(config), lambda: ready(plan)).run(sockets=[taken])
    return 0


def _announcing(server: Any, ready: Callable[[], None]) -> Any:
    """`server`, which calls `ready` when it accepts requests."""
    startup = server.startup

    async def announced(*args: Any, **kwargs: Any) -> None:
        await startup(*args, **kwargs)
        if not server.should_exit:
            ready()

    server.startup = announced
    return server


@contextmanager
def _signals_ignored() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve_there(plan: ServePlan, ready: Ready, api_key: str | None, start_s: float) -> int:
    """A foreign server, as a child process in a group of its own, so that signals reach it once, from here."""
    command = server_command(plan)
    environment = dict(os.environ)
    if api_key is not None:
        if plan.backend == "vllm":
            environment["VLLM_API_KEY"] = api_key  # not among the arguments, which every user of the machine can read
        else:
            command += ["--api-key", api_key]
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    with _forwarded(child) as stopped:
        healthy = _wait_until_healthy(child, plan, start_s, stopped)
        if healthy:
            ready(plan)
        code = child.wait()
    if stopped or (healthy and code == 0):
        return 0
    when = "after it was healthy" if healthy else "before it was healthy"
    raise ServerError(
        f"{plan.backend} ended with exit code {code} {when}; its own words are above. Often it is memory: give it "
        "--max-context, a smaller --precision, or a smaller model. Its command was:\n  " + " ".join(command[:8]) + " …"
    )


@contextmanager
def _forwarded(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Signals to us go to the child: the first as it is, a second one ends it at once. Gives the list of them."""
    seen: list[int] = []

    def forward(number: int, _: Any) -> None:
        seen.append(number)
        with suppress(ProcessLookupError):  # it may have ended by itself
            if len(seen) == 1:
                child.send_signal(number)
            else:
                os.killpg(child.pid, signal.SIGKILL)

    before = {number: signal.signal(number, forward) for number in _SIGNALS}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if child.poll() is None:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(child.pid, signal.SIGTERM)


def _wait_until_healthy(child: subprocess.Popen[bytes], plan: ServePlan, start_s: float, stopped: list[int]) -> bool:
    """True once it answers; False when it ended, or was told to."""
    until = time.monotonic() + start_s
    while child.poll() is None and not stopped:
        if _healthy(plan.url):
            return True
        if time.monotonic() > until:
            raise ServerError(
                f"{plan.backend} was not healthy after {start_s:g} seconds and is ended. Give it longer with --wait, "
                "or look at what it said above."
            )
        time.sleep(_POLL_S)
    return False


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
