"""Our own server: OpenAI's protocol over `ChatTransformers`, as an ASGI application."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from envtune_agents.chat_model import ChatTransformers
from envtune_agents.errors import require, unknown
from envtune_agents.serve.chat import chat_chunks, chat_completion
from envtune_agents.serve.completions import completion, completion_chunks
from envtune_agents.serve.installed import SERVE_INSTALL
from envtune_agents.serve.logs import RequestLog
from envtune_agents.serve.refusals import Refusal, refusal_of
from envtune_agents.serve.requests import Body, checked

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

OWNER = "envtune-agents"
"""What the list of models says who serves them."""
DEFAULT_CONCURRENCY = 64
MAX_BODY_BYTES = 32 * 1024**2
log = logging.getLogger("envtune_agents.serve")

Whole = Callable[[ChatTransformers, Body, str | None, str], Awaitable[dict[str, Any]]]
Chunks = Callable[[ChatTransformers, Body, str | None, str], AsyncGenerator[dict[str, Any]]]


def serving_app(
    model: ChatTransformers,
    *,
    name: str | None = None,
    api_key: str | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
) -> Starlette:
    """An ASGI application that serves `model`: any server such as uvicorn runs it.

    `/v1/chat/completions` with tools, tool_choice, response_format, streams, log-probabilities and usage;
    `/v1/completions` from text or token ids; `/v1/models`; `/health`. `name` is what clients call the model, and the
    names of its adapters are models too. With `api_key`, all routes but `/health` want it as a bearer token. A request
    beyond `concurrency` is answered with 503 and a pause to wait, which clients do by themselves. A client that goes
    away ends its generation. Each request is logged without its text.
    """
    starlette = require("starlette.applications", feature="The server", install=SERVE_INSTALL)
    routing = require("starlette.routing", feature="The server", install=SERVE_INSTALL)
    server = _Server(model, name or model.model, api_key, concurrency)
    return starlette.Starlette(  # type: ignore[no-any-return]
        routes=[
            routing.Route("/health", server.health),
            routing.Route("/v1/models", server.models),
            routing.Route("/v1/chat/completions", server.chat, methods=["POST"]),
            routing.Route("/v1/completions", server.completions, methods=["POST"]),
        ]
    )


class _Server:
    """The routes, and how many requests are under way."""

    def __init__(self, model: ChatTransformers, name: str, api_key: str | None, concurrency: int) -> None:
        self._model = model
        self._name = name
        self._key = api_key
        self._concurrency = concurrency
        self._running = 0
        self._born = int(time.time())

    async def health(self, request: Request) -> Response:
        """200 once the weights are loaded and as long as the engine works."""
        engine = self._model.engine
        if engine.failed:
            return _json({"status": "failed"}, 503)
        return _json({"status": "ok", "running": self._running, "concurrency": self._concurrency})

    async def models(self, request: Request) -> Response:
        """The base model and its adapters."""
        try:
            self._check_key(request)
            weights = await self._model.engine.aweights()
        except Exception as error:
            return _refused(refusal_of(error))
        card = {"object": "model", "created": self._born, "owned_by": OWNER, "max_model_len": weights.context_length}
        cards = [{"id": self._name, **card, "root": self._model.model, "parent": None}]
        for adapter, path in (self._model.adapters or {}).items():
            cards.append({"id": adapter, **card, "root": path, "parent": self._name})
        return _json({"object": "list", "data": cards})

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        return await self._answer(request, chat_completion, chat_chunks)

    async def completions(self, request: Request) -> Response:
        """`/v1/completions`."""
        return await self._answer(request, completion, completion_chunks)

    async def _answer(self, request: Request, whole: Whole, chunks: Chunks) -> Response:
        entry = RequestLog(log, request.url.path, request_id=f"req-{uuid.uuid4().hex[:16]}")
        try:
            self._check_key(request)
            body = checked(await _body(request))
            adapter, name = self._named(body.get("model"))
            self._take_place()
        except Exception as error:
            return self._refuse(entry, error)
        entry.about(name, bool(body.get("stream")))
        if body.get("stream"):
            return await self._stream(entry, chunks(self._model, body, adapter, name))
        try:
            answer = await _unless_gone(request, whole(self._model, body, adapter, name))
        except Exception as error:
            return self._refuse(entry, error)
        finally:
            self._running -= 1
        entry.done(200, answer)
        return _json(answer, headers={"x-request-id": entry.request_id})

    async def _stream(self, entry: RequestLog, chunks: AsyncGenerator[dict[str, Any]]) -> Response:
        """A stream whose first chunk is there already: until then a refusal can have its own status."""
        responses = require("starlette.responses", feature="The server", install=SERVE_INSTALL)
        try:
            first = await anext(chunks)
        except BaseException as error:
            self._running -= 1
            if not isinstance(error, Exception):
                raise  # the server stops
            return self._refuse(entry, error)
        response = responses.StreamingResponse(
            self._events(entry, first, chunks),
            media_type="text/event-stream",
            headers={"x-request-id": entry.request_id, "cache-control": "no-cache"},
        )
        return _Stream(response, lambda: self._ended(chunks))  # type: ignore[return-value]

    async def _ended(self, chunks: AsyncGenerator[dict[str, Any]]) -> None:
        self._running -= 1
        await chunks.aclose()

    async def _events(
        self, entry: RequestLog, first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any]]
    ) -> AsyncGenerator[str]:
        seen = first
        try:
            yield _event(first)
            async for chunk in chunks:
                seen = chunk if chunk.get("usage") or chunk["choices"][0]["finish_reason"] else seen
                yield _event(chunk)
            yield "data: [DONE]\n\n"
            entry.done(200, seen)
        except Exception as error:
            refusal = refusal_of(error)
            entry.failed(refusal.status, error)
            yield _event(refusal.as_plain())
        except BaseException:  # the client went away, or the server stops
            entry.gone()
            raise

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(), self._key.encode()):
            raise Refusal(401, "The API key is missing or wrong.", "invalid_api_key")

    def _named(self, wanted: Any) -> tuple[str | None, str]:
        """The adapter of a request, None for the base model, and what to call it in the answer."""
        if wanted in (None, "", self._name):
            return None, self._name
        known = [self._name, *(self._model.adapters or {})]
        if wanted not in known:
            raise Refusal(404, f"{unknown('model', wanted, known)} These are served here.", "model_not_found")
        return str(wanted), str(wanted)

    def _take_place(self) -> None:
        if self._running >= self._concurrency:
            raise Refusal(503, f"{self._concurrency} requests are under way already; try again.", retry_after_s=1)
        self._running += 1

    def _refuse(self, entry: RequestLog, error: Exception) -> Response:
        refusal = refusal_of(error)
        entry.failed(refusal.status, error)
        return _refused(refusal)


class _Stream:
    """A streaming response that does `ended` even when its client was gone before the first line."""

    def __init__(self, response: Response, ended: Callable[[], Awaitable[None]]) -> None:
        self._response = response
        self._ended = ended

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            await self._ended()


async def _unless_gone(request: Request, answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """What `answer` gives, cancelled when the client goes away."""
    work = asyncio.ensure_future(answer)
    watch = asyncio.ensure_future(_client_gone(request))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Refusal(499, "The client went away.")
        return work.result()
    finally:
        for task in (work, watch):
            task.cancel()


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> Any:
    gathered = bytearray()
    async for part in request.stream():
        gathered += part
        if len(gathered) > MAX_BODY_BYTES:
            raise Refusal(413, f"The request is larger than {MAX_BODY_BYTES:,} bytes.")
    try:
        return json.loads(gathered)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The request is not JSON: {error}.") from error


def _event(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n"


def _json(payload: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    responses = require("starlette.responses", feature="The server", install=SERVE_INSTALL)
    return responses.JSONResponse(payload, status, headers)  # type: ignore[no-any-return]


def _refused(refusal: Refusal) -> Response:
    wait = {"retry-after": str(refusal.retry_after_s)} if refusal.retry_after_s else None
    return _json(refusal.as_plain(), refusal.status, wait)
