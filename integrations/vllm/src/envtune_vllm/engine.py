"""`ServedEngine`: a server in the place of the local engine. Token ids in; sampled ids, log-probabilities, text out."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from envtune_agents.engine import GenerationRequest, GenerationResult, TokenEvent
from envtune_agents.errors import ContextOverflowError, ServerError, TaskError, WeightsError, unknown
from envtune_agents.weights import Weights, tokenizer_only
from envtune_vllm.dialects import DIALECTS, Dialect, Vllm
from envtune_vllm.http import JsonClient
from envtune_vllm.reply import ServedReply

log = logging.getLogger(__name__)
Event = TokenEvent | GenerationResult
CONNECT_TIMEOUT_S = 10.0
_OWN_SERVER = "envtune-agents"
"""What `envtune serve --backend transformers` calls itself; it speaks vLLM's dialect."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Which server, and how patiently it is asked. Two chat models with equal settings share their connections."""

    base_url: str
    """Without a trailing slash and without "/v1"."""
    model: str
    """The base model by the name it is served under."""
    server: str
    """"auto", or a key of `DIALECTS`."""
    tokenizer: str | None
    """Folder, GGUF file or hub id; None takes the folder the server says it loaded, else `model`."""
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    """Sent with every request; an API key is among them."""
    timeout_s: float
    max_retries: int


