"""What hints cost: the same calls and the same graph with LangGraph's bare `ToolNode` and with hints, in one run.

    python benchmarks/hints.py             # both tables, in about a minute
    python benchmarks/hints.py --quick     # the same rows from a twentieth of the rounds: tries the script itself

First table: CPU microseconds of one call through the node, with a conversation of 40 answered calls behind it; medians,
and in brackets the median difference from the bare node in the same round. In every round the peers come in another
order, and the call holds another value, so that no error text comes twice. Second table: CPU milliseconds of one step
(model call and tool call) of a compiled graph whose model costs nothing; every fourth call fails. It is CPU time, so
that other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import random
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

ROUNDS, EPISODES = 600, 40
QUICK_ROUNDS, QUICK_EPISODES = 30, 2
STEPS = 20
N_TOOLS = 30
BEHIND = 40

CALLS: dict[str, dict[str, Any]] = {
    "a call that succeeds": {"name": "tool_7", "args": {"user_id": "u1", "amount": 3}},
    "an unknown argument": {"name": "tool_7", "args": {"user": "u1", "amount": 3}},
    "an id that is not known": {"name": "tool_7", "args": {"user_id": "nobody", "amount": 3}},
    "a refusal nobody explains": {"name": "tool_7", "args": {"user_id": "late", "amount": 3}},
    "the same in many words": {"name": "tool_7", "args": {"user_id": "wordy", "amount": 3}},
}
WORDY = (
    "The office that handles this is closed for the day, and it will open again tomorrow at nine; see notice {} there."
)


def menu() -> list[BaseTool]:
    """Thirty tools of two arguments; a bad call of theirs is answered in words, so that the bare node survives it."""

    def answer(**args: Any) -> dict[str, str]:
        who, _, which = str(args.get("user_id")).partition("-")
        if who == "u1":
            return {"answer": f"done {which}"}
        errors = {"late": f"Office {which} is closed.", "wordy": WORDY.format(which)}
        return {"error": errors.get(who, f"user_id {args.get('user_id')} not found.")}

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
        "HintedToolNode": HintedToolNode(tools, hints=3),
        "HintedToolNode, 30 s a call": HintedToolNode(tools, hints=3, call_timeout_s=30),
    }


def call_samples(peers: dict[str, Any], call: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """CPU microseconds of one call in each round, by peer; the nodes run inside a graph, where their config is from."""
    conversation = behind(peers["ToolNode + hint_tool_calls(3)"])
    samples: dict[str, list[float]] = {name: [] for name in peers}

    def measure(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        order = list(peers)
        for n in range(rounds):
            args = {key: f"{value}-{n}" if isinstance(value, str) else value for key, value in call["args"].items()}
            payload = {
                "messages": [*state["messages"], AIMessage("", tool_calls=[{**call, "args": args, "id": "now"}])]
            }
            random.shuffle(order)
            for name in order:
                started = time.process_time()
                peers[name].invoke(payload, config)
                samples[name].append(1e6 * (time.process_time() - started))
        return {}

    run_inside(measure, conversation)
    return samples


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


def step_samples(episodes: int) -> dict[str, list[float]]:
    """CPU milliseconds of one step in each episode, by graph: a plain LangGraph agent, the same with hints, ours."""
    tools = menu()
    calls = [
        AIMessage("", tool_calls=[{**CALLS["a call that succeeds" if n % 4 else "an unknown argument"], "id": str(n)}])
        for n in range(STEPS)
    ]
    model = ScriptedChatModel(script=[*calls, "Done."])
    graphs = {
        "StateGraph + ToolNode": plain_agent(model, tools, ToolNode(tools)),
        "the same + hint_tool_calls(3)": plain_agent(model, tools, ToolNode(tools, **hint_tool_calls(3)._asdict())),
        "build_agent_graph(hints=0)": build_agent_graph(model, tools=tools, hints=0),
        "build_agent_graph(hints=3)": build_agent_graph(model, tools=tools, hints=3),
        "the same, no deadline": build_agent_graph(model, tools=tools, hints=3, call_timeout_s=None),
    }
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(episodes):
        for name in random.sample(list(graphs), len(graphs)):
            started = time.process_time()
            graphs[name].invoke({"messages": [HumanMessage("Go.")]}, {"recursion_limit": 1_000})
            samples[name].append(1e3 * (time.process_time() - started) / STEPS)
    return samples


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


def beside(values: list[float], bare: list[float]) -> str:
    """A median, and the median difference from the bare node."""
    more = statistics.median(value - other for value, other in zip(values, bare, strict=True))
    return f"{statistics.median(values):.0f} ({more:+.0f})"


def positive(text: str) -> int:
    """A number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, help=f"of each call in the first table (default {ROUNDS})")
    parser.add_argument("--episodes", type=positive, help=f"of each graph in the second table (default {EPISODES})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds and {QUICK_EPISODES} episodes")
    options = parser.parse_args()
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    episodes = options.episodes or (QUICK_EPISODES if options.quick else EPISODES)
    console, peers = Console(width=110), nodes(menu())
    table = Table(*["median CPU µs of one call", *peers], title=f"{rounds} interleaved rounds")
    for name, call in CALLS.items():
        samples = call_samples(peers, call, rounds)
        table.add_row(name, *[beside(values, samples["ToolNode"]) for values in samples.values()])
    console.print(table)
    table = Table("graph", "CPU ms a step", "over plain", title=f"{episodes} interleaved episodes of {STEPS} steps")
    steps = step_samples(episodes)
    for name, values in steps.items():
        ratios = (value / plain for value, plain in zip(values, steps["StateGraph + ToolNode"], strict=True))
        table.add_row(name, f"{statistics.median(values):.2f}", f"{100 * (statistics.median(ratios) - 1):+.1f}%")
    console.print(table)


if __name__ == "__main__":
    main()
