"""Apps as they are written for hosted chat models, with this one swapped in: agents, graphs, streams, interrupts."""

from __future__ import annotations

import operator
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel

from envtune_agents.chat_model import ChatTransformers, release_engines
from envtune_agents.engine import GenerationRequest
from envtune_agents.qwen import format_call
from envtune_agents.testing import TaughtModel, random_adapter, tiny_qwen

pytest.importorskip("torch")
pytest.importorskip("llguidance")
agents: Any = pytest.importorskip("langchain.agents")


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Answer(BaseModel):
    """The final answer."""

    value: int


def knows_arithmetic(prompt: str) -> str:
    """Both calls at once for a fresh question, then the answer in the form that is asked for."""
    turn = prompt.rpartition("<|im_start|>user\n")[2]
    if not turn.startswith("<tool_response>"):
        return f"{format_call('multiply', {'a': 3, 'b': 4})}\n{format_call('add', {'a': 1, 'b': 2})}"
    if '"name": "Answer"' in prompt:
        return format_call("Answer", {"value": 15})
    return '{"value": 15}' if "# Answer format" in prompt else "It is 15."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_qwen(tmp_path_factory.mktemp("tiny"))
    release_engines()


@pytest.fixture
def model(folder: Path) -> TaughtModel:
    return TaughtModel(model=folder, precision="fp32", answer=knows_arithmetic)


def kinds(messages: list[AnyMessage]) -> list[str]:
    return [message.type for message in messages]


QUESTION: Any = {"messages": [HumanMessage("3 * 4 and 1 + 2?")]}


def test_an_agent_runs_parallel_calls_and_goes_on_from_its_tokens(model: TaughtModel) -> None:
    agent = agents.create_agent(model, [multiply, add], system_prompt="You calculate.")
    messages = agent.invoke(QUESTION)["messages"]
    assert kinds(messages) == ["human", "ai", "tool", "tool", "ai"]
    assert [message.content for message in messages[2:]] == ["12", "3", "It is 15."]
    assert messages[-1].response_metadata["continuous"]


@pytest.mark.parametrize("strategy", ["auto", "provider", "tool"])
async def test_an_agent_gives_a_structured_response(model: TaughtModel, strategy: str) -> None:
    chosen = {
        "auto": Answer,
        "provider": agents.structured_output.ProviderStrategy(Answer),
        "tool": agents.structured_output.ToolStrategy(Answer),
    }[strategy]
    if strategy == "tool":  # a demanded call stands alone unless parallel calls are asked for
        model.answer = lambda prompt: knows_arithmetic(prompt).split("</tool_call>")[0] + "</tool_call>"
    result = await agents.create_agent(model, [multiply, add], response_format=chosen).ainvoke(QUESTION)
    assert result["structured_response"] == Answer(value=15)


