"""From one failed call to advice: the rules that come with the library.

In: a `Scene`. Out: `Advice` in three parts, or None. A rule looks only at the failure, the call, the tools visible
now and what the episode has shown; the only values it may repeat are the agent's own. `schema` needs the tools' JSON
Schemas alone, and so does `nested`, for the fields inside arguments. `docs` reads their prose and response schemas,
`access` is about what a tool cannot reach, `trouble` about calls without a proper answer, and `declarative` reads rules
from a YAML file. Every sequence of `HintRule` can be passed to the engine beside or instead of `DEFAULT_RULES`.
"""

from envtune_agents.hint_rules.access import MissingFile, NotAllowed
from envtune_agents.hint_rules.declarative import DeclaredRule, load_rules
from envtune_agents.hint_rules.docs import DOCS_RULES
from envtune_agents.hint_rules.nested import NestedField
from envtune_agents.hint_rules.schema import (
    MalformedCall,
    MissingArgument,
    RefusedArgument,
    UnknownArgument,
    UnknownTool,
    WrongArgumentType,
)
from envtune_agents.hint_rules.trouble import SameCallAgain, ServiceTrouble, TimedOut
from envtune_agents.hint_rules.words import closest, quoted
from envtune_agents.types import HintRule

SCHEMA_RULES: tuple[HintRule, ...] = (
    MalformedCall(),
    UnknownTool(),
    UnknownArgument(),
    MissingArgument(),
    WrongArgumentType(),
)
"""The first layer: what the tools' schemas tell. Each fault has one rule, so their order does not matter."""

DEFAULT_RULES: tuple[HintRule, ...] = (
    *SCHEMA_RULES,
    NestedField(),
    TimedOut(),
    ServiceTrouble(),
    *DOCS_RULES,
    MissingFile(),
    NotAllowed(),
    RefusedArgument(),
    SameCallAgain(),
)
"""The rules that need no configuration, in the order in which they are asked."""

__all__ = [
    "DEFAULT_RULES",
    "DOCS_RULES",
    "SCHEMA_RULES",
    "DeclaredRule",
    "MalformedCall",
    "MissingArgument",
    "MissingFile",
    "NestedField",
    "NotAllowed",
    "RefusedArgument",
    "SameCallAgain",
    "ServiceTrouble",
    "TimedOut",
    "UnknownArgument",
    "UnknownTool",
    "WrongArgumentType",
    "closest",
    "load_rules",
    "quoted",
]
