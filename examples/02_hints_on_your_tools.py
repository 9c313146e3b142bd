"""Hints on your own tools in one line: LangGraph's `ToolNode` with the hint wrappers, and a rule of your own."""

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from envtune_agents import HintEngine, hint_tool_calls
from envtune_agents.hint_rules import DEFAULT_RULES
from envtune_agents.types import Advice, Scene


@tool
def book_table(guests: int, day: str) -> str:
    """Book a table."""
    if day == "monday":
        raise ValueError("closed")
    return f"a table for {guests} on {day}"


class ClosedOnMondays:
    """What an expert of this restaurant would add to the tool's one-word error."""

    name = "closed_on_mondays"

    def __call__(self, scene: Scene) -> Advice | None:
        if scene.failure.message != "closed":
            return None
        return Advice("The restaurant is closed then.", "It opens from Tuesday to Sunday.", "Look at day.")


engine = HintEngine(rules=(*DEFAULT_RULES, ClosedOnMondays()))
tools = ToolNode([book_table], **hint_tool_calls(engine)._asdict())
graph = StateGraph(MessagesState).add_node("tools", tools).add_edge(START, "tools").compile()

for args in ({"guests": 2}, {"guests": 2, "day": "monday"}, {"guests": 2, "day": "friday"}):
    reply = AIMessage("", tool_calls=[{"name": "book_table", "args": args, "id": "1"}])
    print(graph.invoke({"messages": [HumanMessage("A table, please."), reply]})["messages"][-1].content)

# Expected output:
# {"error": "Error invoking tool 'book_table' with kwargs {'guests': 2} with error:\n day: Field required\n Please fix the error and try again.", "hint": "'book_table' was called without its required argument 'day'. Every call must give: day (string)."}
# {"error": "Error: closed", "hint": "The restaurant is closed then. It opens from Tuesday to Sunday. Look at day."}
# a table for 2 on friday
