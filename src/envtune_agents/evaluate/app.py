"""Evaluating an application: a compiled LangGraph graph, or a function that builds one around an environment.

The graph is invoked once a turn with the conversation so far. It finds the environment in its config, under
`config["configurable"]["environment"]`; a function gets it as its argument, so that the graph can be built with
`environment.tools()`. What the graph does inside a turn is its own affair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Unpack
from uuid import uuid4

from langchain_core.exceptions import ContextOverflowError as ProviderContextOverflowError
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.messages.utils import convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.errors import GraphRecursionError

from envtune_agents.errors import ContextOverflowError, TaskError
from envtune_agents.graph import MAX_STEPS
from envtune_agents.hints import OutcomeScribe, as_engine
from envtune_agents.progress import checked_score, episode_reward, strict_score
from envtune_agents.rollout.episode import EPISODE_TIMEOUT_S, EpisodeOptions, one_line, rollout_id
from envtune_agents.rollout.record import timings_of, turns_of, usage_of
from envtune_agents.types import Environment, ProgressScorer, ReadsReplies, Rollout, StopReason, ToolCall, TurnScore

NODES_PER_STEP = 10
"""Nodes that one step of an application may pass through before LangGraph's recursion limit ends the turn."""

Graph = Runnable[Any, Any]


class App:
    """An application under test: gives the graph for each episode."""

    def __init__(self, agent: Graph | Callable[[Environment], Graph]) -> None:
        if not callable(agent) and not isinstance(agent, Runnable):
            raise TaskError(
                f"Cannot evaluate {type(agent).__name__}. Expected a LangChain chat model, a compiled graph, or a "
                "function from an environment to a compiled graph."
            )
        self._agent = agent
        self.model_name = str(getattr(agent, "name", None) or getattr(agent, "__name__", type(agent).__name__))

    def graph(self, environment: Environment) -> Graph:
        """The graph that plays this environment."""
        if isinstance(self._agent, Runnable):
            return self._agent
        graph = self._agent(environment)
        if not isinstance(graph, Runnable):
            raise TaskError(f"{self.model_name} returned {type(graph).__name__}; expected a compiled graph.")
        return graph


async def run_app_episode(
    app: App, environment: Environment, *, seed: int = 0, sample: int = 0, **options: Unpack[EpisodeOptions]
) -> Rollout:
    """Plays the environment's task with an application and gives the record, as `run_episode` does with a model.

    Only `scorer`, `max_steps`, `episode_timeout_s` and `stage` of the options apply: the rest is the application's.
    """
    episode = _Episode(app, environment, options.get("scorer", strict_score), options.get("max_steps", MAX_STEPS))
    started = time.perf_counter()
    stop_reason, error = await episode.play(options.get("episode_timeout_s", EPISODE_TIMEOUT_S))
    messages = noted(episode.messages)
    turns = turns_of(messages, [asdict(score) for score in episode.scores])
    task = environment.task
    return Rollout(
        rollout_id=rollout_id(task.task_id, seed, sample),
        task_id=task.task_id,
        category=task.category,
        seed=seed,
        sample=sample,
        model=app.model_name,
        stage=options.get("stage", ""),
        hint_level=0,
        turns=turns,
        n_turns=len(task.turns),
        reward=None if error else episode_reward(episode.scores, len(task.turns)),
        stop_reason=stop_reason,
        error=error,
        usage=usage_of(messages),
        timings=timings_of(turns, time.perf_counter() - started),
    )


class _Episode:
    """One conversation with an application."""

    def __init__(self, app: App, environment: Environment, scorer: ProgressScorer, max_steps: int) -> None:
        self._app = app
        self._environment = environment
        self._scorer = scorer
        self._max_steps = max_steps
        self.messages: list[AnyMessage] = []
        self.scores: list[TurnScore] = []

    async def play(self, timeout_s: float | None) -> tuple[StopReason, str | None]:
        """Every turn, until the task ends or something ends it; the second value is what was raised."""
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                return await self._turns(), None
        except GraphRecursionError:
            return StopReason.STEP_LIMIT, None
        except (ContextOverflowError, ProviderContextOverflowError):
            return StopReason.CONTEXT, None
        except Exception as error:
            return (StopReason.TIMEOUT, None) if deadline.expired() else (StopReason.ERROR, one_line(error))

    async def _turns(self) -> StopReason:
        graph = self._app.graph(self._environment)
        config: RunnableConfig = {
            "configurable": {"environment": self._environment, "thread_id": str(uuid4())},
            "recursion_limit": NODES_PER_STEP * (self._max_steps + 1),
        }
        while (user := self._environment.open_turn()) is not None:
            before = [*self.messages, HumanMessage(user, id=str(uuid4()))]
            self.messages = before
            async for state in graph.astream({"messages": before}, config, stream_mode="values"):
                self.messages = conversation_in(state)
            if sum(isinstance(message, AIMessage) for message in self.messages[len(before) :]) > self._max_steps + 1:
                return StopReason.STEP_LIMIT
            self._close_turn()
        return StopReason.DONE

    def _close_turn(self) -> None:
        if isinstance(self._environment, ReadsReplies):
            last = self.messages[-1]
            self._environment.read_reply(str(last.text) if isinstance(last, AIMessage) else "")
        self.scores.append(checked_score(self._scorer, self._environment.close_turn()))


def conversation_in(state: Any) -> list[AnyMessage]:
    """The messages of a graph's state, whichever form the graph keeps them in."""
    found = state.get("messages") if isinstance(state, dict) else getattr(state, "messages", None)
    if found is None:
        raise TaskError("The graph's state has no 'messages'. Evaluation needs a graph over a list of messages.")
    return convert_to_messages(found)  # type: ignore[return-value]


def noted(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    """The conversation, with the outcome of each call written on its tool message where none is yet."""
    scribe = OutcomeScribe(as_engine(0))
    calls = {
        call["id"]: ToolCall(call["name"], call["args"], call["id"] or "")
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    }
    return [
        scribe.written(message, calls.get(message.tool_call_id, ToolCall(message.name or "")), [])
        if isinstance(message, ToolMessage)
        else message
        for message in messages
    ]
