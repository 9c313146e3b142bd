"""The JSON of a request -> checked values. Nothing that would change the reply is silently ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envtune_agents.serve.refusals import Refusal

Body = Mapping[str, Any]
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
}
"""What is not supported, with the values that ask for nothing."""
MAX_USER_CHARS = 256


def checked(body: Any) -> Body:
    """`body` as an object; refused where it asks for what this server does not do."""
    if not isinstance(body, dict):
        raise Refusal(400, "The request is not a JSON object.")
    for name, neutral in _NEUTRAL.items():
        if body.get(name) is not None and body[name] not in neutral:
            raise Refusal(400, f"{name}={body[name]!r} is not supported here; leave it out.")
    return body


def stop_texts(body: Body) -> list[str] | None:
    """The texts that end the reply; None when the request says nothing."""
    stop = body.get("stop")
    if stop is None or stop == []:
        return None
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refusal(400, f"stop is {stop!r}. Wanted: a text or a list of texts.")
    return texts


def conversation_of(body: Body) -> str:
    """Which conversation asks: the request's `user`, by whom the engine takes turns; "" when it names none."""
    user = body.get("user")
    if user is None:
        return ""
    if not isinstance(user, str) or len(user) > MAX_USER_CHARS:
        got = f"{len(user):,} characters long" if isinstance(user, str) else f"of the type {type(user).__name__}"
        raise Refusal(400, f"user is {got}. Wanted: a text of at most {MAX_USER_CHARS} characters.")
    return user


def wants_usage(body: Body) -> bool:
    """Whether a stream ends with the token counts."""
    options = body.get("stream_options")
    return bool(options.get("include_usage")) if isinstance(options, Mapping) else False


def given(body: Body, *names: str) -> dict[str, Any]:
    """The values of `names` that the request brings."""
    return {name: body[name] for name in names if body.get(name) is not None}


def usage(prompt: int, completion: int, cached: int, reasoning: int = 0) -> dict[str, Any]:
    """Token counts as OpenAI's API gives them."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
