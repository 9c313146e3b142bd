"""Doubles and contract checks: real objects without weights or network, for our tests and for yours."""

from envtune_agents.testing.adapters import random_adapter
from envtune_agents.testing.contracts import check_environment, check_rules, check_scorer
from envtune_agents.testing.gguf_file import tiny_gguf
from envtune_agents.testing.overfit import overfit
from envtune_agents.testing.scripted import ScriptedChatModel, ai_message, calls_message, solution_model
from envtune_agents.testing.taught import TaughtModel
from envtune_agents.testing.tiny import tiny_qwen

__all__ = [
    "ScriptedChatModel",
    "TaughtModel",
    "ai_message",
    "calls_message",
    "check_environment",
    "check_rules",
    "check_scorer",
    "overfit",
    "random_adapter",
    "solution_model",
    "tiny_gguf",
    "tiny_qwen",
]
