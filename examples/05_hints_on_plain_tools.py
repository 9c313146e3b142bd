"""Hints for the tools themselves in one line: `with_hints`, for a loop of your own that runs LangChain tools.

The tools keep their names, schemas and answers; a call that fails answers instead of raising.
"""

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.tools import tool

from envtune_agents import with_hints
from envtune_agents.hints import outcomes_in
from envtune_agents.testing import ScriptedChatModel, calls_message

MENU = {"soup": 6, "salad": 8}


@tool
def price(dish: str) -> dict[str, object]:
    """The price of a dish."""
    return {"euros": MENU[dish]} if dish in MENU else {"error": f"no {dish} today"}


@tool
def split_bill(total: float, guests: int) -> float:
    """The share of each guest."""
    return total / guests


tools = with_hints([price, split_bill], hints=3)  # the one line

model = ScriptedChatModel(
    script=[
        calls_message(("price", {"name": "soup"}), position=0),
        calls_message(("price", {"dish": "soup"}), ("price", {"dish": "steak"}), position=1),
        calls_message(("split_bill", {"total": 6, "guests": 0}), position=2),
        calls_message(("split_bill", {"total": 6, "guests": "2"}), position=3),
        "Three euros each.",
    ]
)
by_name = {each.name: each for each in tools}
messages: list[AnyMessage] = [HumanMessage("A soup for two: how much is it for each of us?")]
while messages[-1].type != "ai":  # a reply without calls is the answer
    reply = model.bind_tools(tools).invoke(messages)
    messages.append(reply)
    messages.extend(by_name[call["name"]].invoke(call) for call in reply.tool_calls)

for message in messages:
    if not isinstance(message, AIMessage) or message.content:
        print(f"{message.type}: {message.content}")
failures = [outcome.failure.kind.value for outcome in outcomes_in(messages) if outcome.failure]
print(f"{len(outcomes_in(messages))} calls, failures: {', '.join(failures)}")

# Expected output:
# human: A soup for two: how much is it for each of us?
# tool: {"error": "Error invoking tool 'price' with kwargs {'name': 'soup'} with error:\n dish: Field required\n Please fix the error and try again.", "hint": "'price' has no argument 'name'. Its arguments are: dish (string, required). 'name' probably means dish."}
# tool: {"euros": 6}
# tool: {"error": "no steak today", "hint": "'price' refused dish = \"steak\". The same call will fail again: change dish, or first call a tool that shows what fits."}
# tool: Error: float division by zero
# tool: 3.0
# ai: Three euros each.
# 5 calls, failures: unknown_argument, tool_error, tool_error
