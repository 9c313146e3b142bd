"""Environment Tuning for LangChain and LangGraph agents.

Names are loaded on first use, so `import envtune_agents` costs next to nothing and loads no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envtune_agents.chat_model import ChatTransformers
    from envtune_agents.curriculum import FOUR_STAGES, Curriculum, Stage
    from envtune_agents.errors import EnvTuneError
    from envtune_agents.evaluate import Report, evaluate
    from envtune_agents.export import export_rollouts, to_grpo_groups, to_preference_pairs, to_sft_rows
    from envtune_agents.graph import HintedToolNode, ProgressNode, build_agent_graph
    from envtune_agents.hints import HintDial, HintEngine, hint_tool_calls, with_hints
    from envtune_agents.playground import Playground, playground_tasks
    from envtune_agents.progress import episode_reward, format_reward, partial_score, strict_score
    from envtune_agents.qwen import ParsedReply, ReplyParser, parse_reply
    from envtune_agents.rollout import collect, read_rollouts, run_episode
    from envtune_agents.tape import branches_of, check_tape, tape_of_messages
    from envtune_agents.types import (
        CallOutcome,
        Environment,
        Hint,
        HintRule,
        ProgressScorer,
        Rollout,
        Task,
        ToolCall,
        ToolFailure,
        TurnEvidence,
        TurnScore,
    )
    from envtune_agents.weights import load_weights

__version__ = "0.1.0"

__all__ = [
    "FOUR_STAGES",
    "CallOutcome",
    "ChatTransformers",
    "Curriculum",
    "EnvTuneError",
    "Environment",
    "Hint",
    "HintDial",
    "HintEngine",
    "HintRule",
    "HintedToolNode",
    "ParsedReply",
    "Playground",
    "ProgressNode",
    "ProgressScorer",
    "ReplyParser",
    "Report",
    "Rollout",
    "Stage",
    "Task",
    "ToolCall",
    "ToolFailure",
    "TurnEvidence",
    "TurnScore",
    "branches_of",
    "build_agent_graph",
    "check_tape",
    "collect",
    "episode_reward",
    "evaluate",
    "export_rollouts",
    "format_reward",
    "hint_tool_calls",
    "load_weights",
    "parse_reply",
    "partial_score",
    "playground_tasks",
    "read_rollouts",
    "run_episode",
    "strict_score",
    "tape_of_messages",
    "to_grpo_groups",
    "to_preference_pairs",
    "to_sft_rows",
    "with_hints",
]

_MODULE_OF = {
    "chat_model": "ChatTransformers",
    "curriculum": "Curriculum FOUR_STAGES Stage",
    "errors": "EnvTuneError",
    "evaluate": "Report evaluate",
    "graph": "HintedToolNode ProgressNode build_agent_graph",
    "hints": "HintDial HintEngine hint_tool_calls with_hints",
    "playground": "Playground playground_tasks",
    "progress": "episode_reward format_reward partial_score strict_score",
    "qwen": "ParsedReply ReplyParser parse_reply",
    "export": "export_rollouts to_grpo_groups to_preference_pairs to_sft_rows",
    "rollout": "collect read_rollouts run_episode",
    "tape": "branches_of check_tape tape_of_messages",
    "types": """
        CallOutcome Environment Hint HintRule ProgressScorer Rollout Task ToolCall ToolFailure TurnEvidence TurnScore
    """,
    "weights": "load_weights",
}
_HOME = {name: module for module, names in _MODULE_OF.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
