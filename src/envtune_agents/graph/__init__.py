"""The LangGraph agent and its nodes, each usable alone in anyone's StateGraph.

    START -> progress -> model -> tools -> model -> … -> progress -> … -> END

In: a chat model, and an environment or tools. Out: a compiled graph. The nodes hold no episode state of their own: what
must survive is in `EpisodeState`, as plain values.
"""

from envtune_agents.graph.build import MAX_STEPS, AgentGraph, build_agent_graph
from envtune_agents.graph.model_node import ModelNode
from envtune_agents.graph.progress_node import ProgressNode
from envtune_agents.graph.state import EpisodeState
from envtune_agents.graph.tool_node import CALL_TIMEOUT_S, HintedToolNode
from envtune_agents.graph.world import World

__all__ = [
    "CALL_TIMEOUT_S",
    "MAX_STEPS",
    "AgentGraph",
    "EpisodeState",
    "HintedToolNode",
    "ModelNode",
    "ProgressNode",
    "World",
    "build_agent_graph",
]
