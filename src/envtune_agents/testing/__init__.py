"""Doubles and contract checks: real objects without weights or network, for our tests and for yours."""

from envtune_agents.testing.scripted import ScriptedChatModel, ai_message, calls_message, solution_model
from envtune_agents.testing.tiny import tiny_qwen

__all__ = ["ScriptedChatModel", "ai_message", "calls_message", "solution_model", "tiny_qwen"]
