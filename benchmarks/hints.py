"""What hints cost: the same calls and the same graph with LangGraph's bare `ToolNode` and with hints, in one run.

    python benchmarks/hints.py

First table: CPU microseconds of one call through the node, medians of interleaved runs, with a conversation of 40
answered calls behind it. Second table: CPU milliseconds of one step (model call and tool call) of a compiled graph
whose model costs nothing. It is CPU time, so that other programs on the machine do not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from rich.console import Console
from rich.table import Table

from envtune_agents import HintedToolNode, build_agent_graph, hint_tool_calls
from envtune_agents.testing import ScriptedChatModel

ROUNDS = 1_500
STEPS = 20
GRAPH_ROUNDS = 40
N_TOOLS = 30
BEHIND = 40

CALLS: dict[str, dict[str, Any]] = {
    "a call that succeeds": {"name": "tool_7", "args": {"user_id": "u1", "amount": 3}},
    "an unknown argument": {"name": "tool_7", "args": {"user": "u1", "amount": 3}},
    "an id that is not known": {"name": "tool_7", "args": {"user_id": "nobody", "amount": 3}},
    "a refusal nobody explains": {"name": "tool_7", "args": {"user_id": "late", "amount": 3}},
}


def menu() -> list[BaseTool]:
    """Thirty tools of two arguments; a bad call of theirs is answered in words, so that the bare node survives it."""

    def answer(**args: Any) -> dict[str, str]:
        if args.get("user_id") == "u1":
            return {"answer": "done"}
        return {"error": "Office is closed." if args.get("user_id") == "late" else "user_id not found."}

    schema = {
        "type": "object",
        "properties": {
            "user_id": {"type": "string", "description": "Id of the user."},
            "amount": {"type": "integer", "description": "How many. [Enum]: [1, 2, 3]"},
        },
        "required": ["user_id"],
    }
    return [
        StructuredTool(name=f"tool_{n}", description=f"Do thing {n} for a user.", args_schema=schema, func=answer)
        for n in range(N_TOOLS)
    ]


def nodes(tools: list[BaseTool]) -> dict[str, Any]:
    """The peers: name -> node."""
    return {
        "ToolNode": ToolNode(tools),
        "ToolNode + hint_tool_calls(0)": ToolNode(tools, **hint_tool_calls(0)._asdict()),
        "ToolNode + hint_tool_calls(3)": ToolNode(tools, **hint_tool_calls(3)._asdict()),
        "HintedToolNode, no deadline": HintedToolNode(tools, hints=3, call_timeout_s=None),
        "HintedToolNode": HintedToolNode(tools, hints=3),
    }


def call_medians(peers: dict[str, Any], call: dict[str, Any]) -> dict[str, float]:
    """Median CPU microseconds of one call, by peer; the nodes run inside a graph, where their config is from."""
    conversation = behind(peers["ToolNode + hint_tool_calls(3)"])
    asked = AIMessage("", tool_calls=[{**call, "id": "now"}])
    samples: dict[str, list[float]] = {name: [] for name in peers}

    def measure(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        payload = {"messages": [*state["messages"], asked]}
        for _ in range(ROUNDS):
            for name, node in peers.items():
                started = time.process_time()
                node.invoke(payload, config)
                samples[name].append(time.process_time() - started)
        return {}

    run_inside(measure, conversation)
    return {name: 1e6 * statistics.median(values) for name, values in samples.items()}


def behind(node: Any) -> list[Any]:
    """A conversation of forty answered calls, every second one failed."""
    messages: list[Any] = [HumanMessage("Go.")]

    def play(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        for n in range(BEHIND):
            args = {"user_id": "u1" if n % 2 else "x"}
            messages.append(AIMessage("", tool_calls=[{"name": f"tool_{n % N_TOOLS}", "args": args, "id": str(n)}]))
            messages.extend(node.invoke({"messages": messages}, config)["messages"])
        return {}

    run_inside(play, [])
    return messages


def run_inside(function: Callable[..., Any], messages: list[Any]) -> None:
    """Runs `function` as the only node of a graph."""
    builder = StateGraph(MessagesState).add_node("only", function).add_edge(START, "only").add_edge("only", END)
    builder.compile().invoke({"messages": messages})


def step_medians() -> dict[str, float]:
    """Median CPU milliseconds of one step, by graph: a plain LangGraph agent, the same with hints, and ours."""
    tools = menu()
    calls = [
        AIMessage("", tool_calls=[{**CALLS["a call that succeeds" if n % 4 else "an unknown argument"], "id": str(n)}])
        for n in range(STEPS)
    ]
    model = ScriptedChatModel(script=[*calls, "Done."])
    graphs = {
        "StateGraph + ToolNode": plain_agent(model, tools, ToolNode(tools)),
        "the same + hint_tool_calls(3)": plain_agent(model, tools, ToolNode(tools, **hint_tool_calls(3)._asdict())),
        "build_agent_graph(hints=0)": build_agent_graph(model, tools=tools, hints=0, call_timeout_s=None),
        "build_agent_graph(hints=3)": build_agent_graph(model, tools=tools, hints=3, call_timeout_s=None),
    }
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(GRAPH_ROUNDS):
        for name, graph in graphs.items():
            started = time.process_time()
            graph.invoke({"messages": [HumanMessage("Go.")]}, {"recursion_limit": 1_000})
            samples[name].append((time.process_time() - started) / STEPS)
    return {name: 1e3 * statistics.median(values) for name, values in samples.items()}


def plain_agent(model: ScriptedChatModel, tools: list[BaseTool], node: ToolNode) -> Any:
    """The agent that LangGraph's documentation builds."""
    bound = model.bind_tools(tools)
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [bound.invoke(state["messages"])]})
    builder.add_node("tools", node)
    builder.add_edge(START, "model").add_edge("tools", "model")
    builder.add_conditional_edges(
        "model", lambda state: bool(state["messages"][-1].tool_calls), {True: "tools", False: END}
    )
    return builder.compile()


def main() -> None:
    """Prints the two tables."""
    console, peers = Console(width=110), nodes(menu())
    table = Table(*["median CPU µs of one call", *peers], title=f"{ROUNDS} interleaved rounds")
    for name, call in CALLS.items():
        medians = call_medians(peers, call)
        bare = medians["ToolNode"]
        table.add_row(name, *[f"{value:.0f} ({value - bare:+.0f})" for value in medians.values()])
    console.print(table)
    table = Table("graph", "CPU ms a step", "over plain", title=f"{GRAPH_ROUNDS} interleaved episodes of {STEPS} steps")
    steps = step_medians()
    for name, value in steps.items():
        table.add_row(name, f"{value:.2f}", f"{100 * (value / steps['StateGraph + ToolNode'] - 1):+.1f}%")
    console.print(table)


if __name__ == "__main__":
    main()
