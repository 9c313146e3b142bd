"""How many tokens a hint costs: counted with the model's own tokenizer, or estimated and said to be so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envtune_agents.errors import EnvTuneError
from envtune_agents.types import Rollout

log = logging.getLogger(__name__)

_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """A way to count the tokens of a text, and its name."""

    name: str
    """Which tokenizer counts, or how the estimate is made."""
    count: Callable[[str], int]
    exact: bool = True
    """False for an estimate."""
    decode: Callable[[Sequence[int]], str] | None = None
    """Text of token ids, special tokens kept; None where there is no tokenizer."""


def _estimated(text: str) -> int:
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)


ESTIMATE = TokenCounter(f"estimate: UTF-8 bytes / {_BYTES_PER_TOKEN}", _estimated, exact=False)
"""For runs without a tokenizer at hand: four bytes a token, rounded up for each text (ours; English text)."""


def token_counter(model: str | Path) -> TokenCounter:
    """Counts with the tokenizer of a checkpoint: a folder, a GGUF file, a hub id or "smollm2". Loads no weights."""
    from envtune_agents.weights import load_tokenizer

    tokenizer: Any = load_tokenizer(model).backend_tokenizer
    return TokenCounter(
        name=f"tokenizer of {model}",
        count=lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)),
    )


def tokenizer_of_run(rollouts: Iterable[Rollout]) -> TokenCounter:
    """The counter of the run's own model where it recorded tokens and its files are on this disk, else `ESTIMATE`.

    Nothing is downloaded; name the tokenizer yourself for a model that was served elsewhere.
    """
    traced = {rollout.model for rollout in rollouts if _has_token_ids(rollout)}
    if len(traced) != 1:
        return ESTIMATE
    (model,) = traced
    from envtune_agents.weights.source import SHIPPED

    if model not in SHIPPED and not Path(model).expanduser().exists():
        return ESTIMATE
    try:
        return token_counter(model)
    except EnvTuneError as error:
        log.warning("the tokenizer of %s cannot be loaded, so tokens are estimated: %s", model, error)
        return ESTIMATE


def _has_token_ids(rollout: Rollout) -> bool:
    return any(step.prompt_token_ids for turn in rollout.turns for step in turn.steps)
