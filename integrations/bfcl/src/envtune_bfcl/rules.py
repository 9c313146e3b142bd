"""Hint rules for BFCL's eight API classes: what their messages mean, and which visible tool helps.

They are data (`rules.yaml`), read when this module is first imported. Faults against a tool's JSON Schema are left to
the core's schema rules, so the two sequences can be joined: `HintEngine((*BFCL_RULES, *DEFAULT_RULES))`.
"""

from __future__ import annotations

from pathlib import Path

from envtune_agents.hint_rules import DEFAULT_RULES, load_rules
from envtune_agents.types import HintRule

BFCL_RULES: tuple[HintRule, ...] = load_rules(Path(__file__).with_name("rules.yaml"))
"""The rules of `rules.yaml`, in the order in which they are asked."""


def hint_rules() -> tuple[HintRule, ...]:
    """BFCL's rules before the core's: what `try_calls` and the command line use."""
    return (*BFCL_RULES, *DEFAULT_RULES)
