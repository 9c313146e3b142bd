"""From the failures that no rule answered to rules that a person finishes.

In: rollouts, or a rule file. Out: clusters of like failures, a YAML draft with the examples in comments, and a check of
such files. Nothing goes live from here: a draft holds TODOs, and only `load_rules` on a file of yours makes rules.
"""

from envtune_agents.mining.clusters import FailureCluster, FailureExample, Mined, mine_failures, normalised
from envtune_agents.mining.drafts import draft_rules
from envtune_agents.mining.review import open_todos, rule_summary

__all__ = [
    "FailureCluster",
    "FailureExample",
    "Mined",
    "draft_rules",
    "mine_failures",
    "normalised",
    "open_todos",
    "rule_summary",
]
