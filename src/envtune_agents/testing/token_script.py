"""A checkpoint's whole path with the sampling scripted: real tokenizer, template, prompt building, parsing, no weights.

It answers what only sampled tokens can: does the next prompt go on exactly from what was said?
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from pydantic import SkipValidation

from envtune_agents.chat_model import ChatTransformers
from envtune_agents.engine import GenerationRequest, GenerationResult
from envtune_agents.weights import Weights, tokenizer_only

__all__ = ["TokenScript", "scripted_logprob", "tokenizer_only"]
_REPLY_OPENS = "<|im_start|>assistant\n"


class TokenScript(ChatTransformers):
    """A `ChatTransformers` that "samples" the tokens of its script: the n-th reply of a conversation is the n-th text.

    model = TokenScript(model="scripted", script=["…", "Done."], scripted_weights=tokenizer_only("smollm2"))

    `split_seed` cuts each text at random places before it is tokenised, since a model may well sample tokens that no
    tokenizer would choose for the same text. After the last text it says nothing.
    """

    script: SkipValidation[Sequence[str]]
    scripted_weights: SkipValidation[Any]
    split_seed: int | None = None

    @property
    def engine(self) -> Any:
        """The script in the engine's place."""
        return _ScriptedEngine(self.scripted_weights, self.script, self.split_seed)


def scripted_logprob(token_id: int) -> float:
    """The log-probability a script gives to a token: told apart by token, so that a shifted tape shows."""
    return -0.01 - (token_id % 97) / 97


class _ScriptedEngine:
    failed = False

    def __init__(self, weights: Weights, script: Sequence[str], split_seed: int | None) -> None:
        self.weights = weights
        self._script = script
        self._split_seed = split_seed

    async def aweights(self) -> Weights:
        return self.weights

    def generate(self, request: GenerationRequest) -> GenerationResult:
        position = self.weights.decode(request.prompt_ids).count(_REPLY_OPENS) - 1
        text = self._script[position] if position < len(self._script) else ""
        ids = (*self._tokens(text, position), self.weights.end_token_ids[-1])
        logprobs = tuple(scripted_logprob(token) for token in ids)
        return GenerationResult(ids, logprobs, text, text, text, "end", len(request.prompt_ids), 0)

    async def agenerate(self, request: GenerationRequest) -> GenerationResult:
        return self.generate(request)

    def _tokens(self, text: str, position: int) -> list[int]:
        if self._split_seed is None:
            return self.weights.encode(text)
        cut = random.Random(f"{self._split_seed}/{position}")
        pieces = [""]
        for part in re.split(r"(</?\w+>)", text):  # an added token such as <tool_call> stays one
            for character in [part] if part.startswith("<") else part:
                if cut.random() < 0.2:
                    pieces.append("")
                pieces[-1] += character
        return [token for piece in pieces for token in self.weights.encode(piece)]
