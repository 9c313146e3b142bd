"""A small MCP server over stdio, for example 07. It knows nothing of hints."""

from typing import Annotated

from mcp.server.fastmcp import FastMCP
from pydantic import Field

bakery = FastMCP("bakery", log_level="ERROR")


@bakery.tool()
def bake(
    bread: Annotated[str, Field(description='What to bake. [Enum]: ["rye", "wheat"]')],
    loaves: Annotated[int, Field(description="Number of loaves, between 1 and 12.")],
) -> str:
    """Bake bread."""
    if bread not in ("rye", "wheat"):
        raise ValueError("bad bread")
    return f"{loaves} loaves of {bread}"


if __name__ == "__main__":
    bakery.run()
