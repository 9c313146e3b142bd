"""A small MCP server over stdio whose tools fail in every way that MCP knows."""

import os
import time
from typing import Any

from mcp.server.fastmcp import FastMCP
from mcp.types import CallToolResult, ImageContent, TextContent

server = FastMCP("desk", log_level="ERROR")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


@server.tool()
def reserve(item: str, count: int) -> str:
    """Reserve items of the stock."""
    if count > 3:
        raise ValueError(f"only 3 x {item} left")
    return f"reserved {count} x {item}"


@server.tool()
def look_up(name: str) -> dict[str, Any]:
    """Look a name up."""
    return {"error": f"no {name}"} if name == "nobody" else {"name": name, "id": 7}


@server.tool()
def picture(good: bool) -> CallToolResult:
    """Take a picture."""
    said = "a dot" if good else "Error: too dark"
    dot = ImageContent(type="image", data=PIXEL, mimeType="image/png")
    return CallToolResult(content=[dot, TextContent(type="text", text=said)])


@server.tool()
def bare() -> CallToolResult:
    """Answer an error with structured content and no text block beside an empty one."""
    return CallToolResult(content=[], structuredContent={"error": "no paper"}, isError=False)


@server.tool()
def two_parts() -> CallToolResult:
    """Fail in two parts."""
    parts = [TextContent(type="text", text=text) for text in ("Error: first", "second")]
    return CallToolResult(content=parts, isError=True)


@server.tool()
def nap() -> str:
    """Take long."""
    time.sleep(30)
    return "awake"


@server.tool()
def crash() -> str:
    """End the server."""
    os._exit(1)


if __name__ == "__main__":
    server.run()
