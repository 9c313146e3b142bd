"""The policy that verl serves, as the library's chat model: the same template, parser and token tape as everywhere.

Comes in: verl's server client and the tokenizer. Goes out: a chat model whose replies the servers decode. A prompt
continues the sampled tokens of the reply before it, so what is trained is what was sampled.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from pydantic import PrivateAttr

from envtune_agents.chat_model import TokenChatModel, TokenEngine
from envtune_agents.engine import GenerationRequest, GenerationResult, TokenEvent
from envtune_agents.errors import ContextOverflowError, EngineError, RequestError
from envtune_agents.types import Environment, Task
from envtune_agents.weights import Weights


class ServedTokens(Protocol):
    """What verl's servers answer with: `verl.workers.rollout.replica.TokenOutput`."""

    token_ids: list[int]
    log_probs: list[float] | None
    stop_reason: str | None
    num_preempted: int | None
    extra_fields: dict[str, Any]


class ServerClient(Protocol):
    """verl's `LLMServerClient`."""

    def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> Awaitable[ServedTokens]:
        """Sampled tokens after `prompt_ids`; calls with one `request_id` go to one server."""


@lru_cache(maxsize=8)
def served_weights(tokenizer: Any, name: str, context_length: int) -> Weights:
    """The tokenizer and chat template as `Weights` without a model; `name` is the checkpoint's folder or hub id."""
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    ends = {tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>"), *_configured_ends(name)}
    end_ids = tuple(sorted(int(token) for token in ends if token is not None))
    return Weights(None, tokenizer, name, "served", context_length, end_ids, template)


@lru_cache(maxsize=8)
def _configured_ends(name: str) -> tuple[int, ...]:
    """The end tokens of the checkpoint's generation settings, which the servers stop at too."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(name).eos_token_id
    except (OSError, ValueError):  # a checkpoint without such a file
        return ()
    return tuple(found) if isinstance(found, list) else () if found is None else (found,)


@dataclass(slots=True)
class ServerEngine:
    """The engine's place for one episode: prompts go to verl's servers, within verl's length limits."""

    client: ServerClient
    weights: Weights
    request_id: str
    """Names the episode, so that all its calls reach the server that has its prefix in the cache."""
    max_prompt: int
    """Most tokens of the first prompt (`rollout.prompt_length`)."""
    max_response: int
    """Most tokens after the prompt of a branch (`rollout.response_length`)."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """verl's sampling parameters: those of training, or greedy ones in validation."""
    preempted: int = 0
    versions: list[int] = field(default_factory=list)
    """Training step of the weights that each call was answered with."""
    _start: int = field(default=0, init=False)
    """Length of the prompt that the present branch began with, `max_prompt` at most."""
    _whole: tuple[int, ...] = field(default=(), init=False)
    """All tokens of the present branch."""

    async def aweights(self) -> Weights:
        """The tokenizer and template; nothing has to be loaded."""
        return self.weights

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """Not offered: the servers are asked from verl's event loop."""
        raise EngineError("A policy that verl serves is asked with ainvoke, from verl's own event loop.")

    def stream(self, request: GenerationRequest) -> Generator[TokenEvent | GenerationResult]:
        """Not offered, as `generate`."""
        yield self.generate(request)

    async def astream(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent | GenerationResult]:
        """The result at once: the servers do not tell single tokens."""
        yield await self.agenerate(request)

    async def agenerate(self, request: GenerationRequest) -> GenerationResult:
        """One reply. Raises `ContextOverflowError` when the limits leave no token for it."""
        if request.constraint is not None:
            raise RequestError("verl's servers decode without a grammar; leave tool_choice and strict out.")
        budget = min(self._room(request.prompt_ids), request.max_new_tokens)
        served = await self._asked(request, budget)
        result = self._result(request, tuple(served.token_ids), self._logprobs(served), budget)
        self._whole = request.prompt_ids + result.token_ids
        return result

    async def _asked(self, request: GenerationRequest, budget: int) -> ServedTokens:
        settings = {**self.sampling, "max_tokens": budget, "logprobs": True}
        served = await self.client.generate(
            self.request_id, prompt_ids=list(request.prompt_ids), sampling_params=settings
        )
        self.preempted += max(served.num_preempted or 0, 0)
        if isinstance(version := served.extra_fields.get("global_steps"), int):
            self.versions.append(version)
        if not served.token_ids:
            raise EngineError(f"verl's server gave no token ({served.stop_reason or 'no reason'}).")
        return served

    def _room(self, prompt: tuple[int, ...]) -> int:
        """Tokens that a reply to `prompt` may have."""
        if not self._whole and len(prompt) > self.max_prompt:
            raise ContextOverflowError(f"The first prompt has {len(prompt)} tokens, {self.max_prompt} are allowed.")
        if not self._whole or prompt[: len(self._whole)] != self._whole:
            self._start = min(len(prompt), self.max_prompt)
        room = self._start + self.max_response - len(prompt)
        if room < 1:
            raise ContextOverflowError(
                f"The episode has {len(prompt)} tokens, {self._start + self.max_response} are allowed."
            )
        return room

    def _logprobs(self, served: ServedTokens) -> tuple[float, ...]:
        found = served.log_probs
        if found is None or len(found) != len(served.token_ids):
            raise EngineError(
                f"verl's server gave {len(served.token_ids)} tokens and {len(found or ())} log-probabilities. Set "
                "actor_rollout_ref.rollout.calculate_log_probs=True."
            )
        return tuple(map(float, found))

    def _result(
        self, request: GenerationRequest, ids: tuple[int, ...], logprobs: Sequence[float], budget: int
    ) -> GenerationResult:
        ids, logprobs = ids[:budget], tuple(logprobs[:budget])
        ended = ids[-1] in self.weights.end_token_ids
        text = self.weights.decode(ids[:-1] if ended else ids)
        return GenerationResult(
            ids, logprobs, text, text, text, "end" if ended else "length", len(request.prompt_ids), 0
        )


class ServedPolicy(TokenChatModel):
    """The chat model over verl's servers; one for each episode."""

    _server: ServerEngine | None = PrivateAttr(default=None)

    @classmethod
    def over(cls, server: ServerEngine, **settings: Any) -> ServedPolicy:
        """A chat model whose replies `server` decodes."""
        model = cls(model=server.weights.name, **settings)
        model._server = server
        return model

    @property
    def engine(self) -> TokenEngine:
        """The servers, in the engine's place."""
        if self._server is None:
            raise EngineError("This chat model belongs to a training run; make it with ServedPolicy.over(server).")
        return self._server

    @property
    def _llm_type(self) -> str:
        return "envtune-verl"

    def adapter_named(self, wanted: str | None) -> str | None:
        """None: verl serves one set of weights."""
        return None


def first_prompt_tokens(weights: Weights, environment: Callable[[Task], Environment]) -> Callable[[Task], int]:
    """A function from a task to the length of its first prompt in tokens, tools included; each is counted once."""
    from langchain_core.utils.function_calling import convert_to_openai_tool

    from envtune_agents.chat_model.template import template_for

    known: dict[str, int] = {}

    def count(task: Task) -> int:
        if task.task_id not in known:
            world = environment(task)
            messages = [{"role": "user", "content": world.open_turn() or ""}]
            tools = [convert_to_openai_tool(tool) for tool in world.tools()]
            text = template_for(weights, "auto", messages, tools, None).render(messages, tools)
            known[task.task_id] = len(weights.encode(text))
        return known[task.task_id]

    return count
