"""Regression tests for a LangGraph app: is it as good as it was? With statistics that make sense for few tasks.

pytest runs the test below; the fixture `evaluation` (docs/evaluation.md) also shows the table when it fails.
"""

from langchain.agents import create_agent
from langchain_core.tools import StructuredTool

from envtune_agents import Task, TurnEvidence, evaluate
from envtune_agents.testing import ScriptedChatModel, calls_message

DISHES = ("tea", "soup", "salad", "steak", "cake")
TASKS = [Task(f"{n}_{dish}", "orders", (f"{n} {dish}",), {"order": {dish: n}}) for dish in DISHES for n in range(1, 6)]
BASELINE = 0.8  # what the app solved when it was released


class Till:
    """The world of one order: the app's tools write into it; at the end of the turn it is compared."""

    def __init__(self, task):
        self.task, self.messages, self.order = task, list(task.turns), {}

    def open_turn(self):
        return self.messages.pop(0) if self.messages else None

    def tools(self):
        return [StructuredTool.from_function(self.add)]

    def close_turn(self):
        return TurnEvidence(0, state_checks={"order": self.order == self.task.data["order"]})

    def add(self, dish: str, count: int) -> str:
        """Add a dish to the order."""
        self.order[dish] = count
        return "noted"


def waiter(till):
    """The app under test, any compiled graph; its model mishears cake."""

    def reply(messages):
        count, dish = messages[0].text.replace("cake", "tea").split()
        return calls_message(("add", {"dish": dish, "count": int(count)})) if len(messages) == 1 else "Coming!"

    return create_agent(ScriptedChatModel(script=reply), till.tools())


def test_the_waiter_is_as_good_as_ever():
    report = evaluate(waiter, TASKS, Till)
    assert report.score >= BASELINE - 0.05  # the plain number
    assert not report.worse_than(BASELINE)  # an alarm, raised only if bad luck does not explain it
    assert report.not_worse_than(BASELINE, margin=0.2)  # a proof, as before a release


report = evaluate(waiter, TASKS, Till)
print(f"worse than 0.8? {report.worse_than(BASELINE)}\nat least 0.7? {report.not_worse_than(0.7)}")

# Expected output:
# worse than 0.8? no: score 0.800 (20 of 25), one-sided 95% upper bound 0.918 ≥ 0.800
# at least 0.7? no: score 0.800 (20 of 25), one-sided 95% lower bound 0.625 < 0.700
