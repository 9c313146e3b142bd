"""Tool schemas, a tool choice and a response format -> a decoding constraint, on llguidance.

Comes in: OpenAI-style tools and what the caller wants of the reply. Goes out: a `Constraint` for the engine, or None
when nothing is constrained. It compiles text formats only; it does not parse replies.
"""

from envtune_agents.grammar.choices import ToolChoice, answer_schema, chosen_tools
from envtune_agents.grammar.compile import constraint_for, constraint_of_text
from envtune_agents.grammar.lark import Style, Thinking
from envtune_agents.grammar.schemas import bounded_schema
from envtune_agents.grammar.state import GrammarConstraint

__all__ = [
    "GrammarConstraint",
    "Style",
    "Thinking",
    "ToolChoice",
    "answer_schema",
    "bounded_schema",
    "chosen_tools",
    "constraint_for",
    "constraint_of_text",
]
