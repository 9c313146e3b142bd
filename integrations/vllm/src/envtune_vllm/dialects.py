"""How each server is asked to continue token ids, and how its answers are read. Pure: no network.

Both ways are the exact ones: ids go in, so that the server renders and tokenises nothing, and the sampled ids come back
with their log-probabilities. Read from the sources of vLLM 0.32 and SGLang 0.5.23, vLLM's also from a running server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar, Protocol

from envtune_agents.engine import GenerationRequest
from envtune_agents.errors import ServerError
from envtune_agents.grammar import GrammarConstraint

Payload = Mapping[str, Any]
_MOST_USER_CHARS = 256
"""`envtune serve` refuses a longer `user`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one answer, or one event of a stream, adds to a reply."""

    text: str
    """As the server decoded it, cut before a stop string."""
    token_ids: tuple[int, ...] | None
    """None when the server does not report them all with their log-probabilities."""
    logprobs: tuple[float, ...] = ()
    """One for each of `token_ids`."""
    finish: str = ""
    """"stop" or "length" in the last piece; "" before."""
    cached_tokens: int | None = None
    """Tokens of the prompt that the server had computed before, where it says."""
    output_tokens: int | None = None
    """Tokens sampled so far, where it says."""


class Reader(Protocol):
    """Reads the answers to one request in order."""

    def read(self, payload: Payload) -> Piece:
        """What `payload` adds."""


class Dialect(Protocol):
    """One server's way."""

    path: ClassVar[str]
    """Where requests go."""

    def body(
        self, request: GenerationRequest, *, model: str, max_tokens: int, end_token_ids: Sequence[int], stream: bool
    ) -> dict[str, Any]:
        """The request; `model` is the served base model, `request.adapter` an adapter of it."""

    def reader(self) -> Reader:
        """A reader for the answer to one request."""


class Vllm:
    """vLLM's `/v1/completions`, which `envtune serve --backend transformers` speaks too."""

    path: ClassVar[str] = "/v1/completions"

    def body(
        self, request: GenerationRequest, *, model: str, max_tokens: int, end_token_ids: Sequence[int], stream: bool
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": request.adapter or model,
            "prompt": list(request.prompt_ids),
            "max_tokens": max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 0,
            "return_token_ids": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "stop": list(request.stop),
            "stop_token_ids": list(end_token_ids),
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if request.conversation:
            body["user"] = _user(request.conversation)
        if isinstance(request.constraint, GrammarConstraint):
            body["structured_outputs"] = {"grammar": request.constraint.text}
        return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body

    def reader(self) -> Reader:
        return _VllmReader()


class _VllmReader:
    def read(self, payload: Payload) -> Piece:
        choices, usage = payload.get("choices"), payload.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        cached, sampled = details.get("cached_tokens"), usage.get("completion_tokens")
        if not choices:
            return Piece("", (), cached_tokens=cached, output_tokens=sampled)
        choice = choices[0]
        finish = _known_finish(choice.get("finish_reason"))
        text, ids = choice.get("text") or "", choice.get("token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None and not text and not finish:
            return Piece("", ())
        token_ids, values = _paired(ids, logprobs)
        return Piece(text, token_ids, values, finish, cached, sampled)


class Sglang:
    """SGLang's own `/generate`: its OpenAI routes return no ids of what was sampled."""

    path: ClassVar[str] = "/generate"

    def body(
        self, request: GenerationRequest, *, model: str, max_tokens: int, end_token_ids: Sequence[int], stream: bool
    ) -> dict[str, Any]:
        sampling: dict[str, Any] = {
            "max_new_tokens": max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "stop": list(request.stop),
            "stop_token_ids": list(end_token_ids),
        }
        if request.seed is not None:
            sampling["sampling_seed"] = request.seed
        if isinstance(request.constraint, GrammarConstraint):
            sampling["ebnf"] = request.constraint.text
        body: dict[str, Any] = {
            "input_ids": list(request.prompt_ids),
            "sampling_params": sampling,
            "return_logprob": True,
            "stream": stream,
        }
        return {**body, "lora_path": request.adapter} if request.adapter else body

    def reader(self) -> Reader:
        return _SglangReader()


class _SglangReader:
    """SGLang repeats everything in each event of a stream, unless it runs with `--incremental-streaming-output`."""

    def __init__(self) -> None:
        self._tokens = 0
        self._text = ""

    def read(self, payload: Payload) -> Piece:
        meta = payload.get("meta_info") or {}
        reason = meta.get("finish_reason") or {}
        finish = _known_finish(reason.get("type") if isinstance(reason, Mapping) else reason, reason)
        cached, sampled = meta.get("cached_tokens"), meta.get("completion_tokens")
        text = self._new_text(payload.get("text") or "")
        pairs = meta.get("output_token_logprobs")
        if pairs is None:
            return Piece(text, None, (), finish, cached, sampled)
        total = meta.get("output_token_logprobs_length", len(pairs))
        new = pairs[len(pairs) - (total - self._tokens) :] if total > self._tokens else []
        self._tokens = max(total, self._tokens)
        token_ids, values = _paired([pair[1] for pair in new], [pair[0] for pair in new])
        return Piece(text, token_ids, values, finish, cached, sampled)

    def _new_text(self, text: str) -> str:
        if not text.startswith(self._text):
            self._text += text
            return text
        new, self._text = text[len(self._text) :], text
        return new


def _user(conversation: str) -> str:
    """The name of a conversation as OpenAI's `user`: `envtune serve` takes turns by it, and a router can send all of a
    conversation to the server that has its prefix. A long name becomes a digest of it."""
    long = len(conversation) > _MOST_USER_CHARS
    return sha256(conversation.encode("utf-8", "surrogatepass")).hexdigest() if long else conversation


def _paired(ids: Any, logprobs: Any) -> tuple[tuple[int, ...] | None, tuple[float, ...]]:
    """Ids with their log-probabilities, or None where any is missing."""
    if not isinstance(ids, list) or not isinstance(logprobs, list) or len(ids) != len(logprobs):
        return None, ()
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (*ids, *logprobs)):
        return None, ()
    return tuple(int(token) for token in ids), tuple(float(value) for value in logprobs)


def _known_finish(reason: Any, details: Any = None) -> str:
    """ "stop", "length" or ""; raises where the server gave the reply up."""
    if reason in (None, ""):
        return ""
    if reason in ("stop", "length"):
        return str(reason)
    message = details.get("message") if isinstance(details, Mapping) else None
    raise ServerError(f"The server gave the reply up: {message or reason}. Its log tells why.")


DIALECTS: dict[str, type[Vllm] | type[Sglang]] = {"vllm": Vllm, "sglang": Sglang}
"""By the name a server goes by in the list of its models."""
