"""JSON over HTTP to one model server: patience with what passes, clear words for what does not.

A refused or broken connection and the answers of a busy server are tried again with growing pauses; an answer that does
not come in time is not, since the server would work on both. Once a stream has begun, nothing is tried again.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import httpx

from envtune_agents.errors import ConstraintError, ContextOverflowError, EnvTuneError, ServerError

TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Answers that a later try may not get: time-outs, too many requests, a server that is restarting."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_SHOWN = 300
"""Characters of a strange answer that an error quotes."""
_DROPPED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError)

Payload = dict[str, Any]


class _PassingError(Exception):
    """A failure that another try may not meet."""

    def __init__(self, error: ServerError, pause_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.pause_s = pause_s
        """What the server asked for, in seconds."""


class JsonClient:
    """Asks one server, from threads and from event loops. Making one opens no connection."""

    def __init__(
        self, base_url: str, *, headers: Mapping[str, str], timeout_s: float, connect_timeout_s: float, max_retries: int
    ) -> None:
        self.base_url = base_url
        self._options: dict[str, Any] = {
            "base_url": base_url,
            "headers": dict(headers),
            "timeout": httpx.Timeout(timeout_s, connect=connect_timeout_s),
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=256),
        }
        self._timeout_s = timeout_s
        self._tries = max_retries + 1
        self._client = httpx.Client(**self._options)
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    def get(self, path: str) -> Payload:
        """The JSON object at `path`."""
        for left in range(self._tries - 1, -1, -1):
            try:
                with self._explained():
                    return _object(self._client.get(path), self.base_url)
            except _PassingError as passing:
                time.sleep(self._pause(passing, left))
        raise AssertionError("unreachable")

    def post(self, path: str, body: Payload) -> Payload:
        """The JSON object that answers `body`."""
        for left in range(self._tries - 1, -1, -1):
            try:
                with self._explained():
                    return _object(self._client.post(path, json=body), self.base_url)
            except _PassingError as passing:
                time.sleep(self._pause(passing, left))
        raise AssertionError("unreachable")

    async def apost(self, path: str, body: Payload) -> Payload:
        """As `post`, without blocking the event loop; cancelling the task closes the connection."""
        for left in range(self._tries - 1, -1, -1):
            try:
                with self._explained():
                    return _object(await self._async_client.post(path, json=body), self.base_url)
            except _PassingError as passing:
                await asyncio.sleep(self._pause(passing, left))
        raise AssertionError("unreachable")

    def events(self, path: str, body: Payload) -> Generator[Payload]:
        """The server-sent events that answer `body`, as JSON objects. Closing the iterator closes the connection."""
        with self._opened(path, body) as response, self._explained(under_way=True):
            for line in response.iter_lines():
                if (payload := _event(line, self.base_url)) is not None:
                    yield payload

    async def aevents(self, path: str, body: Payload) -> AsyncGenerator[Payload]:
        """As `events`, without blocking the event loop."""
        async with self._aopened(path, body) as response:
            with self._explained(under_way=True):
                async for line in response.aiter_lines():
                    if (payload := _event(line, self.base_url)) is not None:
                        yield payload

    @contextmanager
    def _opened(self, path: str, body: Payload) -> Iterator[httpx.Response]:
        for left in range(self._tries - 1, -1, -1):
            try:
                with self._explained():
                    request = self._client.build_request("POST", path, json=body)
                    response = self._client.send(request, stream=True)
                    if not _streams(response):
                        response.read()
                        _object(response, self.base_url)  # raises for what is no stream
            except _PassingError as passing:
                time.sleep(self._pause(passing, left))
                continue
            try:
                yield response
            finally:
                response.close()
            return

    @asynccontextmanager
    async def _aopened(self, path: str, body: Payload) -> AsyncIterator[httpx.Response]:
        for left in range(self._tries - 1, -1, -1):
            try:
                with self._explained():
                    request = self._async_client.build_request("POST", path, json=body)
                    response = await self._async_client.send(request, stream=True)
                    if not _streams(response):
                        await response.aread()
                        _object(response, self.base_url)
            except _PassingError as passing:
                await asyncio.sleep(self._pause(passing, left))
                continue
            try:
                yield response
            finally:
                await response.aclose()
            return

    @property
    def _async_client(self) -> httpx.AsyncClient:
        """The client of the running event loop: connections cannot be shared between loops."""
        loop = asyncio.get_running_loop()
        if loop not in self._async_clients:
            self._async_clients[loop] = httpx.AsyncClient(**self._options)
        return self._async_clients[loop]

    def _pause(self, passing: _PassingError, tries_left: int) -> float:
        """Seconds to wait before the next try; raises when there is none."""
        if not tries_left:
            raise passing.error from passing.__cause__
        made = self._tries - tries_left - 1
        grown = FIRST_PAUSE_S * 2**made * random.uniform(0.75, 1.25)
        return float(min(LONGEST_PAUSE_S, max(grown, passing.pause_s)))

    @contextmanager
    def _explained(self, *, under_way: bool = False) -> Iterator[None]:
        """Failures of the connection in our words; `under_way` says that an answer had begun."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            reason = str(error) or type(error).__name__
            raise _PassingError(
                ServerError(
                    f"No model server answers at {self.base_url} ({reason}). Start one with `envtune serve MODEL`, or "
                    "give base_url= the address of yours."
                )
            ) from error
        except httpx.TimeoutException as error:
            raise ServerError(
                f"The server at {self.base_url} sent nothing for {self._timeout_s:g} seconds. It is overloaded or "
                "hangs: look at its log, or give a longer timeout_s."
            ) from error
        except _DROPPED as error:
            dropped = ServerError(
                f"The server at {self.base_url} dropped the connection in the middle of a reply ({error}). Its log "
                "tells why; a server that ran out of memory ends like this."
            )
            raise (dropped if under_way else _PassingError(dropped)) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(f"{self.base_url} cannot be asked ({type(error).__name__}: {error}).") from error


