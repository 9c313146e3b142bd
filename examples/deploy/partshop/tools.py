"""The tools of the agent: put yours in their place. They know nothing of hints."""

from __future__ import annotations

import re
from collections.abc import Sequence

from langchain_core.tools import BaseTool, tool

from envtune_agents.errors import TaskError

STOCK = {"B-17": ("brake pad", 4), "C-02": ("chain", 1), "L-40": ("lamp", 0)}
"""Part id -> name and pieces in stock."""
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What served models and hosted ones take as a tool's name."""


@tool
def find_part(name: str) -> str:
    """Find the id of a spare part.

    Args:
        name: What the part is called, such as "chain".
    """
    found = [f"{part_id}: {called}" for part_id, (called, _) in STOCK.items() if name.lower() in called]
    return ", ".join(found) or "no such part"


@tool
def reserve_part(part_id: str, count: int) -> str:
    """Reserve pieces of a part.

    Args:
        part_id: Id of the part, as find_part gives it.
        count: Number of pieces, at least 1.
    """
    name, pieces = STOCK[part_id]
    if count > pieces:
        raise RuntimeError(f"only {pieces} of {name} left")
    return f"reserved {count} x {name}"


def checked(tools: Sequence[BaseTool]) -> list[BaseTool]:
    """The tools, if every name is one that any model can call; raises `TaskError` otherwise."""
    for one in tools:
        if not TOOL_NAME.fullmatch(one.name):
            raise TaskError(
                f"'{one.name}' is no name for a tool. Wanted: at most 64 letters, digits, '_' and '-', no spaces. "
                f"Rename it, for example to '{re.sub(r'[^A-Za-z0-9_-]+', '_', one.name)[:64]}'."
            )
    return list(tools)


TOOLS = [find_part, reserve_part]
