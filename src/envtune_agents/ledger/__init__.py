"""What hints did: every failed call of a run with the hint it got, what followed, and the proof that a run had none.

In: rollouts. Out: events, a report for each rule, an audit. Everything is derived from what the rollout records, so any
run can be read again by another definition; nothing here runs a model or an environment.

`events` reads failures and hints from a rollout, `leaks` what a hint gave away, `tokens` counts, `report` adds up,
`audit` looks for hint tokens.
"""

from envtune_agents.ledger.audit import Audit, Finding, audit_run, is_hint_free_stage
from envtune_agents.ledger.events import FailureEvent, failure_events
from envtune_agents.ledger.leaks import values_from_hints
from envtune_agents.ledger.report import HintReport, RuleRow, hint_report
from envtune_agents.ledger.tokens import ESTIMATE, TokenCounter, token_counter, tokenizer_of_run

__all__ = [
    "ESTIMATE",
    "Audit",
    "FailureEvent",
    "Finding",
    "HintReport",
    "RuleRow",
    "TokenCounter",
    "audit_run",
    "failure_events",
    "hint_report",
    "is_hint_free_stage",
    "token_counter",
    "tokenizer_of_run",
    "values_from_hints",
]
