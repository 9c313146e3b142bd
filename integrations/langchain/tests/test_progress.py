from __future__ import annotations

import time
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, tool

from envtune_agents import Playground, playground_tasks
from envtune_agents.errors import EnvironmentStateError, ScorerError
from envtune_agents.hints import outcomes_in
from envtune_agents.playground import CATEGORIES
from envtune_agents.testing import ScriptedChatModel, calls_message, solution_model
from envtune_agents.types import FailureKind, Task, TurnEvidence, TurnScore
from envtune_langchain import HintMiddleware, ProgressMiddleware

START: Any = {"messages": []}
BROKEN = '<tool_call>\n{"name": "pick_item", "arguments": {\n</tool_call>'


def agent(model: Any, environment: Any, *more: AgentMiddleware[Any, Any], **options: Any) -> Any:
    tools = options.pop("tools", [])
    return create_agent(model, tools, middleware=[ProgressMiddleware(environment, **options), *more])


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("awaited", [False, True])
async def test_a_solution_scores_1_in_every_turn(category: str, awaited: bool) -> None:
    task = playground_tasks(0, 1, category)[0]
    graph = agent(solution_model([task]), Playground(task), HintMiddleware())
    state = await graph.ainvoke(START) if awaited else graph.invoke(START)
    assert [score["value"] for score in state["scores"]] == [1.0] * len(task.turns)
    assert state["stop_reason"] == "done"
    assert [message.content for message in state["messages"] if message.type == "human"] == list(task.turns)


def test_doing_nothing_scores_0_where_calls_are_needed() -> None:
    task = playground_tasks(0, 1)[0]
    state = agent(ScriptedChatModel(script=[]), Playground(task)).invoke(START)
    assert [score["value"] for score in state["scores"]] == [0.0] * len(task.turns)


class Slow:
    """An environment whose calls must come in order, the earliest being the slowest."""

    task = Task("slow", "base", ("Count.",))

    def __init__(self) -> None:
        self.order: list[int] = []
        self.running = 0
        self.opened = False

    def open_turn(self) -> str | None:
        if self.opened:
            return None
        self.opened = True
        return "Count."

    def tools(self) -> list[BaseTool]:
        return [StructuredTool.from_function(self.count)]

    def count(self, number: int) -> str:
        """Count a number."""
        assert not self.running
        self.running += 1
        time.sleep(0.05 / (number + 1))
        self.order.append(number)
        self.running -= 1
        return str(number)

    def close_turn(self) -> TurnEvidence:
        return TurnEvidence(0, {"in order": self.order == sorted(self.order)})


COUNT = calls_message(*(("count", {"number": number}) for number in range(5)))


@pytest.mark.parametrize("awaited", [False, True])
async def test_the_calls_of_one_reply_run_in_order(awaited: bool) -> None:
    environment = Slow()
    graph = agent(ScriptedChatModel(script=[COUNT, "Done."]), environment, HintMiddleware())
    state = await graph.ainvoke(START) if awaited else graph.invoke(START)
    assert environment.order == [0, 1, 2, 3, 4]
    assert state["scores"][0]["value"] == 1.0
    assert [message.content for message in state["messages"] if message.type == "tool"] == list("01234")


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_call_that_other_middleware_answers_is_not_waited_for(awaited: bool) -> None:
    class Answers(AgentMiddleware[Any, Any]):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            if request.tool_call["args"]["number"] == 0:
                return ToolMessage("mine", tool_call_id=request.tool_call["id"])
            return handler(request)

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            if request.tool_call["args"]["number"] == 0:
                return ToolMessage("mine", tool_call_id=request.tool_call["id"])
            return await handler(request)

    environment = Slow()
    model = ScriptedChatModel(script=[COUNT, "Done."])
    graph: Any = create_agent(model, [], middleware=[Answers(), ProgressMiddleware(environment)])
    _ = await graph.ainvoke(START) if awaited else graph.invoke(START)
    assert environment.order == [1, 2, 3, 4]


def test_a_malformed_call_goes_back_before_it_ends_the_turn() -> None:
    task = playground_tasks(0, 1)[0]
    state = agent(ScriptedChatModel(script=[BROKEN, "Done."]), Playground(task), HintMiddleware()).invoke(START)
    kinds = [message.type for message in state["messages"]]
    assert kinds[:5] == ["human", "ai", "tool", "ai", "human"]
    alone = agent(ScriptedChatModel(script=[BROKEN, "Done."]), Playground(task)).invoke(START)
    # LangChain itself answers the dangling call once the next turn has begun
    assert [message.type for message in alone["messages"]][:4] == ["human", "ai", "tool", "human"]
    assert len(alone["scores"]) == len(state["scores"]) == len(task.turns)


