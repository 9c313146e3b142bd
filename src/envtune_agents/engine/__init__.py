"""Many callers, one model: requests in, exact tokens out, with a prefix cache and cancellation.

Comes in: token ids and decoding settings. Goes out: sampled ids, their log probabilities and text, at once or as they
are sampled. It knows nothing of messages, tools or LangChain; a grammar reaches it as a `Constraint`.
"""

from envtune_agents.engine.reply import Reply
from envtune_agents.engine.request import (
    Constraint,
    ConstraintState,
    GenerationRequest,
    GenerationResult,
    TokenEvent,
)
from envtune_agents.engine.worker import Engine

__all__ = ["Constraint", "ConstraintState", "Engine", "GenerationRequest", "GenerationResult", "Reply", "TokenEvent"]
