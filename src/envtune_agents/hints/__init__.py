"""See a failed call, ask the rules, attach a hint at the dialled level.

In: one call and the tool's raw answer. Out: a `CallOutcome` that keeps the raw answer apart from what the model is
shown. The engine never runs a tool, never scores, and never sees the ground truth; a rule that raises is logged and
skipped, so an engine can only ever add text. At level 0 every byte of the answer stays as it was.

`failures` recognises a failure; `dial` says how much help is given, and `fades` how that changes; `engine` asks the
rules; `tool_calls` mounts the engine on a tool node, `wrapped_tools` on the tools themselves; `carried` is
how outcomes travel with the conversation.
"""

from envtune_agents.hints.carried import outcomes_in
from envtune_agents.hints.dial import HintDial
from envtune_agents.hints.engine import HintEngine, as_engine, attach_hint
from envtune_agents.hints.fades import LinearFade, RuleRetirement, SuccessFade, Uptake
from envtune_agents.hints.failures import FailureDetector, classify_failure, error_message, failure_kind
from envtune_agents.hints.tool_calls import OutcomeScribe, hint_tool_calls
from envtune_agents.hints.wrapped_tools import with_hints
from envtune_agents.tool_schema import tool_schemas

__all__ = [
    "FailureDetector",
    "HintDial",
    "HintEngine",
    "LinearFade",
    "OutcomeScribe",
    "RuleRetirement",
    "SuccessFade",
    "Uptake",
    "as_engine",
    "attach_hint",
    "classify_failure",
    "error_message",
    "failure_kind",
    "hint_tool_calls",
    "outcomes_in",
    "tool_schemas",
    "with_hints",
]
