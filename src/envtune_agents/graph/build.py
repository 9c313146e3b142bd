"""The nodes put together: one compiled graph for training, evaluation and deployment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer, RetryPolicy

from envtune_agents.errors import TaskError
from envtune_agents.graph.model_node import ModelNode
from envtune_agents.graph.progress_node import SCORER_TIMEOUT_S, ProgressNode
from envtune_agents.graph.state import ConversationState, EpisodeState
from envtune_agents.graph.tool_node import CALL_TIMEOUT_S, HintedToolNode
from envtune_agents.graph.world import World
from envtune_agents.hints import HintDial, HintEngine
from envtune_agents.progress import strict_score
from envtune_agents.types import Environment, ProgressScorer, StopReason

MAX_STEPS = 20
"""Steps allowed in one turn (BFCL's MAXIMUM_STEP_LIMIT)."""

AgentGraph = CompiledStateGraph[Any, Any, Any, Any]


def build_agent_graph(
    model: BaseChatModel,
    environment: Environment | None = None,
    *,
    tools: Sequence[BaseTool | Callable[..., Any]] = (),
    hints: HintEngine | HintDial | int = 3,
    scorer: ProgressScorer = strict_score,
    system_prompt: str | None = None,
    max_steps: int = MAX_STEPS,
    call_timeout_s: float | None = CALL_TIMEOUT_S,
    scorer_timeout_s: float | None = SCORER_TIMEOUT_S,
    first_step_calls: bool = False,
    malformed_ends_turn: bool = False,
    model_retry: RetryPolicy | None = None,
    seed: int | None = None,
    checkpointer: Checkpointer = None,
) -> AgentGraph:
    """A compiled LangGraph agent: a model node, a sequential hinted tool node and, with an environment, a progress
    node.

    With an `environment` the graph plays its task: invoke it with `{}`, and it opens every turn, scores it and ends
    with a `stop_reason`. Since an environment is single-use, so is its graph. With `tools` instead it is the graph you
    deploy: invoke it with `{"messages": [...]}` as often as you like.

    `hints` is an engine, a dial or a level from 0 to 3. A turn that takes more than `max_steps` steps ends the episode.
    `first_step_calls` and `seed` are those of `ModelNode`; the timeouts are seconds for one tool call and one scoring.
    A reply whose calls cannot be read is answered with what is wrong; with `malformed_ends_turn` it ends the turn, as
    in BFCL's loop. `model_retry` says when and how often a model call that raised is made again.
    """
    if (environment is None) == (not tools):
        raise TaskError("build_agent_graph needs either an environment or tools, and not both.")
    world = World(environment) if environment is not None else None
    tool_node = HintedToolNode(tools, hints=hints, environment=world, call_timeout_s=call_timeout_s)
    model_node = ModelNode(
        model,
        tool_node.static_tools,
        world=world,
        system_prompt=system_prompt,
        first_step_calls=first_step_calls,
        seed=seed,
    )
    builder: StateGraph[Any] = StateGraph(EpisodeState if world else ConversationState)
    builder.add_node("model", model_node, retry_policy=model_retry)
    builder.add_node("tools", tool_node)
    if world is None:
        builder.add_edge(START, "model")
        builder.add_conditional_edges("model", _wants_tools, {True: "tools", False: END})
        builder.add_edge("tools", "model")
    else:
        progress = ProgressNode(world, scorer=scorer, scorer_timeout_s=scorer_timeout_s)
        _add_turns(builder, progress, max_steps, _has_calls if malformed_ends_turn else _wants_tools)
    return builder.compile(checkpointer=checkpointer, name="envtune_agent")


def _add_turns(
    builder: StateGraph[Any], progress: ProgressNode, max_steps: int, goes_on: Callable[[ConversationState], bool]
) -> None:
    def too_far(state: ConversationState) -> bool:
        return state["step"] > max_steps

    builder.add_node("progress", progress)
    builder.add_node("step_limit", _stop_at_step_limit)
    builder.add_edge(START, "progress")
    builder.add_conditional_edges("progress", _has_ended, {True: END, False: "model"})
    builder.add_conditional_edges("model", goes_on, {True: "tools", False: "progress"})
    builder.add_conditional_edges("tools", too_far, {True: "step_limit", False: "model"})
    builder.add_edge("step_limit", END)


# LangGraph gives a condition the keys of the state that its annotation names, and adds those that the graph lacks: read
# in every step, the five more of `EpisodeState` cost a graph without an environment 4%.


def _wants_tools(state: ConversationState) -> bool:
    reply = state["messages"][-1]
    return isinstance(reply, AIMessage) and bool(reply.tool_calls or reply.invalid_tool_calls)


def _has_calls(state: ConversationState) -> bool:
    reply = state["messages"][-1]
    return isinstance(reply, AIMessage) and bool(reply.tool_calls)


def _has_ended(state: EpisodeState) -> bool:
    return bool(state.get("stop_reason"))


def _stop_at_step_limit(state: EpisodeState) -> dict[str, Any]:
    return {"stop_reason": StopReason.STEP_LIMIT.value}
