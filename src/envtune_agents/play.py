"""A person in the agent's place: type calls, see exactly what an agent would be shown.

It runs the same graph as any episode, with a chat model whose replies are typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from pydantic import ConfigDict

from envtune_agents.call_text import parse_call_text
from envtune_agents.errors import TaskError
from envtune_agents.graph import build_agent_graph
from envtune_agents.hints import HintDial, HintEngine, outcomes_in, tool_schemas
from envtune_agents.testing import ScriptedChatModel
from envtune_agents.types import Environment, TurnScore

Event = tuple[str, Any]
"""("user", text), ("outcome", CallOutcome), ("score", TurnScore) or ("end", stop reason)."""


def play(
    environment: Environment,
    read_line: Callable[[], str | None],
    *,
    hints: HintEngine | HintDial | int = 3,
) -> Iterator[Event]:
    """Plays an environment's task with typed calls and yields what happens, in order.

    `read_line` gives the next typed line: a call (`cd(folder="a")` or JSON), an empty line to end the turn, None to end
    the game. A line that does not parse becomes a malformed call, as it would from a model.
    """
    typist = _Typist(script=list[AIMessage | str](), environment=environment, read_line=read_line)
    graph = build_agent_graph(typist, environment, hints=hints, max_steps=10_000)
    try:
        for update in graph.stream({}, {"recursion_limit": 100_000}, stream_mode="updates"):
            for change in update.values():
                yield from _events(change)
    except EOFError:
        yield "end", "left"


def _events(change: dict[str, Any]) -> Iterator[Event]:
    for score in change.get("scores", ()):
        yield "score", TurnScore(**score)
    for message in change.get("messages", ()):
        if isinstance(message, HumanMessage):
            yield "user", str(message.text)
        elif isinstance(message, ToolMessage):
            yield from (("outcome", outcome) for outcome in outcomes_in([message]))
    if change.get("stop_reason"):
        yield "end", change["stop_reason"]


class _Typist(ScriptedChatModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    environment: Any
    read_line: Callable[[], str | None]

    def _reply(self, messages: list[BaseMessage]) -> AIMessage:
        line = self.read_line()
        if line is None:
            raise EOFError
        if not line.strip():
            return AIMessage("")
        call_id = f"typed_{len(messages)}"
        try:
            call = parse_call_text(line, tool_schemas(self.environment.tools()))
        except TaskError as error:
            broken = {"name": None, "args": line, "id": call_id, "error": str(error), "type": "invalid_tool_call"}
            return AIMessage("", invalid_tool_calls=[broken])
        return AIMessage("", tool_calls=[{"name": call.name, "args": dict(call.args), "id": call_id}])
