"""The conversation of one episode -> its record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from envtune_agents.hints import outcomes_in
from envtune_agents.qwen import format_call
from envtune_agents.types import (
    TOKEN_TRACE_KEY,
    RolloutStep,
    RolloutTurn,
    Timings,
    TokenTrace,
    TurnEvidence,
    TurnScore,
    Usage,
)


def turns_of(
    messages: Sequence[AnyMessage],
    scores: Sequence[Mapping[str, float]],
    evidence: Sequence[Mapping[str, Any]] = (),
) -> tuple[RolloutTurn, ...]:
    """The turns of a conversation: each human message opens one, each AI message is a step.

    `scores` and `evidence` hold one plain `TurnScore` and `TurnEvidence` for each turn that was closed.
    """
    groups: list[tuple[str, list[AnyMessage]]] = []
    for message in messages:
        if isinstance(message, HumanMessage):
            groups.append((str(message.text), []))
        elif groups:
            groups[-1][1].append(message)
    return tuple(
        RolloutTurn(
            user,
            tuple(_steps(group)),
            TurnScore(**scores[index]) if index < len(scores) else None,
            TurnEvidence(**evidence[index]) if index < len(evidence) else None,
        )
        for index, (user, group) in enumerate(groups)
    )


def template_hash_of(messages: Iterable[AnyMessage]) -> str:
    """The chat template that rendered a conversation's prompts; "" when no reply says."""
    traces = (message.response_metadata.get(TOKEN_TRACE_KEY) for message in messages if isinstance(message, AIMessage))
    return next((str(fields.get("template_hash") or "") for fields in traces if fields), "")


def usage_of(messages: Iterable[AnyMessage]) -> Usage:
    """The token counts that the replies report, summed."""
    reports = [
        message.usage_metadata for message in messages if isinstance(message, AIMessage) and message.usage_metadata
    ]
    return Usage(
        input_tokens=sum(report["input_tokens"] for report in reports),
        output_tokens=sum(report["output_tokens"] for report in reports),
        cached_tokens=sum((report.get("input_token_details") or {}).get("cache_read") or 0 for report in reports),
    )


def timings_of(turns: Iterable[RolloutTurn], total_s: float) -> Timings:
    """How the episode's wall time divides; what is left over is the environment, the scorer and the graph."""
    steps = [step for turn in turns for step in turn.steps]
    return Timings(
        total_s=total_s,
        model_s=sum(step.duration_s for step in steps),
        tools_s=sum(outcome.duration_s for step in steps for outcome in step.outcomes),
    )


def said(message: AIMessage) -> str:
    """A reply as text in Qwen's form, for models that do not report the text they sampled."""
    parts = [str(message.text)] if message.text else []
    parts += [format_call(call["name"], call["args"]) for call in message.tool_calls]
    parts += [call["args"] or "" for call in message.invalid_tool_calls]
    return "\n".join(parts)


def token_trace(message: AIMessage) -> TokenTrace | None:
    """The exact tokens of a reply, or None when its model does not report them."""
    fields: dict[str, Any] | None = message.response_metadata.get(TOKEN_TRACE_KEY)
    return TokenTrace.from_plain(fields) if fields else None


def _steps(messages: Sequence[AnyMessage]) -> Iterable[RolloutStep]:
    starts = [index for index, message in enumerate(messages) if isinstance(message, AIMessage)]
    for start, end in pairwise([*starts, len(messages)]):
        answers = [message for message in messages[start:end] if isinstance(message, ToolMessage)]
        yield _step(messages[start], answers)


def _step(reply: Any, answers: Sequence[ToolMessage]) -> RolloutStep:
    trace = token_trace(reply) or TokenTrace((), (), (), said(reply))
    return RolloutStep(
        reply=trace.text,
        prompt_token_ids=trace.prompt_token_ids,
        completion_token_ids=trace.completion_token_ids,
        logprobs=trace.logprobs,
        constrained=trace.constrained,
        finish_reason=str(reply.response_metadata.get("finish_reason") or ""),
        outcomes=tuple(outcomes_in(answers)),
        duration_s=float(reply.response_metadata.get("duration_s") or 0.0),
    )