def test_held_back_tools_are_not_seen_by_model_or_hints() -> None:
    task = playground_tasks(0, 1, "miss_func")[0]
    held = next(iter(task.data["held_back"]))
    shown: list[set[str]] = []

    class Looks(AgentMiddleware[Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            shown.append({tool.name for tool in request.tools})
            return handler(request)

    def script(messages: list[BaseMessage]) -> AIMessage | str:
        first = len(messages) == 1
        return calls_message((held, {}), position=1) if first else "Done."

    state = agent(ScriptedChatModel(script=script), Playground(task), HintMiddleware(), Looks()).invoke(START)
    (outcome,) = outcomes_in(state["messages"])
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.UNKNOWN_TOOL
    assert outcome.hint is not None
    assert "Similar names: " + held not in outcome.hint.text
    assert held not in shown[0]
    assert held in shown[-1]


def test_the_agents_own_tools_stay() -> None:
    @tool
    def note(text: str) -> str:
        """Note something."""
        return f"noted {text}"

    task = playground_tasks(0, 1)[0]
    model = ScriptedChatModel(script=[calls_message(("note", {"text": "x"})), "Done."])
    state = agent(model, Playground(task), tools=[note]).invoke(START)
    assert [message.content for message in state["messages"] if message.type == "tool"] == ["noted x"]


def test_a_conversation_that_is_there_stays_in_front() -> None:
    task = playground_tasks(0, 1)[0]
    state = agent(ScriptedChatModel(script=[]), Playground(task)).invoke({"messages": [HumanMessage("Be quick.")]})
    assert [message.content for message in state["messages"] if message.type == "human"] == ["Be quick.", *task.turns]


def test_an_environment_is_played_once() -> None:
    graph = agent(ScriptedChatModel(script=[]), Slow())
    assert graph.invoke(START)["stop_reason"] == "done"
    with pytest.raises(EnvironmentStateError, match="single-use"):
        graph.invoke(START)


def test_a_task_without_turns_asks_no_model() -> None:
    environment = Slow()
    environment.opened = True
    state = agent(ScriptedChatModel(script=["never"]), environment).invoke(START)
    assert (state["messages"], state["stop_reason"]) == ([], "done")


@pytest.mark.parametrize(("score", "says"), [(None, "returns a TurnScore"), (TurnScore(2, 1, 1), "lies in")])
def test_a_scorer_that_is_wrong_is_no_score(score: Any, says: str) -> None:
    task = playground_tasks(0, 1)[0]
    graph = agent(ScriptedChatModel(script=[]), Playground(task), scorer=lambda evidence: score)
    with pytest.raises(ScorerError, match=says):
        graph.invoke(START)


def test_a_scorer_that_hangs_ends_the_run() -> None:
    def slow(evidence: TurnEvidence) -> TurnScore:
        time.sleep(5)
        return TurnScore(1, 1, 1)

    graph = agent(ScriptedChatModel(script=[]), Slow(), scorer=slow, scorer_timeout_s=0.05)
    with pytest.raises(TimeoutError):
        graph.invoke(START)


def test_environments_that_answer_every_call_do_so_and_hear_the_last_words() -> None:
    class Oracle(Slow):
        said = ""

        def run_call(self, call: Any) -> str:
            return f"{call.name} says {call.args}"

        def read_reply(self, text: str) -> None:
            self.said = text

    environment = Oracle()
    model = ScriptedChatModel(script=[calls_message(("hidden", {"a": 1, "config": 2})), "Bye."])
    state = agent(model, environment, HintMiddleware()).invoke(START)
    assert "hidden says {'a': 1, 'config': 2}" in [message.content for message in state["messages"]]
    assert environment.said == "Bye."


async def test_bfcl_scores_as_in_the_graph() -> None:
    bfcl = pytest.importorskip("envtune_bfcl")
    task = bfcl.load_task("multi_turn_base_0")
    truth = [[bfcl.parse_call(text) for text in calls] for calls in task.data["ground_truth"]]

    def script(messages: list[BaseMessage]) -> AIMessage | str:
        turn = sum(message.type == "human" for message in messages) - 1
        if messages[-1].type != "human":
            return "Done."
        return calls_message(*((call.name, dict(call.args)) for call in truth[turn]), position=len(messages))

    environment = bfcl.BfclEnvironment(task)
    middleware = HintMiddleware(detect=environment.detect_failure)
    state = await agent(ScriptedChatModel(script=script), environment, middleware).ainvoke(START)
    assert [score["value"] for score in state["scores"]] == [1.0] * len(task.turns)
