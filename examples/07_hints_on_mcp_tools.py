"""Hints between an agent and its MCP servers, in one line: `mcp_interceptor` for langchain-mcp-adapters.

A real server runs as a process of its own (servers/bakery.py) and is not changed. A scripted model names an argument
wrongly and then a value. Needs `pip install -e 'integrations/langchain[mcp]'`.
"""

import asyncio
import sys
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools

from envtune_agents.testing import ScriptedChatModel, calls_message
from envtune_langchain import mcp_interceptor

SERVER = Path(__file__).with_name("servers") / "bakery.py"

model = ScriptedChatModel(
    script=[
        calls_message(("bake", {"bread": "rye", "count": 2}), position=1),
        calls_message(("bake", {"bread": "spelt", "loaves": 2}), position=3),
        calls_message(("bake", {"bread": "rye", "loaves": 2}), position=5),
        "Here are two loaves of rye.",
    ]
)


async def main() -> None:
    servers = {"bakery": {"transport": "stdio", "command": sys.executable, "args": [str(SERVER)]}}
    async with MultiServerMCPClient(servers).session("bakery") as session:
        tools = await load_mcp_tools(session, tool_interceptors=[mcp_interceptor()])  # the one line
        agent = create_agent(model, tools)
        state = await agent.ainvoke({"messages": [HumanMessage("Two loaves, please.")]})
    for message in state["messages"]:
        for block in message.content_blocks:
            if block["type"] == "text":
                print(f"{message.type}: {block['text'].splitlines()[0]}")


asyncio.run(main())

# Expected output:
# human: Two loaves, please.
# tool: Error executing tool bake: 1 validation error for bakeArguments
# tool: {"hint": "'bake' has no argument 'count'. Its arguments are: bread (string, required), loaves (integer, required). 'count' probably means loaves: Number of loaves, between 1 and 12."}
# tool: Error executing tool bake: bad bread
# tool: {"hint": "bread = \"spelt\" is not an allowed value. bread must be one of: rye, wheat. Choose the value of bread from that list, spelled and capitalised as listed."}
# tool: 2 loaves of rye
# ai: Here are two loaves of rye.
