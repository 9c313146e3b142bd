"""Hints for a LangChain agent in one line: `create_agent` with `HintMiddleware`.

A scripted model makes two mistakes at which a plain agent stops: a call that is cut off, which ends the run without a
word, and a call at which the tool raises, which ends it with an exception. Needs `pip install -e integrations/langchain`.
"""

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from envtune_agents.testing import ScriptedChatModel, calls_message
from envtune_langchain import HintMiddleware

STOCK = {"lamp": 4, "chair": 0}


@tool
def reserve(item: str, count: int) -> str:
    """Reserve items."""
    if STOCK[item] < count:
        raise RuntimeError(f"only {STOCK[item]} left")
    return f"reserved {count} x {item}"


model = ScriptedChatModel(
    script=[
        '<tool_call>\n{"name": "reserve", "arguments": {"item": "lamp", \n</tool_call>',
        calls_message(("reserve", {"item": "lamp", "amount": 2}), position=1),
        calls_message(("reserve", {"item": "chair", "count": 2}), position=2),
        calls_message(("reserve", {"item": "lamp", "count": 2}), position=3),
        "Two lamps are reserved; the chairs are sold out.",
    ]
)

agent = create_agent(model, [reserve], middleware=[HintMiddleware()])  # the one line

for message in agent.invoke({"messages": [HumanMessage("Two lamps and two chairs, please.")]})["messages"]:
    if message.type == "tool" or message.content:
        print(f"{message.type}: {message.content}")

# Expected output:
# human: Two lamps and two chairs, please.
# tool: {"error": "Error: The tool call is invalid: not valid JSON: Expecting property name enclosed in double quotes at character 51.", "hint": "The tool call could not be read, so nothing was run: The tool call is invalid: not valid JSON: Expecting property name enclosed in double quotes at character 51. A call is one complete JSON object with the keys name (a string) and arguments (an object). Write the call again and check quotes, commas and that every bracket is closed."}
# tool: {"error": "Error invoking tool 'reserve' with kwargs {'item': 'lamp', 'amount': 2} with error:\n count: Field required\n Please fix the error and try again.", "hint": "'reserve' has no argument 'amount'. Its arguments are: item (string, required), count (integer, required). 'amount' probably means count."}
# tool: Error: only 0 left
# tool: reserved 2 x lamp
# ai: Two lamps are reserved; the chairs are sold out.