def test_a_plain_graph_streams_tokens_and_calls(model: TaughtModel) -> None:
    def ask(state: MessagesState) -> MessagesState:
        return {"messages": [model.bind_tools([multiply, add]).invoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("ask", ask).add_node("tools", ToolNode([multiply, add]))
    graph.add_edge(START, "ask").add_conditional_edges("ask", tools_condition).add_edge("tools", "ask")
    chunks = [chunk for chunk, _ in graph.compile().stream(QUESTION, stream_mode="messages")]
    streamed = [chunk for chunk in chunks if isinstance(chunk, AIMessageChunk)]
    names = [part["name"] for chunk in streamed for part in chunk.tool_call_chunks if part["name"]]
    assert names == ["multiply", "add"]
    words = [chunk.content for chunk in streamed if chunk.content]
    assert len(words) > 3
    assert "".join(map(str, words)) == "It is 15."
    assert [chunk.content for chunk in chunks if isinstance(chunk, ToolMessage)] == ["12", "3"]


def test_an_interrupted_graph_resumes_from_its_checkpoint_with_exact_tokens(model: TaughtModel) -> None:
    def ask(state: MessagesState) -> MessagesState:
        return {"messages": [model.bind_tools([multiply, add]).invoke(state["messages"])]}

    def approve(state: MessagesState) -> Command[Any]:
        return Command(goto="tools" if interrupt("Run these?") else END)

    graph = StateGraph(MessagesState).add_node("ask", ask).add_node("tools", ToolNode([multiply, add]))
    graph.add_node("approve", approve, destinations=("tools", END)).add_edge(START, "ask").add_edge("tools", "ask")
    graph.add_conditional_edges("ask", lambda state: "approve" if state["messages"][-1].tool_calls else END)
    app = graph.compile(checkpointer=InMemorySaver())
    config: RunnableConfig = {"configurable": {"thread_id": "1"}}
    assert app.invoke(QUESTION, config)["__interrupt__"][0].value == "Run these?"
    messages = app.invoke(Command(resume=True), config)["messages"]
    assert messages[-1].content == "It is 15."
    assert messages[-1].response_metadata["continuous"]
    again = app.invoke({"messages": [HumanMessage("And again?")]}, config)
    assert again["__interrupt__"]


async def test_the_engine_is_told_whose_conversation_asks(folder: Path) -> None:
    """It gives callers and their conversations equal shares: chat model objects, and threads of LangGraph."""
    asked: list[GenerationRequest] = []

    class Noted(TaughtModel):
        @property
        def engine(self) -> Any:
            engine = super().engine
            generate = engine.generate
            engine.generate = lambda request: asked.append(request) or generate(request)
            return engine

    one, other = (Noted(model=folder, answer=lambda _: "Yes.") for _ in range(2))
    graph = StateGraph(MessagesState).add_node("ask", lambda state: {"messages": [one.invoke(state["messages"])]})
    app = graph.add_edge(START, "ask").compile()
    app.invoke(QUESTION, {"configurable": {"thread_id": "t1"}})
    await app.ainvoke(QUESTION, {"configurable": {"thread_id": 2}})
    await one.bind(temperature=0).ainvoke("Hello")
    other.invoke("Hello")
    list(app.stream(QUESTION, {"configurable": {"thread_id": "t3"}}, stream_mode="messages"))
    list(one.stream("Hello", conversation="mine"))
    assert [request.conversation for request in asked] == ["t1", "2", "", "", "t3", "mine"]
    callers = [request.caller for request in asked]
    assert callers[0] == callers[1] == callers[2] == callers[4] != callers[3]


async def test_many_branches_of_a_graph_share_one_model(folder: Path) -> None:
    """Map and reduce over real weights: eight calls at once, each its own answer in JSON."""

    class State(TypedDict):
        topics: list[str]
        values: Annotated[list[int], operator.add]

    judge = ChatTransformers(model=folder, precision="fp32", seed=1, max_tokens=40).with_structured_output(Answer)

    async def score(state: dict[str, str]) -> dict[str, list[int]]:
        found = await judge.ainvoke([SystemMessage("Score it."), HumanMessage(state["topic"])])
        return {"values": [found.value]}

    graph = StateGraph(State).add_node("score", score).add_edge("score", END)
    graph.add_conditional_edges(START, lambda state: [Send("score", {"topic": topic}) for topic in state["topics"]])
    result = await graph.compile().ainvoke({"topics": [f"topic {n}" for n in range(8)], "values": []})
    assert len(result["values"]) == 8


LATE = """
import sys
from envtune_agents import ChatTransformers
ChatTransformers(model=sys.argv[1], precision="fp32", adapters={"tuned": sys.argv[2]}, max_tokens=8)
print(*sorted({"torch", "transformers", "peft"} & set(sys.modules)))
"""


def test_a_folder_and_an_adapter_load_late(folder: Path, tmp_path: Path) -> None:
    arguments = [str(folder), str(random_adapter(tmp_path, folder))]
    done = subprocess.run([sys.executable, "-c", LATE, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_folder_and_an_adapter_need_no_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("the network was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(f"socket.socket.{name}", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    model = ChatTransformers(
        model=folder, precision="fp32", adapters={"tuned": random_adapter(tmp_path, folder)}, max_tokens=8, seed=3
    )
    replies = [model.invoke("Hello", model=name) for name in (str(folder), "tuned")]
    assert all(reply.usage_metadata and reply.usage_metadata["output_tokens"] >= 1 for reply in replies)


def test_a_reply_survives_a_copy(model: TaughtModel) -> None:
    reply = model.bind_tools([multiply, add]).invoke(QUESTION["messages"])
    assert isinstance(reply, AIMessage)
    copy = AIMessage.model_validate_json(reply.model_dump_json())
    history = [*QUESTION["messages"], copy, *(ToolMessage("1", tool_call_id=call["id"]) for call in copy.tool_calls)]
    assert model.bind_tools([multiply, add]).invoke(history).response_metadata["continuous"]
