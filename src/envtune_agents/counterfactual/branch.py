"""One continuation of a failed turn, by the deployment graph, to the end of that turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.exceptions import ContextOverflowError as ProviderContextOverflowError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage, ToolMessage

from envtune_agents.counterfactual.restore import RestoredPoint
from envtune_agents.errors import ContextOverflowError
from envtune_agents.graph import World, build_agent_graph
from envtune_agents.hints import HintEngine, outcomes_in
from envtune_agents.rollout.episode import one_line

TURN_TIMEOUT_S = 600.0
_NO_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Branch:
    """One continuation of a turn."""

    score: float | None
    """The turn's score, in [0, 1]: 0 when the continuation was cut off; None when it ended with an error."""
    steps: int
    """Model calls made after the fork."""
    ended_by: str
    """"turn" when the turn was closed, else "step_limit", "context", "timeout" or "error"."""
    messages: tuple[dict[str, Any], ...] = ()
    """The continuation in OpenAI's form, tool answers without hints."""
    error: str | None = None
    """What went wrong, in one line."""


async def play_branch(
    model: BaseChatModel,
    point: RestoredPoint,
    engine: HintEngine,
    *,
    seed: int = 0,
    timeout_s: float | None = TURN_TIMEOUT_S,
    **graph_options: Any,
) -> Branch:
    """Plays the turn of `point` on to its end, through the graph of `build_agent_graph`, which takes the options.

    Nothing that the model, a tool or the environment does raises out of here.
    """
    values: dict[str, Any] = {"messages": point.messages, "scores": point.scores}
    ended_by, error = "turn", None
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            graph, config = _graph_at(point, model, engine, seed, graph_options)
            async for state in graph.astream(None, config, stream_mode="values", interrupt_after=["progress"]):
                values = state if "messages" in state else values
    except (ContextOverflowError, ProviderContextOverflowError):
        ended_by = "context"
    except Exception as raised:
        ended_by, error = ("timeout", None) if deadline.expired() else ("error", one_line(raised))
    scores = values.get("scores") or []
    score = float(scores[point.turn]["value"]) if len(scores) > point.turn else 0.0
    if ended_by == "turn" and len(scores) <= point.turn:
        ended_by = str(values.get("stop_reason") or "cut off")
    said = _continuation(values["messages"][len(point.messages) :])
    return Branch(
        score=None if error else score,
        steps=sum(message.type == "ai" for message in said),
        ended_by=ended_by,
        messages=tuple(plain_messages(said)),
        error=error,
    )


def plain_messages(messages: Sequence[AnyMessage]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form; every tool answers in its own words, without hints."""
    from envtune_agents.chat_model.messages import to_template

    return to_template([_unhinted(message) for message in messages]) if messages else []


def _graph_at(
    point: RestoredPoint, model: BaseChatModel, engine: HintEngine, seed: int, options: Mapping[str, Any]
) -> tuple[Any, Any]:
    """A graph that stands at `point`: the next node is the model's."""
    from langgraph.checkpoint.memory import InMemorySaver

    graph = build_agent_graph(
        model, point.environment, hints=engine, seed=seed, checkpointer=InMemorySaver(), **options
    )
    config: Any = {"configurable": {"thread_id": "fork"}, "recursion_limit": _NO_LIMIT}
    state: dict[str, Any] = {
        "messages": point.messages,
        "turn": point.turn,
        "step": point.step + 1,
        "scores": point.scores,
        **World(point.environment).update(),
    }
    graph.update_state(config, state, as_node="tools")
    return graph, config


def _continuation(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    """Up to the next turn's user message."""
    end = next((index for index, message in enumerate(messages) if isinstance(message, HumanMessage)), len(messages))
    return list(messages[:end])


def _unhinted(message: AnyMessage) -> AnyMessage:
    carried = outcomes_in([message]) if isinstance(message, ToolMessage) else []
    return message.model_copy(update={"content": carried[0].raw_content}) if carried else message


def without_rule(engine: HintEngine, rule: str) -> HintEngine:
    """The same engine with one rule silenced."""
    return engine.with_dial(replace(engine.dial, rules={**engine.dial.rules, rule: 0}))
