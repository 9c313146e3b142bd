"""A tau2-style domain under `evaluate`: a database behind tools, a simulated user, gold actions, things to be told.

Solved when in the end the database is what the gold actions make of a fresh one and the user was told what matters.
"""

from langchain_core.tools import StructuredTool

from envtune_agents import Task, TurnEvidence, evaluate
from envtune_agents.testing import ScriptedChatModel, calls_message


class Shop:
    def __init__(self):
        self.orders = {"W1": {"status": "pending", "total": 30}, "W2": {"status": "sent", "total": 12}}

    def cancel_order(self, order_id: str) -> str:
        """Cancel an order that was not sent yet."""
        order = self.orders[order_id]
        order["status"] = "cancelled" if order["status"] == "pending" else order["status"]
        return f"{order['status']}, total {order['total']}"


class User:
    def says(self, order_id, heard):  # None when there is nothing more to say
        return f"It is {order_id}." if "which" in heard[-1].lower() else None


class Conversation:
    def __init__(self, task):
        self.task, self.shop, self.user, self.turn, self.heard = task, Shop(), User(), -1, []

    def open_turn(self):
        self.turn += 1
        return self.user.says(self.task.data["order"], self.heard) if self.heard else self.task.turns[0]

    def tools(self):
        return [StructuredTool.from_function(self.shop.cancel_order)]

    def read_reply(self, text):
        self.heard.append(text)

    def close_turn(self):
        gold = Shop()
        for name, arguments in self.task.data["actions"]:
            getattr(gold, name)(**arguments)
        told = {info: any(info in text for text in self.heard) for info in self.task.data["communicate"]}
        over = self.user.says(self.task.data["order"], self.heard) is None
        return TurnEvidence(self.turn, {"database": self.shop.orders == gold.orders}, told, judged=over)


cancelled = {"order": "W1", "actions": [("cancel_order", {"order_id": "W1"})], "communicate": ["30 euros"]}
refused = {"order": "W2", "actions": [], "communicate": ["cannot"]}
tasks = [Task(f"cancel_{data['order']}", "shop", ("Cancel my order.",) * 3, data) for data in (cancelled, refused)]
script = ["Which order?", calls_message(("cancel_order", {"order_id": "W1"})), "Done, you get 30 euros back."]
print(evaluate(ScriptedChatModel(script=script), tasks, Conversation))

# Expected output:
# category  correct  total  accuracy  95% interval  turns solved
# shop            1      2    50.00%     9.5–90.5%         75.0%
# OVERALL         1      2    50.00%     9.5–90.5%         75.0%
