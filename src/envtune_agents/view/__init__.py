"""Rollouts -> something to look at: one self-contained HTML page, or the essential as text for a terminal.

In: one or more runs. Out: a page that needs no network. Everything that a model or a tool said is data to it: it
travels as compressed JSON and is shown by `textContent` only, and the page's policy allows no script but its own.
"""

from envtune_agents.view.page import Viewed, write_report
from envtune_agents.view.text import run_text

__all__ = ["Viewed", "run_text", "write_report"]
