"""Your own environment in a few lines: tasks, tools, evidence; then many episodes, written to disk and read back."""

import asyncio
import tempfile

from langchain_core.tools import BaseTool, StructuredTool

from envtune_agents import Task, TurnEvidence, collect, read_rollouts
from envtune_agents.testing import ScriptedChatModel

TASKS = [
    Task("lamp_on", "base", ("Switch the lamp on.", "Now dim it to 30 percent."), data={"goal": [100, 30]}),
    Task("lamp_dim", "base", ("Dim the lamp to 50 percent.",), data={"goal": [50]}),
]


class Lamp:
    """A lamp with a dimmer. Single-use: one object is one episode."""

    def __init__(self, task: Task) -> None:
        self.task, self.turn, self.percent = task, -1, 0

    def open_turn(self) -> str | None:
        self.turn += 1
        return self.task.turns[self.turn] if self.turn < len(self.task.turns) else None

    def tools(self) -> list[BaseTool]:
        return [StructuredTool.from_function(self.dim)]

    def close_turn(self) -> TurnEvidence:
        return TurnEvidence(self.turn, state_checks={"percent": self.percent == self.task.data["goal"][self.turn]})

    def dim(self, percent: int) -> str:
        """Set the lamp's brightness, 0 (off) to 100 (on)."""
        self.percent = percent
        return f"now at {percent} percent"


call = '<tool_call>\n{{"name": "dim", "arguments": {{"percent": {0}}}}}\n</tool_call>'
model = ScriptedChatModel(script=[call.format(100), "It is on.", call.format(50), "Done."])

with tempfile.TemporaryDirectory() as folder:
    asyncio.run(collect(TASKS, model, Lamp, out=folder))
    for rollout in sorted(read_rollouts(folder), key=lambda rollout: rollout.task_id):
        print(rollout.task_id, rollout.stop_reason.value, "reward", rollout.reward)

# Expected output:
# lamp_dim done reward 0.0
# lamp_on done reward 0.5
