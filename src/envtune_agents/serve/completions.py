"""`/v1/completions` in vLLM's dialect: token ids in, sampled ids and log-probabilities out, as `ChatServed` asks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from envtune_agents.engine import GenerationRequest, GenerationResult
from envtune_agents.grammar import constraint_of_text
from envtune_agents.serve.refusals import Refusal
from envtune_agents.serve.requests import Body, conversation_of, given, stop_texts, usage, wants_usage
from envtune_agents.weights import Weights

if TYPE_CHECKING:
    from envtune_agents.chat_model import ChatTransformers

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's own, for a request that names none."""


async def completion(model: ChatTransformers, body: Body, adapter: str | None, name: str) -> dict[str, Any]:
    """The whole answer to one request."""
    weights = await model.engine.aweights()
    request = _request(model, weights, body, adapter)
    result = await model.engine.agenerate(request)
    choice = _choice(weights, body, result.text, result.token_ids, result.logprobs)
    choice["finish_reason"] = _finish(result)
    if body.get("return_token_ids"):
        choice["prompt_token_ids"] = list(request.prompt_ids)
    return {**_head(name), "choices": [choice], "usage": _usage(result)}


async def completion_chunks(
    model: ChatTransformers, body: Body, adapter: str | None, name: str
) -> AsyncGenerator[dict[str, Any]]:
    """The chunks of a stream: each sampled token with the text that became final with it."""
    weights = await model.engine.aweights()
    head = _head(name)
    async with aclosing(model.engine.astream(_request(model, weights, body, adapter))) as events:
        async for event in events:
            if not isinstance(event, GenerationResult):
                choice = _choice(weights, body, event.text, (event.token_id,), (event.logprob,))
                yield {**head, "choices": [choice]}
                continue
            last = {**_choice(weights, body, event.tail, (), ()), "finish_reason": _finish(event)}
            yield {**head, "choices": [last]}
            if wants_usage(body):
                yield {**head, "choices": [], "usage": _usage(event)}


def _request(model: ChatTransformers, weights: Weights, body: Body, adapter: str | None) -> GenerationRequest:
    sampling = {"temperature": 1.0, **given(body, "temperature", "top_p", "top_k", "seed")}
    try:
        return GenerationRequest(
            prompt_ids=_prompt(weights, body),
            max_new_tokens=int(body.get("max_tokens") or _DEFAULT_MAX_TOKENS),
            stop=tuple(stop_texts(body) or ()),
            constraint=_constraint(weights, body),
            adapter=model.adapter_named(adapter),
            conversation=conversation_of(body),
            **{**sampling, "top_k": max(0, int(sampling.get("top_k", 0)))},
        )
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):
            raise  # one of ours, which says what is wrong
        raise Refusal(400, f"A decoding setting has the wrong type: {error}.") from error


def _prompt(weights: Weights, body: Body) -> tuple[int, ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return tuple(weights.encode(prompt))
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return tuple(prompt)
    raise Refusal(400, "prompt should be one text, or one list of token ids.")


def _constraint(weights: Weights, body: Body) -> Any:
    """The grammar that limits the reply, in vLLM's `structured_outputs`."""
    _check_ends(weights, body.get("stop_token_ids"))
    if body.get("logprobs") not in (None, 0):
        raise Refusal(400, "logprobs should be 0: the log-probability of each sampled token, and of no other.")
    wanted = body.get("structured_outputs")
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping) or set(wanted) != {"grammar"} or not isinstance(wanted["grammar"], str):
        raise Refusal(400, "structured_outputs should hold one grammar, in llguidance's Lark; nothing else is known.")
    return constraint_of_text(wanted["grammar"], weights)


def _check_ends(weights: Weights, ids: Any) -> None:
    strange = set(ids or ()) - set(weights.end_token_ids)
    if strange:
        raise Refusal(400, f"stop_token_ids {sorted(strange)} do not end a reply of this model; use stop, with texts.")


def _choice(
    weights: Weights, body: Body, text: str, token_ids: Sequence[int], logprobs: Sequence[float]
) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": None, "stop_reason": None, "logprobs": None}
    if body.get("logprobs") is not None:
        tokens = [weights.decode([token]) for token in token_ids]
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": list(logprobs), "top_logprobs": None}
    if body.get("return_token_ids"):
        choice["token_ids"] = list(token_ids)
    return choice


def _finish(result: GenerationResult) -> str:
    return "length" if result.finish_reason == "length" else "stop"


def _usage(result: GenerationResult) -> dict[str, Any]:
    return usage(result.prompt_tokens, len(result.token_ids), result.cached_tokens)


def _head(name: str) -> dict[str, Any]:
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": name}
