"""The playground as an `Environment`: the stock room behind LangChain tools, checked against the task's solution."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, cast

from langchain_core.tools import BaseTool, StructuredTool

from envtune_agents.errors import EnvironmentStateError
from envtune_agents.playground.world import TOOL_NAMES, StockRoom
from envtune_agents.types import JsonValue, Task, TurnEvidence


class Playground:
    """One episode in the stock room. Needs nothing but this library; `fork` and `snapshot` work at any point."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._room = StockRoom(task.data["rooms"])
        self._turn = -1
        self._open = False
        self._answers: list[dict[str, Any]] = []
        self._calls_in_turn = 0
        self._tools = [self._tool(name) for name in TOOL_NAMES]

    def open_turn(self) -> str | None:
        if self._open:
            raise EnvironmentStateError(f"Turn {self._turn} is open; close it before opening another.")
        if self._turn + 1 >= len(self.task.turns):
            return None
        self._turn, self._open, self._calls_in_turn = self._turn + 1, True, 0
        return self.task.turns[self._turn]

    def tools(self) -> list[BaseTool]:
        held_back = self.task.data["held_back"]
        return [tool for tool in self._tools if self._turn >= held_back.get(tool.name, 0)]

    def close_turn(self) -> TurnEvidence:
        if not self._open:
            raise EnvironmentStateError("No turn is open; call open_turn first.")
        self._open = False
        needed = self.task.data["solution"][self._turn]
        wanted = _solution(self.task)[self._turn]
        state = self._room.state()
        return TurnEvidence(
            turn=self._turn,
            state_checks={part: state[part] == wanted["state"][part] for part in state},
            response_checks={
                f"{index}:{name}": answer in self._answers
                for index, ((name, _), answer) in enumerate(zip(needed, wanted["answers"], strict=True))
                if name == "count_stock"
            },
            answered=bool(self._calls_in_turn or not needed),
            judged=bool(needed),
        )

    def snapshot(self) -> JsonValue:
        return {
            "turn": self._turn,
            "open": self._open,
            "state": self._room.state(),
            "answers": list(self._answers),
            "calls_in_turn": self._calls_in_turn,
        }

    def fork(self, snapshot: JsonValue = None) -> Playground:
        here = snapshot if snapshot is not None else self.snapshot()
        twin = Playground(self.task)
        twin._turn, twin._open = here["turn"], here["open"]
        twin._room = StockRoom.at(here["state"])
        twin._answers, twin._calls_in_turn = list(here["answers"]), here["calls_in_turn"]
        return twin

    def _tool(self, name: str) -> BaseTool:
        def call(**args: Any) -> dict[str, Any]:
            self._calls_in_turn += 1
            answer = cast(dict[str, Any], getattr(self._room, name)(**args))
            if "error" not in answer:
                self._answers.append(answer)
            return answer

        shape = _shapes()[name]
        return StructuredTool(name=name, description=shape.description, args_schema=shape.args_schema, func=call)


@cache
def _shapes() -> dict[str, StructuredTool]:
    """Each tool's description and argument schema, read from the docstrings once."""
    room = StockRoom({})
    return {name: StructuredTool.from_function(getattr(room, name), parse_docstring=True) for name in TOOL_NAMES}


@lru_cache(maxsize=256)
def _solution(task: Task) -> list[dict[str, Any]]:
    """After each turn of the task's own solution: the state of the world and what that turn's calls answered."""
    room = StockRoom(task.data["rooms"])
    turns = []
    for calls in task.data["solution"]:
        answers = [getattr(room, name)(**args) for name, args in calls]
        turns.append({"state": room.state(), "answers": answers})
    return turns
