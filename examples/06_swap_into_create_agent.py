"""An agent written for a hosted chat model, with a local checkpoint in its place: only one line differs.

The checkpoint is a tiny one with random weights, so that this runs anywhere in seconds. It would say anything, and yet
its calls and its answer fit their schemas: a grammar decodes them.
"""

from __future__ import annotations

import tempfile

from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel

from envtune_agents import ChatTransformers
from envtune_agents.testing import tiny_qwen


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return "sunny, 20°C"


class Report(BaseModel):
    """The weather, for a newspaper."""

    celsius: int
    sunny: bool


model = ChatTransformers(model=tiny_qwen(tempfile.mkdtemp()), precision="fp32", seed=1, max_tokens=96)  # the one line


def ask(state: MessagesState) -> MessagesState:
    return {"messages": [model.bind_tools([get_weather], tool_choice="any").invoke(state["messages"])]}


graph = StateGraph(MessagesState).add_node("ask", ask).add_node("tools", ToolNode([get_weather]))
graph = graph.add_edge(START, "ask").add_edge("ask", "tools").add_edge("tools", END).compile()

_, call, result = graph.invoke({"messages": [("user", "What is the weather like in Paris?")]})["messages"]
trace = call.response_metadata["token_trace"]
print(f"ai: calls {call.tool_calls[0]['name']} with {sorted(call.tool_calls[0]['args'])}")
print(f"tool: {result.content}")
print("every sampled token is kept:", len(trace["completion_token_ids"]) == len(trace["logprobs"]) > 0)
report = model.with_structured_output(Report, method="json_schema").invoke("Write the report.")
print("report:", type(report).__name__, sorted(report.model_dump()))

# Expected output:
# ai: calls get_weather with ['city']
# tool: sunny, 20°C
# every sampled token is kept: True
# report: Report ['celsius', 'sunny']
