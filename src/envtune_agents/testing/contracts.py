"""Contract checks: does your environment, rule or scorer keep the promises that training and evaluation rely on?

Each check raises `ContractError` with every broken promise, one a line; silence means that all hold.

    check_environment(lambda: Playground(task), solution=task.data["solution"])
    check_rules(PLAYGROUND_RULES, scenes, secrets=["c638"])
    check_scorer(strict_score)
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from envtune_agents.deadline import call_with_deadline
from envtune_agents.errors import ContractError
from envtune_agents.hints.wrapped_tools import is_async
from envtune_agents.progress import checked_score, strict_score
from envtune_agents.types import (
    Advice,
    Environment,
    Forkable,
    HintRule,
    ProgressScorer,
    ReadsReplies,
    RunsCalls,
    Scene,
    Task,
    ToolCall,
    TurnEvidence,
)

Calls = Sequence[Sequence[tuple[str, Mapping[str, Any]]]]
"""For each turn, the calls that do what it asks: (tool name, arguments)."""
_CALL_TIMEOUT_S = 30.0


def check_environment(make: Callable[[], Environment], *, solution: Calls | None = None) -> None:
    """Checks the environment that `make` gives: a fresh one for the same task at every call.

    With `solution` it is also played: the solution scores 1 in every turn, and leaving out a turn's calls scores less
    where the turn is judged. A tool that raises is a failed call here, as in an episode. An environment with `snapshot`
    and `fork` is checked for independent copies. What the environment itself raises is raised as it is.
    """
    _raise("environment", _environment_problems(make, solution))


def check_rules(rules: Iterable[HintRule], scenes: Iterable[Scene], *, secrets: Sequence[str] = ()) -> None:
    """Checks hint rules on failed calls: each answers with advice or None, twice the same, and leaks nothing.

    `secrets` are texts that the episode has not shown (ids, names of held-back tools); no advice may hold one.
    """
    _raise("hint rules", _rule_problems(list(rules), list(scenes), secrets))


def check_scorer(scorer: ProgressScorer) -> None:
    """Checks a scorer on every combination of up to three state and two response checks: in [0, 1], the same each time,
    1 when all hold, and never less for more."""
    _raise("scorer", _scorer_problems(scorer))


def _raise(what: str, problems: Iterator[str]) -> None:
    found = list(dict.fromkeys(problems))
    if found:
        raise ContractError(f"This {what} breaks {len(found)} promise(s):\n" + "\n".join(f"- {text}" for text in found))


# --- environments ---


def _environment_problems(make: Callable[[], Environment], solution: Calls | None) -> Iterator[str]:
    first, second = make(), make()
    if not isinstance(first, Environment):
        yield "it lacks one of task, open_turn, tools, close_turn"
        return
    if first is second:
        yield "make() gives the same object twice; environments are single-use"
    if not isinstance(first.task, Task) or not first.task.turns or not first.task.task_id:
        yield "task is a Task with an id and at least one turn"
        return
    if first.task != second.task:
        yield "two fresh environments have different tasks"
    idle = list(_played(make(), first.task, None))
    yield from _turn_problems(idle, first.task)
    if [e for _, e in idle] != [e for _, e in _played(make(), first.task, None)]:
        yield "two episodes without a call leave different evidence: the world is not deterministic"
    if isinstance(first, Forkable):
        yield from _fork_problems(make)
    if solution is not None and (unplayable := _unplayable(solution)):
        yield unplayable
    elif solution is not None:
        yield from _solution_problems(make, solution)


def _played(
    environment: Environment, task: Task, solution: Calls | None, skip: int = -1, failed: list[str] | None = None
) -> Iterator[tuple[list[BaseTool], TurnEvidence]]:
    """Each turn's tools and evidence, with the solution's calls made where there is one, save those of turn `skip`.

    Calls that fail are named in `failed`.
    """
    for turn in range(len(task.turns) + 1):
        if not isinstance(environment.open_turn(), str):
            return
        tools = list(environment.tools())
        calls = solution[turn] if solution is not None and turn < len(solution) and turn != skip else ()
        for name, args in calls:
            trouble = _trouble(environment, name, args)
            if trouble and failed is not None:
                failed.append(f"{name!r} {trouble}")
        if isinstance(environment, ReadsReplies):
            environment.read_reply("")
        yield tools, environment.close_turn()


def _trouble(environment: Environment, name: str, args: Mapping[str, Any]) -> str:
    """Makes one call; why it failed, or "" when it ran."""
    try:
        if isinstance(environment, RunsCalls):
            environment.run_call(ToolCall(name, dict(args)))
            return ""
        tool = next((tool for tool in environment.tools() if getattr(tool, "name", "") == name), None)
        if tool is None:
            return "is not among the visible tools"
        _call(tool, dict(args))
    except Exception as error:  # a tool may raise: in an episode that is a failed call
        return f"raises {type(error).__name__}: {error}"
    return ""


def _call(tool: BaseTool, args: dict[str, Any]) -> None:
    if is_async(tool):
        call_with_deadline(lambda: asyncio.run(tool.ainvoke(args)), _CALL_TIMEOUT_S)  # on a thread: a loop may run here
    else:
        tool.invoke(args)


def _unplayable(solution: Calls) -> str:
    """What keeps a solution from being played, or ""."""
    for turn, calls in enumerate(solution):
        for call in calls:
            if not isinstance(call, tuple | list) or len(call) != 2 or not isinstance(call[1], Mapping):
                return (
                    f"solution holds for each turn a list of (tool name, arguments), such as [[('dim', {{'percent': "
                    f"50}})]]; turn {turn} has {call!r}"
                )
    return ""


def _turn_problems(turns: Sequence[tuple[list[BaseTool], TurnEvidence]], task: Task) -> Iterator[str]:
    if len(turns) != len(task.turns):
        yield f"it plays {len(turns)} turns and its task has {len(task.turns)}: the reward's denominator would be wrong"
    for index, (tools, evidence) in enumerate(turns):
        yield from _tool_problems(tools, index)
        if not isinstance(evidence, TurnEvidence):
            yield f"close_turn gives a TurnEvidence; turn {index} got {type(evidence).__name__}"
            continue
        if evidence.turn != index:
            yield f"the evidence of turn {index} says it is turn {evidence.turn}"
        checks = [*evidence.state_checks.items(), *evidence.response_checks.items()]
        for name, held in checks:
            if not isinstance(held, bool):
                yield f"turn {index}: check {name!r} is {held!r}, expected True or False"
        if evidence.judged and evidence.answered and all(held is True for _, held in checks):
            yield f"turn {index} scores 1 without a single call; if it asks for nothing, say judged=False"


def _tool_problems(tools: Sequence[BaseTool], turn: int) -> Iterator[str]:
    foreign = [tool for tool in tools if not isinstance(tool, BaseTool)]
    for tool in foreign:
        yield (
            f"turn {turn}: tools() gives LangChain tools, got {tool!r}; wrap a function by StructuredTool.from_function"
        )
    if foreign:
        return
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        yield f"turn {turn}: two tools have one name"
    for tool in tools:
        if not tool.description:
            yield f"tool {tool.name!r} has no description, which is all a model sees of it"
        try:
            json.dumps(convert_to_openai_tool(tool))
        except Exception as error:  # whatever a user's argument schema may raise
            yield f"tool {tool.name!r} has no JSON Schema: {error}"


def _fork_problems(make: Callable[[], Environment]) -> Iterator[str]:
    environment = make()
    assert isinstance(environment, Forkable)
    environment.open_turn()
    start = environment.snapshot()
    try:
        restored = json.loads(json.dumps(start))
    except (TypeError, ValueError) as error:
        yield f"snapshot() is not JSON: {error}"
        return
    twin = environment.fork(restored)
    if not isinstance(twin, Forkable) or twin.snapshot() != restored:
        yield "a fork at a snapshot has another snapshot"
        return
    twin.close_turn()
    if environment.snapshot() != start:
        yield "closing a turn in a fork changes the environment it came from"


def _solution_problems(make: Callable[[], Environment], solution: Calls) -> Iterator[str]:
    task, failed = make().task, list[str]()
    played = [evidence for _, evidence in _played(make(), task, solution, failed=failed)]
    if not all(isinstance(evidence, TurnEvidence) for evidence in played):
        return  # named already
    for index, evidence in enumerate(played):
        score = checked_score(strict_score, evidence).value
        if score != 1.0:
            why = f" ({'; '.join(failed)})" if failed else ""
            yield f"its own solution scores {score} in turn {index}, expected 1{why}"
    for skip in (turn for turn, calls in enumerate(solution) if calls):
        without = [evidence for _, evidence in _played(make(), task, solution, skip)]
        if skip < len(without) and without[skip].judged and strict_score(without[skip]).value == 1.0:
            yield f"turn {skip} scores 1 although its calls were left out"


# --- rules ---


def _rule_problems(rules: list[HintRule], scenes: list[Scene], secrets: Sequence[str]) -> Iterator[str]:
    names = [rule.name for rule in rules]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two rules are called {name!r}"
    for rule, scene in itertools.product(rules, scenes):
        try:
            advice, again = rule(scene), rule(scene)
        except Exception as error:  # a user's rule
            yield f"rule {rule.name!r} raises {type(error).__name__} on a failed call of {scene.call.name!r}: {error}"
            continue
        if advice != again:
            yield f"rule {rule.name!r} answers the same failure in two ways"
        if advice is None:
            continue
        if not isinstance(advice, Advice) or not advice.problem:
            yield f"rule {rule.name!r} gives Advice with a problem, or None; got {advice!r}"
            continue
        text = " ".join((advice.problem, advice.constraint, advice.pointer))
        for secret in secrets:
            if secret and secret in text:
                yield f"rule {rule.name!r} leaks {secret!r} on a failed call of {scene.call.name!r}"


# --- scorers ---


def _scorer_problems(scorer: ProgressScorer) -> Iterator[str]:
    for states, responses in itertools.product(range(4), range(3)):
        for checks in itertools.product((False, True), repeat=states + responses):
            value = _value(scorer, checks, states)
            if isinstance(value, str):
                yield value
                return
            if all(checks) and value != 1.0:
                yield f"all of {states} state and {responses} response checks hold and it scores {value}, expected 1"
            if _value(scorer, checks, states) != value:
                yield "it scores the same evidence in two ways"
            for index in (place for place, held in enumerate(checks) if not held):
                better = _value(scorer, (*checks[:index], True, *checks[index + 1 :]), states)
                if isinstance(better, float | int) and better < value:
                    yield f"one more satisfied check lowers the score from {value} to {better}"


def _value(scorer: ProgressScorer, checks: Sequence[bool], states: int) -> float | str:
    named = {f"check {index}": held for index, held in enumerate(checks)}
    items = list(named.items())
    evidence = TurnEvidence(0, dict(items[:states]), dict(items[states:]))
    try:
        return checked_score(scorer, evidence).value
    except Exception as error:  # what `checked_score` says of a user's scorer
        return str(error)
