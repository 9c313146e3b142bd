"""Every noun that travels through the library, and the small Protocols that users implement.

One word for one thing, everywhere: a *task* is one conversation with a goal; a *turn* is one user message and
everything up to the next; a *step* is one model call; a *call* is one tool call; an *outcome* is what a call
returned; a *failure* is a call that did not do its job; a *hint* is text added to a failure; a *rollout* is the
record of one episode.
"""

from envtune_agents.types.protocols import (
    DetectsFailures,
    Environment,
    Forkable,
    HintRule,
    JsonValue,
    ProgressScorer,
    ReadsReplies,
    RunsCalls,
)
from envtune_agents.types.records import (
    SCHEMA_VERSION,
    TOKEN_TRACE_KEY,
    Advice,
    CallOutcome,
    FailureKind,
    Hint,
    Rollout,
    RolloutStep,
    RolloutTurn,
    Scene,
    StopReason,
    TapeFacts,
    Task,
    Timings,
    TokenTrace,
    ToolCall,
    ToolFailure,
    TurnEvidence,
    TurnScore,
    Usage,
)

__all__ = [
    "SCHEMA_VERSION",
    "TOKEN_TRACE_KEY",
    "Advice",
    "CallOutcome",
    "DetectsFailures",
    "Environment",
    "FailureKind",
    "Forkable",
    "Hint",
    "HintRule",
    "JsonValue",
    "ProgressScorer",
    "ReadsReplies",
    "Rollout",
    "RolloutStep",
    "RolloutTurn",
    "RunsCalls",
    "Scene",
    "StopReason",
    "TapeFacts",
    "Task",
    "Timings",
    "TokenTrace",
    "ToolCall",
    "ToolFailure",
    "TurnEvidence",
    "TurnScore",
    "Usage",
]
