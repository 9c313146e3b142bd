"""A person approves what an agent does; the conversation lives in SQLite; a hinted run is played again from its middle.

`interrupt` stops the run inside a tool, hints or not. The checkpointer keeps every step with its hint, so the run can go
on in another process and back in time. Needs `pip install langgraph-checkpoint-sqlite`.
"""

import tempfile
from pathlib import Path

from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command, interrupt

from envtune_agents import build_agent_graph
from envtune_agents.hints import outcomes_in
from envtune_agents.testing import ScriptedChatModel, calls_message


@tool
def refund(order: str, amount: int) -> str:
    """Refund an order."""
    answer = interrupt(f"Refund {amount} for {order}?")
    return f"refunded {amount}" if answer == "yes" else "refused by the shop"


script = [
    calls_message(("refund", {"order": "A7", "euros": 30}), position=0),  # fails, and is hinted
    calls_message(("refund", {"order": "A7", "amount": 30}), position=1),  # waits for a person
    "That is all I can do.",
]
thread = {"configurable": {"thread_id": "customer-1"}}
shop = str(Path(tempfile.mkdtemp(), "shop.sqlite"))


def opened(saver):
    return build_agent_graph(ScriptedChatModel(script=script), tools=[refund], checkpointer=saver)


with SqliteSaver.from_conn_string(shop) as saver:
    stopped = opened(saver).invoke({"messages": [("user", "My money back!")]}, thread)
    print("waits:", stopped["__interrupt__"][0].value)

with SqliteSaver.from_conn_string(shop) as saver:  # as after a restart
    graph = opened(saver)
    done = graph.invoke(Command(resume="no"), thread)
    failed, refused = outcomes_in(done["messages"])
    print(f"before: {failed.failure.kind}; hint: {failed.hint.text}")
    print("a person says no:", refused.content)

    # Back in time: to where the model has just seen the hint. From here on, this time a person says yes.
    past = next(past for past in graph.get_state_history(thread) if '"hint"' in past.values["messages"][-1].text)
    graph.invoke(None, past.config)
    again = graph.invoke(Command(resume="yes"), thread)
    print("a person says yes:", [outcome.content for outcome in outcomes_in(again["messages"])][-1])

# Expected output:
# waits: Refund 30 for A7?
# before: unknown_argument; hint: 'refund' has no argument 'euros'. Its arguments are: order (string, required), amount (integer, required). 'euros' probably means amount.
# a person says no: refused by the shop
# a person says yes: refunded 30
