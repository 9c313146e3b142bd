"""Hints as a self-repair layer in production: no environment, no scorer, any tools.

`for_serving` leaves out the rules that are for training only. Nothing that the engine does can fail a call: the rule
that raises here is noted in the outcome. The outcomes of a conversation are its ledger.
"""

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from envtune_agents import HintEngine, build_agent_graph
from envtune_agents.hint_rules import DEFAULT_RULES, load_rules
from envtune_agents.hints import outcomes_in
from envtune_agents.testing import ScriptedChatModel, calls_message


@tool
def book_visit(day: str, time: str) -> str:
    """Book a visit at the workshop."""
    if time != "11:00":
        raise RuntimeError("slot not available")
    return f"booked for {day}, {time}"


@tool
def list_slots(day: str) -> list[str]:
    """List the free slots of a day."""
    return ["11:00"]


class Broken:
    name = "broken"

    def __call__(self, scene):
        raise ZeroDivisionError("a defect in a rule")


rules = load_rules("""
rules:
  - {name: teach, when: {tool: "*"}, problem: "Training only: think again.", training_only: true}
  - {name: slots, when: {argument: time}, problem: "{value} is taken.", pointer: "See {visible:list_slots}."}
""")
engine = HintEngine.for_serving((Broken(), *rules, *DEFAULT_RULES))
calls = [{"day": "Friday", "hour": "12:00"}, {"day": "Friday", "time": "12:00"}, {"day": "Friday", "time": "11:00"}]
script = [calls_message(("book_visit", args), position=number) for number, args in enumerate(calls)]
graph = build_agent_graph(ScriptedChatModel(script=script), tools=[book_visit, list_slots], hints=engine)
for outcome in outcomes_in(graph.invoke({"messages": [HumanMessage("Friday noon?")]})["messages"]):
    print(f"failed; {outcome.hint_error}" if outcome.failure else outcome.content)
    if outcome.hint:
        print(f"  {outcome.hint.rule}: {outcome.hint.text}")

# Expected output:
# failed; rule 'broken': ZeroDivisionError: a defect in a rule
#   schema.unknown_argument: 'book_visit' has no argument 'hour'. Its arguments are: day (string, required), time (string, required). 'hour' probably means time.
# failed; rule 'broken': ZeroDivisionError: a defect in a rule
#   slots: "12:00" is taken. See list_slots.
# booked for Friday, 11:00