def _streams(response: httpx.Response) -> bool:
    kind = response.headers.get("content-type", "")
    return response.status_code == httpx.codes.OK and kind.startswith("text/event-stream")


def _object(response: httpx.Response, base_url: str) -> Payload:
    """The JSON object of a good answer; raises for every other."""
    if response.status_code != httpx.codes.OK:
        raise _refused(response, base_url)
    try:
        payload = response.json()
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        raise ServerError(_not_a_model_server(base_url, response.text, response.headers.get("content-type", "")))
    return payload


def _event(line: str, base_url: str) -> Payload | None:
    """The object in one line of a stream; None for blank lines, comments and the end mark."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data in ("", "[DONE]"):
        return None
    try:
        payload = json.loads(data)
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        raise ServerError(_not_a_model_server(base_url, data, "text/event-stream"))
    if payload.get("error"):
        raise _problem(base_url, 0, _said(payload))
    return payload


def _refused(response: httpx.Response, base_url: str) -> Exception:
    try:
        said = _said(response.json())
    except ValueError:
        said = response.text.strip()[:_SHOWN]
    status = response.status_code
    error = _problem(base_url, status, said)
    if status in TRANSIENT_STATUS and isinstance(error, ServerError):
        return _PassingError(error, _seconds(response.headers.get("retry-after")))
    return error


def _problem(base_url: str, status: int, said: str) -> EnvTuneError:
    """What a refusal means."""
    if status in (401, 403):
        return ServerError(f"The server at {base_url} refuses the API key ({status}: {said}). Give api_key=.")
    lower = said.lower()
    if "context length" in lower or "max_model_len" in lower or "maximum allowed length" in lower:
        return ContextOverflowError(f"The server at {base_url} says: {said}")
    if "grammar" in lower or "structured output" in lower:
        return ConstraintError(
            f"The server at {base_url} refuses the grammar: {said}. Its grammar backend must be llguidance, as "
            "`envtune serve` starts it."
        )
    told = f"answered {status}" if status else "broke off"
    return ServerError(f"The server at {base_url} {told}: {said or 'no details'}")


def _said(payload: Any) -> str:
    """The message in an error object, in any of the servers' forms."""
    found = payload
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    text = found if isinstance(found, str) else json.dumps(found)
    return " ".join(text.split())[:_SHOWN]


def _not_a_model_server(base_url: str, text: str, kind: str) -> str:
    shown = " ".join(text.split())[:_SHOWN] or "nothing"
    return (
        f"{base_url} answered something that is not a reply of a model server ({kind or 'no content type'}): {shown}. "
        "Is base_url right, and is there a proxy in between?"
    )


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:  # the header may hold a date
        return 0.0
