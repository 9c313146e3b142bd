"""Hint rules for the playground: what its curt errors mean, and which visible tool helps."""

from __future__ import annotations

from pathlib import Path

from envtune_agents.hint_rules import DEFAULT_RULES, load_rules
from envtune_agents.types import HintRule

PLAYGROUND_RULES: tuple[HintRule, ...] = (*load_rules(Path(__file__).with_name("rules.yaml")), *DEFAULT_RULES)
"""The playground's own rules, then the library's."""
