from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.tools import BaseTool, StructuredTool

from envtune_agents.errors import ContractError
from envtune_agents.hints import tool_schemas
from envtune_agents.playground import PLAYGROUND_RULES, Playground, generated_tasks, playground_tasks
from envtune_agents.progress import partial_score, strict_score
from envtune_agents.testing import check_environment, check_rules, check_scorer
from envtune_agents.types import Advice, FailureKind, Scene, Task, ToolCall, ToolFailure, TurnEvidence, TurnScore

TASKS = [*generated_tasks(0, 24), *generated_tasks(1, 12, other_names=True), *playground_tasks(0, 4)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
def test_the_playground_keeps_every_promise(task: Task) -> None:
    check_environment(lambda: Playground(task), solution=task.data["solution"])


@pytest.mark.parametrize("scorer", [strict_score, partial_score])
def test_the_librarys_scorers_keep_every_promise(scorer: Any) -> None:
    check_scorer(scorer)


class Light:
    """A light to switch on; each flaw breaks one promise."""

    def __init__(self, flaw: str = "") -> None:
        self.task, self.on, self.turn, self.flaw = Task("light", "base", ("On!", "Off!")), False, -1, flaw

    def open_turn(self) -> str | None:
        self.turn += 1
        turns = self.task.turns[:1] if self.flaw == "turns" else self.task.turns
        return turns[self.turn] if self.turn < len(turns) else None

    def tools(self) -> list[BaseTool]:
        tool = StructuredTool.from_function(self.switch)
        if self.flaw == "description":
            tool.description = ""
        if self.flaw == "function":
            return [self.switch]  # type: ignore[list-item]
        if self.flaw in ("async", "raises"):
            tool = StructuredTool.from_function(coroutine=self.switch_later)
        return [tool, tool] if self.flaw == "names" else [tool]

    def close_turn(self) -> TurnEvidence:
        right: Any = self.on == (self.turn == 0)
        turn = 0 if self.flaw == "index" else self.turn
        if self.flaw == "bool":
            right = 1
        return TurnEvidence(turn, {"on": right}, answered=self.turn == 0)

    def switch(self, on: bool) -> str:
        """Switch the light."""
        self.on = on and self.flaw != "solution"
        return "ok"

    async def switch_later(self, on: bool) -> str:
        """Switch the light."""
        if self.flaw == "raises":
            raise PermissionError("nobody is signed in")
        return self.switch(on)


TICKS = itertools.count()


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("turns", "plays 1 turns and its task has 2"),
        ("description", "no description"),
        ("names", "two tools have one name"),
        ("index", "turn 1 says it is turn 0"),
        ("bool", "expected True or False"),
        ("solution", "its own solution scores 0.0 in turn 0, expected 1\n"),
        ("raises", "expected 1 \\('switch_later' raises PermissionError: nobody is signed in\\)"),
        ("async", "expected 1 \\('switch' is not among the visible tools\\)"),
        ("function", "tools\\(\\) gives LangChain tools, got .*switch"),
    ],
)
def test_a_broken_promise_of_an_environment_is_named(flaw: str, message: str) -> None:
    name = "switch_later" if flaw == "raises" else "switch"
    with pytest.raises(ContractError, match=message):
        check_environment(lambda: Light(flaw), solution=[[(name, {"on": True})], []])


def test_an_environment_whose_tools_are_coroutines_or_raise_on_the_way_keeps_its_promises() -> None:
    class Locked(Light):
        unlocked = False

        def close_turn(self) -> TurnEvidence:
            return TurnEvidence(self.turn, {"on": self.on})

        def tools(self) -> list[BaseTool]:
            return [*super().tools(), StructuredTool.from_function(self.unlock)]

        def unlock(self) -> str:
            """Unlock the switch."""
            self.unlocked = True
            return "ok"

        async def switch_later(self, on: bool) -> str:
            """Switch the light."""
            if not self.unlocked:
                raise PermissionError("locked")
            return self.switch(on)

    check_environment(lambda: Locked("async"), solution=[[("unlock", {}), ("switch_later", {"on": True})], []])


def test_a_solution_that_is_not_a_list_of_calls_for_each_turn_is_named() -> None:
    with pytest.raises(ContractError, match=r"for each turn a list of \(tool name, arguments\).*turn 0 has 'switch'"):
        check_environment(Light, solution=[("switch", {"on": True})])  # type: ignore[list-item]


def test_a_turn_that_scores_without_a_call_is_named() -> None:
    task = replace(TASKS[0], task_id="x")

    class Easy(Playground):
        def close_turn(self) -> TurnEvidence:
            return TurnEvidence(super().close_turn().turn, {"all": True})

    with pytest.raises(ContractError, match="without a single call"):
        check_environment(lambda: Easy(task))


def test_a_fork_that_shares_its_world_is_named() -> None:
    class Shared(Playground):
        def fork(self, snapshot: Any = None) -> Playground:
            return self

    with pytest.raises(ContractError, match="changes the environment it came from"):
        check_environment(lambda: Shared(TASKS[0]))


def scene(content: str = "access denied", tool: str = "send_message") -> Scene:
    task = next(task for task in TASKS if task.data["domain"] == "mail" and not task.data["names"])
    environment = Playground(task)
    environment.open_turn()
    call = ToolCall(tool, {"contact_id": "c1", "text": "x"})
    failure = ToolFailure(FailureKind.TOOL_ERROR, content)
    return Scene(call, failure, f'{{"error": "{content}"}}', tool_schemas(environment.tools()))


def test_the_playgrounds_rules_keep_every_promise() -> None:
    check_rules(PLAYGROUND_RULES, [scene(), scene("bad id"), scene("bad id", "delete_message")], secrets=["c638"])


class Rule:
    def __init__(self, name: str, answer: Any) -> None:
        self.name, self.answer = name, answer

    def __call__(self, scene: Scene) -> Any:
        return self.answer(scene)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda scene: 1 / 0, "raises ZeroDivisionError"),
        (lambda scene: "sign in", "gives Advice"),
        (lambda scene: Advice("Use c638."), "leaks 'c638'"),
        (lambda scene: Advice(f"time {next(TICKS)}"), "in two ways"),
    ],
)
def test_a_broken_promise_of_a_rule_is_named(answer: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_rules([Rule("r", answer)], [scene()], secrets=["c638"])
    with pytest.raises(ContractError, match="two rules are called 'r'"):
        check_rules([Rule("r", lambda _: None)] * 2, [scene()])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda evidence: 2.0, r"lies in \[0, 1\]"),
        (lambda evidence: 0.5, "expected 1"),
        (lambda evidence: float(sum(evidence.state_checks.values()) != 1), "lowers the score"),
    ],
)
def test_a_broken_promise_of_a_scorer_is_named(value: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_scorer(lambda evidence: TurnScore(1.0, 1.0, value(evidence)))