class ServedEngine:
    """A `TokenEngine` whose model runs on a server. It connects at the first use."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._http = JsonClient(
            settings.base_url,
            headers=dict(settings.headers),
            timeout_s=settings.timeout_s,
            connect_timeout_s=min(CONNECT_TIMEOUT_S, settings.timeout_s),
            max_retries=settings.max_retries,
        )
        self._lock = threading.Lock()
        self._weights: Weights | None = None
        self._dialect: Dialect = Vllm()
        self._own = False
        self._warned = False
        self._tempered: bool | None = None  # whether the server's log-probabilities know temperature and truncation

    @property
    def weights(self) -> Weights:
        """Tokenizer, template and context of the served model, without the model; connects at the first use."""
        with self._lock:
            if self._weights is None:
                self._weights = self._connect()
            return self._weights

    async def aweights(self) -> Weights:
        """As `weights`, without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.weights) if self._weights is None else self._weights

    def names(self) -> list[str]:
        """The base model and the adapters that the server has now."""
        return [str(card.get("id")) for card in self._cards()]

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """The whole reply; blocks until it is there."""
        reply, body = self._prepared(request, stream=False)
        answer = self._http.post(self._dialect.path, body)
        reply.read(answer)
        return self._finished(reply)

    async def agenerate(self, request: GenerationRequest) -> GenerationResult:
        """As `generate`, without blocking the event loop; cancelling the task closes the connection."""
        await self.aweights()
        reply, body = await asyncio.to_thread(self._prepared, request, stream=False)
        answer = await self._http.apost(self._dialect.path, body)
        reply.read(answer)
        return self._finished(reply)

    def stream(self, request: GenerationRequest) -> Generator[Event]:
        """Each token as it arrives, then the result. Closing the iterator closes the connection."""
        reply, body = self._prepared(request, stream=True)
        with closing(self._http.events(self._dialect.path, body)) as payloads:
            for payload in payloads:
                yield from reply.read(payload)
        yield self._finished(reply)

    async def astream(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """As `stream`, without blocking the event loop."""
        await self.aweights()
        reply, body = await asyncio.to_thread(self._prepared, request, stream=True)
        async with aclosing(self._http.aevents(self._dialect.path, body)) as payloads:
            async for payload in payloads:
                for event in reply.read(payload):
                    yield event
        yield self._finished(reply)

    def _connect(self) -> Weights:
        """Ask the server what it serves, and load the tokenizer of that."""
        cards = self._cards()
        names = [str(card.get("id")) for card in cards]
        card = next((card for card in cards if card.get("id") == self.settings.model), None)
        if card is None:
            raise ServerError(
                f"{unknown('model', self.settings.model, names)} These are served at {self.settings.base_url}."
            )
        self._dialect, self._own = self._dialect_of(card)
        root = str(card.get("root") or "")
        named = self.settings.tokenizer or (root if Path(root).expanduser().exists() else self.settings.model)
        try:
            weights = tokenizer_only(named)
        except WeightsError as error:
            raise WeightsError(f"{error} The prompt is made here: tokenizer= says where its tokenizer is.") from error
        length = card.get("max_model_len")
        return replace(weights, name=self.settings.model, context_length=int(length or weights.context_length))

    def _cards(self) -> list[dict[str, Any]]:
        found = self._http.get("/v1/models").get("data")
        if not isinstance(found, list) or not all(isinstance(card, dict) for card in found):
            raise ServerError(f"{self.settings.base_url}/v1/models lists no models. Is base_url right?")
        return found

    def _dialect_of(self, card: dict[str, Any]) -> tuple[Dialect, bool]:
        owner = str(card.get("owned_by") or "")
        if owner == _OWN_SERVER and self.settings.server in ("auto", "vllm"):
            return Vllm(), True
        named = owner if self.settings.server == "auto" else self.settings.server
        if named not in DIALECTS:
            raise TaskError(
                f"{self.settings.base_url} does not say which server it is (owned_by is {owner!r}). Give "
                f"server={' or '.join(repr(name) for name in DIALECTS)}."
            )
        return DIALECTS[named](), False

    def _prepared(self, request: GenerationRequest, *, stream: bool) -> tuple[ServedReply, dict[str, Any]]:
        weights, prompt = self.weights, len(request.prompt_ids)
        room = weights.context_length - prompt
        if room < 1:
            raise ContextOverflowError(
                f"The prompt holds {prompt} tokens and the context of '{weights.name}' on {self.settings.base_url} is "
                f"{weights.context_length}, the reply included. Shorten the conversation, or serve a longer context."
            )
        most = min(request.max_new_tokens, room)
        body = self._dialect.body(
            request,
            model=self.settings.model,
            max_tokens=most,
            end_token_ids=weights.end_token_ids,
            stream=stream,
        )
        return ServedReply(weights, request, most, self._dialect.reader(), traced=self._logprobs_hold(request)), body

    def _finished(self, reply: ServedReply) -> GenerationResult:
        if not reply.finish:
            raise ServerError(
                f"The server at {self.settings.base_url} ended its answer before the reply was finished. Its log tells "
                "why."
            )
        result = reply.result()
        if not result.token_ids and not self._warned:
            self._warned = True
            log.warning("%s: %s. Its replies are good for SFT on text only.", self.settings.base_url, reply.untraced)
        return result

    def _logprobs_hold(self, request: GenerationRequest) -> bool:
        """Whether the server's log-probabilities are those of `TokenTrace.logprobs`: of softmax(logits / temperature),
        before truncation. SGLang's and ours are; vLLM's depend on how it was started."""
        if self._own or not isinstance(self._dialect, Vllm):
            return True
        greedy = request.temperature == 0
        raw_is_right = greedy or request.temperature == 1
        tempered_is_right = greedy or (request.top_p == 1 and not request.top_k)
        if raw_is_right == tempered_is_right:
            return raw_is_right
        if self._tempered is None:
            self._tempered = self._ask_whether_tempered(request)
        return tempered_is_right if self._tempered else raw_is_right

    def _ask_whether_tempered(self, request: GenerationRequest) -> bool:
        """True for `--logprobs-mode processed_logprobs`: the best token's log-probability falls with temperature."""
        best: list[float] = []
        for temperature in (1.0, 2.0):
            probe = GenerationRequest(request.prompt_ids, 1, temperature=temperature, adapter=request.adapter)
            body = self._dialect.body(probe, model=self.settings.model, max_tokens=1, end_token_ids=(), stream=False)
            answer = self._http.post(self._dialect.path, {**body, "logprobs": 1})
            choice = (answer.get("choices") or [{}])[0]
            shown = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
            best.append(float(max((shown[0] or {"": 0.0}).values())))
        return abs(best[0] - best[1]) > 1e-3
