"""What one episode carries from node to node: plain values only, so that any checkpointer can store it."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AnyMessage
from langgraph.graph.message import add_messages


class ConversationState(TypedDict, total=False):
    """The state of an agent graph without an environment: LangGraph reads every key in every step."""

    messages: Annotated[list[AnyMessage], add_messages]
    step: int
    """Model calls made in the open turn."""


class EpisodeState(ConversationState, total=False):
    """The state of an agent graph that plays an environment's task."""

    turn: int
    """0-based index of the open turn."""
    scores: Annotated[list[dict[str, float]], operator.add]
    """One `TurnScore` for each closed turn, as a plain dictionary."""
    evidence: Annotated[list[dict[str, Any]], operator.add]
    """The `TurnEvidence` behind each of the scores, as a plain dictionary."""
    world: Any
    """The environment's snapshot."""
    stop_reason: str
    """A `StopReason` once the episode has ended."""
