"""Tool schemas and a tool choice -> a decoding constraint, on llguidance.

Comes in: OpenAI-style tools and what the caller wants of them. Goes out: a `Constraint` for the engine, or None when
nothing is constrained. It compiles text formats only; it does not parse replies.
"""

from envtune_agents.grammar.compile import GrammarConstraint, constraint_for
from envtune_agents.grammar.tools import ToolChoice, bounded_schema, chosen_tools

__all__ = ["GrammarConstraint", "ToolChoice", "bounded_schema", "chosen_tools", "constraint_for"]
