"""Does a checkpoint's chat template keep what was said, so that a conversation's tokens only grow?"""

from __future__ import annotations

from typing import Any

from envtune_agents.chat_model.template import template_for
from envtune_agents.weights import Weights

_CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
_TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}]
_ONE: list[dict[str, Any]] = [{"role": "user", "content": "one"}]
_TWO = [*_ONE, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, {"role": "tool", "content": "two"}]
_THREE = [*_TWO, {"role": "assistant", "content": "three"}, {"role": "user", "content": "four"}]


def prefix_preserving(weights: Weights) -> bool:
    """True when each prompt of a conversation begins with the prompt and the reply before it.

    A template that writes earlier replies anew (hybrid Qwen3 drops old thoughts) breaks a rollout into many
    token-continuous branches.
    """
    template = template_for(weights, "auto", _THREE, _TOOLS, None)
    texts = [template.render(messages, _TOOLS) for messages in (_ONE, _TWO, _THREE)]
    ends = [text.rstrip().removesuffix("<|im_start|>assistant").rstrip() for text in texts]
    return texts[1].startswith(ends[0]) and texts[2].startswith(ends[1])
