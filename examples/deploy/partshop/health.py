"""What is added to the server: weights loaded before the first request, traces sent before the end, and /ready.

The server's own /ok says that the process lives; /ready asks the model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from langchain_core.tracers.langchain import wait_for_all_tracers
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from envtune_agents.deadline import await_with_deadline
from envtune_agents.engine import GenerationRequest
from envtune_agents.errors import EnvTuneError
from partshop.agent import model, settings

PATIENCE_S = 20.0
FLUSH_MS = 5_000
log = logging.getLogger("partshop")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """A wrong model ends the start, not the first request; the end waits for the traces of the runs before it."""
    try:
        weights = await model.engine.aweights()
    except EnvTuneError as error:
        log.error("the model cannot be loaded: %s", error)
        raise
    app.state.question = GenerationRequest((weights.end_token_ids[0],), max_new_tokens=1, temperature=0)
    log.info("model loaded", extra={"model": settings.model, "context": weights.context_length})
    yield
    await asyncio.to_thread(wait_for_all_tracers)
    flush = getattr(trace.get_tracer_provider(), "force_flush", None)  # the provider without a target has none
    if flush:
        await asyncio.to_thread(flush, FLUSH_MS)


async def ready(request: Request) -> JSONResponse:
    """200 when the model gives one token within `PATIENCE_S` seconds, in the queue with everybody else; 503 otherwise."""
    said = {"model": settings.model, "stage": settings.stage, "hint_level": settings.hint_level}
    try:
        await await_with_deadline(model.engine.agenerate(request.app.state.question), PATIENCE_S)
    except Exception as error:  # whatever it is, this process should get no more work
        return JSONResponse({"ready": False, "error": type(error).__name__, **said}, status_code=503)
    return JSONResponse({"ready": True, **said})


app = Starlette(routes=[Route("/ready", ready)], lifespan=lifespan)
