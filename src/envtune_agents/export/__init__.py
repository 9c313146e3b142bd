"""Rollouts -> rows for SFT, group RL and preference training, and the file forms that trainers open.

In: rollouts, most simply as `read_rollouts` streams them. Out: plain dictionaries, or files. Sampled tokens are never
rendered or tokenised again; a rollout whose tape is broken is left out and counted.
"""

from envtune_agents.export.formats import FORMATS, Exported, export_rollouts
from envtune_agents.export.groups import to_grpo_groups
from envtune_agents.export.pairs import to_preference_pairs
from envtune_agents.export.sft import HINTS, ToolsOf, to_sft_rows, to_token_rows
from envtune_agents.export.where import FIELDS, parse_where

__all__ = [
    "FIELDS",
    "FORMATS",
    "HINTS",
    "Exported",
    "ToolsOf",
    "export_rollouts",
    "parse_where",
    "to_grpo_groups",
    "to_preference_pairs",
    "to_sft_rows",
    "to_token_rows",
]
