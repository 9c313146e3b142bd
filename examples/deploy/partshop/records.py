"""What a deployment keeps of its agent's steps: a log line for each model call and tool call, and metadata of the trace.

In: the state of the agent. Out: numbers and names. What was said is in neither, unless `log_text` asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.runtime import Runtime
from langsmith import get_current_run_tree

from envtune_agents.hints import outcomes_in
from envtune_agents.types import CallOutcome

log = logging.getLogger("partshop")


class CallRecords(AgentMiddleware[AgentState[Any], Any, Any]):
    """Logs every model call and every tool call, and puts the rules that gave hints on the trace.

    List it after `HintMiddleware`, which sends unreadable calls back to the model before earlier middleware sees them. The
    server adds run and thread to each line; as JSON where LOG_JSON is set.
    """

    def __init__(self, stage: str, *, log_text: bool = False) -> None:
        super().__init__()
        self._stage = stage
        self._log_text = log_text

    def before_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """The tool calls that were answered since the last reply."""
        outcomes = outcomes_in(_answers_at_the_end(state["messages"]))
        for outcome in outcomes:
            log.info("tool call", extra=self._fields(outcome))
        _trace([outcome.hint.rule for outcome in outcomes if outcome.hint])

    def after_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """The reply."""
        reply = state["messages"][-1]
        if isinstance(reply, AIMessage):
            usage: Any = reply.usage_metadata or {}
            fields = {
                "stage": self._stage,
                "model": reply.response_metadata.get("model_name"),
                "finish_reason": reply.response_metadata.get("finish_reason"),
                "calls": len(reply.tool_calls),
                "unreadable_calls": len(reply.invalid_tool_calls),
                "input_tokens": usage.get("input_tokens"),
                "output_tokens": usage.get("output_tokens"),
            }
            log.info("model call", extra=fields)

    def _fields(self, outcome: CallOutcome) -> dict[str, Any]:
        fields = {
            "stage": self._stage,
            "tool": outcome.name,
            "failure": outcome.failure.kind.value if outcome.failure else None,
            "hint_rule": outcome.hint.rule if outcome.hint else None,
            "hint_level": outcome.hint.level if outcome.hint else None,
            "hint_error": bool(outcome.hint_error),
            "duration_ms": round(outcome.duration_s * 1000, 1),
        }
        return fields | ({"arguments": outcome.args, "answer": outcome.content} if self._log_text else {})


def _answers_at_the_end(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    return [*takewhile(lambda message: message.type == "tool", reversed(messages))][::-1]


def _trace(rules: list[str]) -> None:
    """The rules as metadata and tags of this step in the trace, where one is being kept."""
    run = get_current_run_tree() if rules else None
    if run is not None:
        run.add_metadata({"envtune_hint_rules": rules})
        run.add_tags([f"rule:{rule}" for rule in sorted(set(rules))])
