"""What waits in the engine's queue, and what every way of serving it needs: checks, adapters, memory of the context."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from envtune_agents.engine.reply import Reply
from envtune_agents.engine.request import GenerationRequest, GenerationResult, TokenEvent
from envtune_agents.errors import ContextOverflowError, RequestError, WeightsError, unknown
from envtune_agents.weights import Weights

Event = TokenEvent | GenerationResult


@dataclass(slots=True, eq=False)
class Job:
    """One request and its caller."""

    request: GenerationRequest
    emit: Callable[[Event | BaseException], None]
    """Tells the caller; called from the engine thread."""
    wants_tokens: bool
    """False when only the result is wanted."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set by a caller that went away."""

    def reply(self, weights: Weights, budget: int) -> Reply:
        """Its reply of at most `budget` tokens, still empty."""
        return Reply(weights, self.request, budget, self.emit if self.wants_tokens else None)


class Server(Protocol):
    """A way to serve jobs with one model; lives in the engine thread."""

    batches: ClassVar[bool]
    """Whether several jobs share a forward pass."""

    def add(self, job: Job) -> None:
        """Take a job into the queue."""

    @property
    def busy(self) -> bool:
        """Whether a job waits or runs."""

    def step(self) -> None:
        """One forward pass, and what follows from it."""

    def fail(self, error: Exception) -> None:
        """Tell every caller that `error` ended their request."""

    def clear_cache(self) -> None:
        """Forget the keys and values of finished requests, and of the running ones when they end."""

    def model_touched(self) -> None:
        """A caller's function had the model: its active adapter may be another."""


def token_budget(weights: Weights, request: GenerationRequest, room: int | None = None) -> int:
    """How many tokens may be sampled: the request's wish, clipped to what context and memory leave.

    `room`: tokens of keys and values there are at all, where that is a limit. Raises when the prompt does not fit.
    """
    prompt, limit = len(request.prompt_ids), weights.context_length
    if prompt >= limit:
        raise ContextOverflowError(
            f"The prompt holds {prompt} tokens and the context of '{weights.name}' is {limit}, the reply included. "
            "Shorten or summarise the conversation, offer fewer tools, or use a model with a longer context."
        )
    vocabulary = int(weights.model.get_input_embeddings().num_embeddings)
    if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocabulary:
        raise RequestError(
            f"The prompt holds a token id outside 0 to {vocabulary - 1}, the vocabulary of '{weights.name}'. "
            "Encode it with this model's own tokenizer."
        )
    if room is not None and prompt >= room:
        raise ContextOverflowError(
            f"The prompt holds {prompt} tokens and cache_bytes has room for {room}, the reply included. Raise "
            "cache_bytes, or shorten the conversation."
        )
    return max(1, min(request.max_new_tokens, min(limit, room or limit) - prompt))


def check_adapter(model: Any, name: str | None) -> None:
    """Raise `WeightsError` when no adapter of that name is loaded."""
    loaded = sorted(getattr(model, "peft_config", None) or {})
    if name is not None and name not in loaded:
        raise WeightsError(unknown("adapter", name, loaded or ["none is loaded"]))


def use_adapter(model: Any, name: str | None) -> None:
    """Make `name` the model's only active LoRA adapter; None switches adapters off.

    The model is transformers' own with adapters added to it, or one that peft wrapped.
    """
    check_adapter(model, name)
    if not getattr(model, "peft_config", None):
        return
    wrapped = hasattr(model, "disable_adapter_layers")  # transformers' own methods know adapters it loaded only
    if name is None:
        (model.disable_adapter_layers if wrapped else model.disable_adapters)()
    else:
        (model.enable_adapter_layers if wrapped else model.enable_adapters)()
        model.set_adapter(name)
