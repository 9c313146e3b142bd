"""`Engine`: one thread that loads and runs one model, and the ways to ask it from threads and event loops."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envtune_agents.engine.request import GenerationRequest, GenerationResult, TokenEvent
from envtune_agents.weights import Weights

if TYPE_CHECKING:
    from envtune_agents.engine.kv_cache import PrefixCache

Event = TokenEvent | GenerationResult
DEFAULT_CACHE_BYTES = 2 * 1024**3


@dataclass(slots=True)
class _Job:
    request: GenerationRequest
    emit: Callable[[Event | BaseException], None]
    """Called from the engine thread."""
    wants_tokens: bool
    cancelled: threading.Event = field(default_factory=threading.Event)


class Engine:
    """A model that many callers share; requests are served one after another in the order they came.

    The model is loaded and run by one thread of its own: torch keeps a pool of worker threads for each thread that
    runs it, and two pools on the same cores double the time of a decode step.

        engine = Engine(lambda: load_weights("smollm2"))
        result = engine.generate(GenerationRequest(tuple(engine.weights.encode("Hello")), max_new_tokens=8))
    """

    def __init__(self, load: Callable[[], Weights], *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        """`load` runs once, in the engine's thread, at the first use. `cache_bytes` bounds the prefix cache, in bytes
        of keys and values; 0 turns it off."""
        self._load = load
        self._cache_bytes = cache_bytes
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loaded: Future[Weights] = Future()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def weights(self) -> Weights:
        """The loaded weights; waits for them, and raises what loading raised."""
        self._start()
        return self._loaded.result()

    async def aweights(self) -> Weights:
        """The loaded weights, waited for without blocking the event loop."""
        self._start()
        return await asyncio.shield(asyncio.wrap_future(self._loaded))

    @property
    def failed(self) -> bool:
        """True when loading was tried and raised."""
        return self._loaded.done() and self._loaded.exception() is not None

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """The whole reply; blocks until it is there. Raises `ContextOverflowError` when the prompt is too long."""
        events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        job = self._submit(request, events.put, wants_tokens=False)
        try:
            return _result(events.get())
        finally:
            job.cancelled.set()

    def stream(self, request: GenerationRequest) -> Generator[Event]:
        """Each token as it is sampled, then the result. Closing the iterator stops the decoding at the next token."""
        events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        job = self._submit(request, events.put, wants_tokens=True)
        try:
            while True:
                event = _event(events.get())
                yield event
                if isinstance(event, GenerationResult):
                    return
        finally:
            job.cancelled.set()

    async def agenerate(self, request: GenerationRequest) -> GenerationResult:
        """As `generate`, without blocking the event loop; cancelling the task stops the decoding."""
        events, emit = _loop_queue()
        job = self._submit(request, emit, wants_tokens=False)
        try:
            return _result(await events.get())
        finally:
            job.cancelled.set()

    async def astream(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """As `stream`, without blocking the event loop; cancelling the task or closing it stops the decoding."""
        events, emit = _loop_queue()
        job = self._submit(request, emit, wants_tokens=True)
        try:
            while True:
                event = _event(await events.get())
                yield event
                if isinstance(event, GenerationResult):
                    return
        finally:
            job.cancelled.set()

    def close(self) -> None:
        """End the thread after the requests that wait already. A closed engine takes no more."""
        with self._lock:
            if self._thread is not None:
                self._jobs.put(None)

    def _submit(
        self, request: GenerationRequest, emit: Callable[[Event | BaseException], None], *, wants_tokens: bool
    ) -> _Job:
        self._start()
        job = _Job(request, emit, wants_tokens)
        self._jobs.put(job)
        return job

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="envtune-engine", daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        """Body of the engine thread."""
        prefixes: PrefixCache | None = None
        try:
            weights = self._load()
            from envtune_agents.engine.kv_cache import PrefixCache

            prefixes = PrefixCache(weights.model.config, self._cache_bytes)
            self._loaded.set_result(weights)
        except BaseException as error:  # whoever asks next must learn why, and the thread must not die silently
            self._loaded.set_exception(error)
        while (job := self._jobs.get()) is not None:
            if prefixes is None:
                job.emit(self._loaded.exception() or RuntimeError("The engine did not start."))
            elif not job.cancelled.is_set():
                self._answer(job, self._loaded.result(), prefixes)

    def _answer(self, job: _Job, weights: Weights, prefixes: PrefixCache) -> None:
        from envtune_agents.engine.decoding import CancelledError, decode

        emit = job.emit if job.wants_tokens else _ignore
        try:
            job.emit(decode(weights, prefixes, job.request, emit=emit, cancelled=job.cancelled.is_set))
        except CancelledError:
            return
        except Exception as error:  # the caller's request failed; the engine goes on with the next one
            job.emit(error)


def _ignore(event: TokenEvent) -> None:
    """The sink of a caller that wants only the result."""


def _event(event: Event | BaseException) -> Event:
    if isinstance(event, BaseException):
        raise event
    return event


def _result(event: Event | BaseException) -> GenerationResult:
    result = _event(event)
    assert isinstance(result, GenerationResult)
    return result


def _loop_queue() -> tuple[asyncio.Queue[Event | BaseException], Callable[[Event | BaseException], None]]:
    """A queue of the running event loop, and a way to fill it from the engine thread."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event | BaseException] = asyncio.Queue()

    def emit(event: Event | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(events.put_nowait, event)

    return events, emit
