"""What travels between callers and the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from envtune_agents.errors import RequestError

FinishReason = Literal["end", "stop", "length"]
"""Why decoding ended: an end token was sampled, a stop string was completed, or the token budget was used up."""


class ConstraintState(Protocol):
    """Where one reply stands in a grammar. Used by the engine thread only."""

    def restrict(self, logits: Any) -> None:
        """Set the logits (float tensor, [vocab]) of every token the grammar refuses to minus infinity, in place."""

    def advance(self, token_id: int) -> Sequence[int]:
        """Take a sampled token; the tokens that must follow it, already taken too."""


class Constraint(Protocol):
    """A grammar, compiled for one tokenizer and shared by many requests."""

    def start(self) -> ConstraintState:
        """A fresh state for one reply."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and how to continue it."""

    prompt_ids: tuple[int, ...]
    """Length T_prompt, at least 1."""
    max_new_tokens: int = 1024
    """Most tokens to sample, the end token included; clipped to what the context leaves."""
    temperature: float = 0.0
    """0 is greedy; otherwise the logits are divided by it."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with at least this probability, in (0, 1]; 1 keeps all."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 keeps all."""
    seed: int | None = None
    """Seed of this request's own random generator; None draws one."""
    stop: tuple[str, ...] = ()
    """Texts that end the reply; they are cut from `text`."""
    constraint: Constraint | None = None
    """Grammar that every sampled token must satisfy."""
    adapter: str | None = None
    """Name of a LoRA adapter loaded into the model; None is the model without any."""
    caller: str = ""
    """Who asks. Callers get equal shares of the engine, however many requests each has."""
    conversation: str = ""
    """Which of the caller's conversations asks; they share what the caller gets."""

    def __post_init__(self) -> None:
        """Raises `RequestError` when a setting is out of its range."""
        wrong = {
            "prompt_ids": (bool(self.prompt_ids), "at least one token", "none"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1", self.max_new_tokens),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or more", self.temperature),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1", self.top_p),
            "top_k": (self.top_k >= 0, "0 (all) or more", self.top_k),
        }
        for name, (fine, wanted, got) in wrong.items():
            if not fine:
                raise RequestError(f"{name} is {got}; wanted: {wanted}.")


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One sampled token, as it happens."""

    token_id: int
    logprob: float
    text: str
    """Text that became final with this token; "" while a character or a possible stop string is incomplete."""


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished reply. The last event of every stream."""

    token_ids: tuple[int, ...]
    """Length T_completion, the end token included when it was sampled."""
    logprobs: tuple[float, ...]
    """Length T_completion; log softmax(logits / temperature) at the sampled token (temperature 1 when greedy), before
    top-p, top-k and grammar."""
    text: str
    """Special tokens kept, end token cut, and cut before the stop string when there was one."""
    full_text: str
    """As `text`, but with the stop string and what followed it in its last token."""
    tail: str
    """The end of `text` that no `TokenEvent` carried: what was held back for a stop string or a character that did not
    come."""
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Share of `prompt_tokens` that came from the prefix cache."""
    unreported_tokens: int = 0
    """How many tokens were sampled, where a server does not report them: then `token_ids` and `logprobs` are empty."""
