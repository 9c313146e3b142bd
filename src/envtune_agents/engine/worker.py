"""`Engine`: one thread that loads and runs one model, and the ways to ask it from threads and event loops."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from envtune_agents.engine.job import Event, Job, Server
from envtune_agents.engine.request import GenerationRequest, GenerationResult
from envtune_agents.errors import EngineError
from envtune_agents.weights import Weights

T = TypeVar("T")
DEFAULT_CACHE_BYTES = 2 * 1024**3
_PATIENCE_S = 10.0
"""How long a process that ends waits for the forward pass under way."""


@dataclass(slots=True)
class _Call:
    """A function to run with the model."""

    function: Callable[[Any], Any]
    result: Future[Any] = field(default_factory=Future)


class Engine:
    """A model that many callers share.

    Requests that come while others run join them in the same forward passes, and what prompts have in common is
    computed and stored once. A model whose attention is more than a softmax over all earlier tokens (sliding windows,
    linear attention) is served one request after another instead.

    The model is loaded and run by one thread of its own: torch keeps a pool of worker threads for each thread that
    runs it, and two pools on the same cores double the time of a decode step.

        engine = Engine(lambda: load_weights("smollm2"))
        result = engine.generate(GenerationRequest(tuple(engine.weights.encode("Hello")), max_new_tokens=8))
    """

    def __init__(
        self, load: Callable[[], Weights], *, cache_bytes: int = DEFAULT_CACHE_BYTES, cuda_graphs: bool = False
    ) -> None:
        """`load` runs once, in the engine's thread, at the first use.

        `cache_bytes` bounds keys and values, in bytes, those of running requests and those kept for later together. A
        request starts when its prompt and its `max_new_tokens` fit; what was used longest ago goes first. 0 keeps
        nothing once a request is over, and bounds the running ones as the default does.

        `cuda_graphs` records decode passes on a GPU and replays them, where the model runs in bf16 or fp16. Off by
        default: it has not been run on a GPU yet.
        """
        self._load = load
        self._cache_bytes = cache_bytes
        self._cuda_graphs = cuda_graphs
        self._jobs: queue.SimpleQueue[Job | _Call | None] = queue.SimpleQueue()
        self._loaded: Future[Weights] = Future()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: int | None = None
        self._server: Server | None = None  # the engine thread's
        self._closed = False
        self._ending = False  # the engine thread knows that it was closed
        self._abandoned = False  # the process ends

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

    @property
    def batches(self) -> bool:
        """Whether concurrent requests share forward passes; waits for the weights."""
        return bool(self.weights) and self._server is not None and self._server.batches

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

    def run(self, function: Callable[[Any], T]) -> T:
        """What `function(model)` returns, run in the engine's thread between two steps of the requests under way.

        The only safe way to touch the model: to load an adapter, to train, to write new weights into it. Call
        `clear_cache` after a change of the weights.
        """
        if threading.current_thread() is self._thread:
            return function(self._loaded.result().model)
        return self._call(function).result()

    async def arun(self, function: Callable[[Any], T]) -> T:
        """As `run`, without blocking the event loop."""
        return await asyncio.wrap_future(self._call(function))

    def clear_cache(self) -> None:
        """Forget the keys and values of everything read so far: after a change of the weights they are wrong."""
        self.run(lambda model: self._server.clear_cache() if self._server else None)

    def close(self) -> None:
        """End the thread after the requests that wait already, and free its memory. A closed engine takes no more."""
        with self._lock:
            if not self._closed and self._thread is not None:
                self._jobs.put(None)
            self._closed = True

    def _submit(
        self, request: GenerationRequest, emit: Callable[[Event | BaseException], None], *, wants_tokens: bool
    ) -> Job:
        job = Job(request, emit, wants_tokens)
        self._put(job)
        return job

    def _call(self, function: Callable[[Any], T]) -> Future[T]:
        call = _Call(function)
        self._put(call)
        return call.result

    def _put(self, item: Job | _Call) -> None:
        self._start()
        with self._lock:
            if self._closed:
                raise EngineError("The engine is closed and takes no more requests. Make a new one.")
            self._jobs.put(item)

    def _start(self) -> None:
        """Have the thread running; raises `EngineError` where it cannot be."""
        if self._process not in (None, os.getpid()):
            raise EngineError(
                f"The engine was started in process {self._process} and this is its fork {os.getpid()}, which has no "
                "engine thread. Start worker processes with the 'spawn' method, or make the model in the worker."
            )
        with self._lock:
            if self._thread is None and self._closed and not self._loaded.done():
                self._loaded.set_exception(EngineError("The engine is closed."))
            if self._thread is None and not self._closed:
                self._process = os.getpid()
                self._thread = threading.Thread(target=self._serve, name="envtune-engine", daemon=True)
                self._thread.start()
                _started.add(self)
                _threads.add(self._thread)

    def _abandon(self) -> None:
        """Have the thread end after the forward pass under way: nobody will read the replies."""
        if self._process == os.getpid():
            self._abandoned = True
            self._jobs.put(None)

    def _serve(self) -> None:
        """Body of the engine thread."""
        try:
            weights = self._load()
            self._server = _server(weights, self._cache_bytes, cuda_graphs=self._cuda_graphs)
            self._loaded.set_result(weights)
            del weights
        except BaseException as error:  # whoever asks next must learn why, and the thread must not die silently
            self._loaded.set_exception(error)
        while not self._abandoned and (self._take_in() or self._busy):
            if self._server and self._server.busy:
                try:
                    self._server.step()
                except Exception as error:  # a fault of the engine's own: it ends what runs, not the thread
                    self._server.fail(error)
        self._server = None
        self._loaded = Future()
        self._loaded.set_exception(EngineError("The engine is closed."))

    @property
    def _busy(self) -> bool:
        return self._server is not None and self._server.busy

    def _take_in(self) -> bool:
        """Empty the queue, waiting for it when there is nothing else to do; False when the engine was closed."""
        block = not self._busy and not self._ending
        while True:
            try:
                item = self._jobs.get(block=block)
            except queue.Empty:
                return not self._ending
            block = False
            if item is None:
                self._ending = True
            elif isinstance(item, _Call):
                self._answer_call(item)
            elif self._server is None:
                item.emit(self._loaded.exception() or EngineError("The engine is closed."))
            else:
                self._server.add(item)

    def _answer_call(self, call: _Call) -> None:
        if not call.result.set_running_or_notify_cancel():
            return
        try:
            result = call.function(self._loaded.result().model)
        except BaseException as error:  # the caller's function failed; the engine goes on
            call.result.set_exception(error)
        else:
            call.result.set_result(result)
        if self._server:
            self._server.model_touched()


_started: weakref.WeakSet[Engine] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
"""Also of engines that are gone: the last thing a thread does is to free the model."""


@atexit.register
def _end_threads() -> None:
    """Without this the interpreter would end engine threads inside torch, which aborts the process."""
    for engine in list(_started):
        engine._abandon()
    for thread in list(_threads):
        thread.join(_PATIENCE_S)


def _server(weights: Weights, cache_bytes: int, *, cuda_graphs: bool) -> Server:
    """The way to serve this model: packed where its attention allows it."""
    from envtune_agents.engine.alone import Alone
    from envtune_agents.engine.packed_model import PackedModel
    from envtune_agents.engine.scheduler import Scheduler

    packed = PackedModel.of(weights.model, cache_bytes or DEFAULT_CACHE_BYTES, cuda_graphs=cuda_graphs)
    return Scheduler(weights, packed, keep=cache_bytes > 0) if packed else Alone(weights, cache_bytes)


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
