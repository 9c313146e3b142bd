"""A rule file as a person reviews it: what its rules are about, and what is still to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from envtune_agents.errors import HintRuleError
from envtune_agents.hint_rules import DeclaredRule, load_rules

if TYPE_CHECKING:
    from rich.table import Table

_TODO = re.compile(r"\bTODO\b")


def open_todos(path: str | Path) -> list[tuple[int, str]]:
    """Line number, counted from 1, and text of every line of a rule file that holds the word TODO."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise HintRuleError(f"Cannot read the rule file {path}: {error}.") from error
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if _TODO.search(line)]


def rule_summary(path: str | Path) -> Table:
    """The rules of a file as a table; raises `HintRuleError` with file and line when it is wrong."""
    from rich.markup import escape
    from rich.table import Table

    rules = load_rules(Path(path))
    table = Table(box=None, header_style="bold cyan", padding=(0, 1, 0, 0))
    for name in ("rule", "tools", "failures"):
        table.add_column(name, overflow="fold")
    table.add_column("levels", justify="right", no_wrap=True)
    for rule in rules:
        kinds = ", ".join(sorted(rule.when.kind))
        table.add_row(escape(rule.name), escape(", ".join(rule.when.tool) or "any"), kinds, _levels(rule))
    hidden = sum(rule.training_only for rule in rules)
    count = f"{len(rules)} rule{'' if len(rules) == 1 else 's'}"
    table.caption = count + (f", {hidden} of them for training only" if hidden else "")
    table.caption_justify = "left"
    return table


def _levels(rule: DeclaredRule) -> str:
    return ", ".join(["1", *(["2"] if rule.constraint else []), *(["3"] if rule.pointer else [])])
