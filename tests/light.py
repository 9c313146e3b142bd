"""The smallest environment that evaluations are tried on: one turn, one switch."""

from __future__ import annotations

from langchain_core.tools import StructuredTool

from envtune_agents.testing import ScriptedChatModel, calls_message
from envtune_agents.types import Task, TurnEvidence


class Light:
    """One turn; solved when the light is as the task wants it."""

    def __init__(self, task: Task) -> None:
        self.task, self.on, self.turn = task, False, -1

    def open_turn(self) -> str | None:
        self.turn += 1
        return self.task.turns[self.turn] if self.turn < len(self.task.turns) else None

    def tools(self) -> list[StructuredTool]:
        return [StructuredTool.from_function(self.switch)]

    def close_turn(self) -> TurnEvidence:
        return TurnEvidence(self.turn, state_checks={"on": self.on == self.task.data["on"]})

    def switch(self, on: bool) -> str:
        """Switch the light."""
        self.on = on
        return "ok"


def light_tasks(n: int = 4, name: str = "light") -> list[Task]:
    """Even ones want the light on, odd ones want it to stay off."""
    return [Task(f"{name}_{i}", "on" if i % 2 == 0 else "off", (f"task {i}",), {"on": i % 2 == 0}) for i in range(n)]


def always_on() -> ScriptedChatModel:
    """Solves the even ones."""
    return ScriptedChatModel(script=[calls_message(("switch", {"on": True})), "Done."])
