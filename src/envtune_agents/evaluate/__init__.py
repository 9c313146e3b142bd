"""Success per category and overall, with intervals: a table that can be reproduced, verified and compared.

In: an agent (a chat model, or an application's graph) and tasks. Out: a `Report`, and in a folder the rollouts it
follows from. Hints are off, every episode asked for is in the total, and nothing an episode does raises.

`run` plays, `entry` says what an episode came to, `report` holds the numbers and `statistics` their formulas,
`manifest` what they were made with, `files` and `pages` write them, `compare` sets two runs side by side, `verify`
recomputes.
"""

import sys
from types import ModuleType
from typing import Any

from envtune_agents.evaluate.app import run_app_episode
from envtune_agents.evaluate.compare import Comparison
from envtune_agents.evaluate.endpoint import served_model
from envtune_agents.evaluate.entry import Entry
from envtune_agents.evaluate.files import read_report
from envtune_agents.evaluate.manifest import Manifest
from envtune_agents.evaluate.report import Report
from envtune_agents.evaluate.run import aevaluate, evaluate
from envtune_agents.evaluate.score import Finding, Score
from envtune_agents.evaluate.verify import Verification, averify, verify

__all__ = [
    "Comparison",
    "Entry",
    "Finding",
    "Manifest",
    "Report",
    "Score",
    "Verification",
    "aevaluate",
    "averify",
    "evaluate",
    "read_report",
    "run_app_episode",
    "served_model",
    "verify",
]


class _Station(ModuleType):
    """This module, which can also be called: importing it hides the package's function of the same name behind it."""

    def __call__(self, *arguments: Any, **options: Any) -> Report:
        return evaluate(*arguments, **options)


sys.modules[__name__].__class__ = _Station
