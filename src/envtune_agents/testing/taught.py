"""A chat model whose replies a function of the prompt gives: everything but the sampling is real.

Tokenizer, template, prompt building, grammar, parser, messages, streams and adapters are those of a checkpoint; only
what is said comes from outside. It shows how an app behaves with a model that knows what to do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from pydantic import PrivateAttr, SkipValidation

from envtune_agents.chat_model import ChatTransformers
from envtune_agents.engine import Engine, GenerationRequest, GenerationResult, TokenEvent
from envtune_agents.engine.text import Detokenizer
from envtune_agents.errors import ConstraintError
from envtune_agents.weights import Weights

_LOGPROB = -0.1


class TaughtModel(ChatTransformers):
    """A `ChatTransformers` that says `answer(prompt)`, where `prompt` is the whole rendered conversation.

        model = TaughtModel(model=tiny_qwen(folder), answer=lambda prompt: "Done.")

    Where a grammar limits the reply, it must admit the answer: `ConstraintError` otherwise. `lessons` keeps every
    prompt with its reply, in tokens, as `overfit` takes them.
    """

    answer: SkipValidation[Callable[[str], str]]
    _lessons: dict[tuple[int, ...], tuple[int, ...]] = PrivateAttr(default_factory=dict)

    @property
    def lessons(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """Prompt ids -> reply ids with the end token, of all that was asked so far."""
        return self._lessons

    @property
    def engine(self) -> Any:
        """The answers in the engine's place."""
        return _TaughtEngine(super().engine, self.answer, self._lessons)


class _TaughtEngine:
    """The ways to ask an engine; the real one keeps the weights."""

    failed = False

    def __init__(self, real: Engine, answer: Callable[[str], str], lessons: dict[Any, Any]) -> None:
        self._real = real
        self._answer = answer
        self._lessons = lessons
        self.run = real.run

    @property
    def weights(self) -> Weights:
        return self._real.weights

    async def aweights(self) -> Weights:
        return await self._real.aweights()

    def generate(self, request: GenerationRequest) -> GenerationResult:
        weights, size = self.weights, len(request.prompt_ids)
        text = self._answer(weights.decode(request.prompt_ids))
        ids = (*weights.encode(text), weights.end_token_ids[-1])
        if request.constraint:
            _must_admit(request.constraint.start(), ids, text, len(weights.tokenizer))
        self._lessons[request.prompt_ids] = ids
        return GenerationResult(ids, (_LOGPROB,) * len(ids), text, text, "", "end", size, size // 2)

    async def agenerate(self, request: GenerationRequest) -> GenerationResult:
        return self.generate(request)

    def stream(self, request: GenerationRequest) -> Generator[TokenEvent | GenerationResult]:
        result = self.generate(request)
        text = Detokenizer(self.weights.decode)
        for token in result.token_ids[:-1]:
            yield TokenEvent(token, _LOGPROB, text.feed(token))
        yield result

    async def astream(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent | GenerationResult]:
        for event in self.stream(request):
            yield event


def _must_admit(state: Any, ids: tuple[int, ...], text: str, n_vocab: int) -> None:
    import torch

    forced: list[int] = []
    for token in ids:
        if not forced:
            logits = torch.zeros(n_vocab)
            state.restrict(logits)
            admitted = bool(logits[token] == 0)
            forced = list(state.advance(token)) if admitted else []
        else:
            admitted = forced.pop(0) == token
        if not admitted:
            raise ConstraintError(f"The grammar of this call does not admit the answer {text!r}.")
