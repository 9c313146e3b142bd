"""The progress node: closes the turn that was open, scores it, and opens the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig

from envtune_agents.deadline import acall_with_deadline, call_with_deadline
from envtune_agents.graph.world import World
from envtune_agents.progress import checked_score, partial_score, strict_score
from envtune_agents.types import Environment, ProgressScorer, ReadsReplies, StopReason

SCORER_TIMEOUT_S = 60.0


class ProgressNode(Runnable[Any, Any]):
    """A node for any StateGraph over `EpisodeState`; run it first and whenever the agent has no more calls to make.

    It updates `scores` and `evidence`, and either brings the next user message or sets `stop_reason`. A scorer that
    raises, hangs for more than `scorer_timeout_s` seconds or leaves [0, 1] ends the episode with an error; it never
    becomes a score of 0.
    """

    def __init__(
        self,
        environment: Environment | World,
        *,
        scorer: ProgressScorer = strict_score,
        scorer_timeout_s: float | None = SCORER_TIMEOUT_S,
    ) -> None:
        self._world = World.of(environment)
        self._scorer = scorer
        self._timeout_s = scorer_timeout_s

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> dict[str, Any]:
        return call_with_deadline(partial(self._advance, input), None if self._at_once() else self._timeout_s)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> dict[str, Any]:
        if self._at_once():
            return self._advance(input)
        return await acall_with_deadline(partial(self._advance, input), self._timeout_s)

    def _at_once(self) -> bool:
        """Whether neither the environment nor the scorer needs a deadline and a thread of its own."""
        return self._world.bounded and self._scorer in (strict_score, partial_score)

    def _advance(self, state: dict[str, Any]) -> dict[str, Any]:
        environment = self._world.at(state.get("world"))
        update: dict[str, Any] = {}
        if "turn" in state:
            if isinstance(environment, ReadsReplies):
                environment.read_reply(_last_words(state["messages"]))
            evidence = environment.close_turn()
            score = checked_score(self._scorer, evidence)
            update |= {"scores": [asdict(score)], "evidence": [asdict(evidence)]}
        message = environment.open_turn()
        if message is None:
            update["stop_reason"] = StopReason.DONE.value
        else:
            update |= {"messages": [HumanMessage(message)], "turn": state.get("turn", -1) + 1, "step": 0}
        return update | self._world.update()


def _last_words(messages: Sequence[AnyMessage]) -> str:
    last = messages[-1] if messages else None
    return str(last.text) if isinstance(last, AIMessage) else ""
