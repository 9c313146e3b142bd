"""The playground as an `Environment`: a small world behind LangChain tools, checked against the task's solution."""

from __future__ import annotations

import json
from functools import cache, lru_cache
from typing import Any, ClassVar, cast

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, create_model

from envtune_agents.errors import EnvironmentStateError
from envtune_agents.playground.domains import DOMAINS
from envtune_agents.playground.renaming import OTHER_NAMES, OtherName
from envtune_agents.types import JsonValue, Task, TurnEvidence


class Playground:
    """One episode in a small world. Needs nothing but this library; `fork` and `snapshot` work at any point."""

    bounded: ClassVar[bool] = True

    def __init__(self, task: Task) -> None:
        self.task = task
        self._kind = DOMAINS[task.data["domain"]].world
        self._world = self._kind(task.data["start"])
        self._turn = -1
        self._open = False
        self._answers: list[dict[str, Any]] = []
        self._calls_in_turn = 0
        self._tools = [self._tool(name) for name in self._kind.TOOLS]

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
        wanted = _solution(self.task)[self._turn]
        state = self._world.state()
        needed = {
            f"{index}:{name}": answer
            for index, (name, answer) in enumerate(wanted["answers"])
            if name in self._kind.READS
        }
        differences = {
            part: f"wanted {json.dumps(wanted['state'][part])}, found {json.dumps(state[part])}"
            for part in state
            if self._checked(part) and state[part] != wanted["state"][part]
        }
        return TurnEvidence(
            turn=self._turn,
            state_checks={part: part not in differences for part in state if self._checked(part)},
            response_checks={name: answer in self._answers for name, answer in needed.items()},
            differences=differences
            | {
                name: f"never obtained: {json.dumps(answer)}"
                for name, answer in needed.items()
                if answer not in self._answers
            },
            answered=bool(self._calls_in_turn or not wanted["answers"]),
            judged=bool(wanted["answers"]),
        )

    def snapshot(self) -> JsonValue:
        return {
            "turn": self._turn,
            "open": self._open,
            "state": self._world.state(),
            "answers": list(self._answers),
            "calls_in_turn": self._calls_in_turn,
        }

    def fork(self, snapshot: JsonValue = None) -> Playground:
        here = snapshot if snapshot is not None else self.snapshot()
        twin = Playground(self.task)
        twin._turn, twin._open = here["turn"], here["open"]
        twin._world = self._kind.at(here["state"])
        twin._answers, twin._calls_in_turn = list(here["answers"]), here["calls_in_turn"]
        return twin

    def _checked(self, part: str) -> bool:
        return part not in self._kind.UNCHECKED

    def _tool(self, name: str) -> BaseTool:
        other = OTHER_NAMES[name] if self.task.data["names"] else None
        own_names = {shown: own for own, shown in other.args.items()} if other else {}

        def call(**args: Any) -> dict[str, Any]:
            self._calls_in_turn += 1
            asked = {own_names.get(key, key): value for key, value in args.items()}
            answer = cast(dict[str, Any], getattr(self._world, name)(**asked))
            if "error" not in answer:
                self._answers.append(answer)
            return {other.args.get(key, key): value for key, value in answer.items()} if other else answer

        domain = self.task.data["domain"]
        shape = _renamed_shapes(domain)[name] if other else _shapes(domain)[name]
        return StructuredTool(name=shape.name, description=shape.description, args_schema=shape.args_schema, func=call)


@cache
def _shapes(domain: str) -> dict[str, StructuredTool]:
    """Each tool's description and argument schema, read from the docstrings once."""
    kind = DOMAINS[domain].world
    world = kind({})
    return {name: StructuredTool.from_function(getattr(world, name), parse_docstring=True) for name in kind.TOOLS}


@cache
def _renamed_shapes(domain: str) -> dict[str, StructuredTool]:
    return {name: _under(OTHER_NAMES[name], shape) for name, shape in _shapes(domain).items()}


def _under(other: OtherName, shape: StructuredTool) -> StructuredTool:
    schema = cast(type[BaseModel], shape.args_schema)
    fields: dict[str, Any] = {other.args[key]: (field.annotation, ...) for key, field in schema.model_fields.items()}
    arguments = create_model(other.name, **fields)
    return StructuredTool(name=other.name, description=other.description, args_schema=arguments, func=shape.func)


@lru_cache(maxsize=1024)
def _solution(task: Task) -> list[dict[str, Any]]:
    """After each turn of the task's own solution: the state of the world and what that turn's calls answered."""
    world = DOMAINS[task.data["domain"]].world(task.data["start"])
    names = {shown: own for own, shown in task.data["names"].items()}
    turns = []
    for calls in task.data["solution"]:
        answers = []
        for name, args in calls:
            own = names.get(name, name)
            keys = {shown: key for key, shown in OTHER_NAMES[own].args.items()} if names else {}
            answers.append((own, getattr(world, own)(**{keys.get(key, key): value for key, value in args.items()})))
        turns.append({"state": world.state(), "answers": answers})
    return turns
