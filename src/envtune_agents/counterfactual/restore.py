"""A point of a recorded rollout -> a live environment at that point, and the conversation up to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.graph import START, StateGraph

from envtune_agents.errors import EnvironmentStateError
from envtune_agents.graph import AgentGraph, EpisodeState, HintedToolNode, World
from envtune_agents.hints import outcomes_in
from envtune_agents.hints.carried import OUTCOME_KEY, plain_outcome
from envtune_agents.qwen import parse_reply
from envtune_agents.types import (
    TOKEN_TRACE_KEY,
    CallOutcome,
    Environment,
    FailureKind,
    Forkable,
    ReadsReplies,
    Rollout,
    RolloutStep,
    RolloutTurn,
    TokenTrace,
)

_SHOWN_CHARS = 120


@dataclass(frozen=True, slots=True)
class Fork:
    """One failed call of a rollout: the point at which two continuations part."""

    rollout: Rollout
    turn: int
    """0-based, as are `step` and `call`."""
    step: int
    call: int

    @property
    def outcome(self) -> CallOutcome:
        """The failed call as it was recorded."""
        return self.rollout.turns[self.turn].steps[self.step].outcomes[self.call]

    @property
    def fork_id(self) -> str:
        """Unique name in a run; the same as `FailureEvent.event_id`."""
        return f"{self.rollout.rollout_id}#{self.turn}.{self.step}.{self.call}"


@dataclass(frozen=True, slots=True)
class RestoredPoint:
    """The moment after the outcomes of one step, before the next model call."""

    environment: Environment
    messages: list[AnyMessage]
    """The conversation so far; its last messages are the answers to the step's calls, as they were shown."""
    scores: list[dict[str, float]]
    """One for each closed turn, as recorded."""
    turn: int
    step: int


def forks_in(rollout: Rollout, *, hinted: bool = True) -> Iterator[Fork]:
    """The failed calls of a rollout, oldest first: those that got a hint, or all of them."""
    for turn, played in enumerate(rollout.turns):
        for step, made in enumerate(played.steps):
            for call, outcome in enumerate(made.outcomes):
                if outcome.failure is not None and (outcome.hint is not None or not hinted):
                    yield Fork(rollout, turn, step, call)


def restore(environment: Environment, rollout: Rollout, turn: int, step: int) -> RestoredPoint:
    """Leads a fresh environment to the point after the outcomes of one step, by making the recorded calls again.

    Calls that were not run (they did not parse) or were abandoned (they timed out, and the episode went on with a fork)
    are not made. Raises EnvironmentStateError when a user message or an answer differs from the record: then the
    environment is not deterministic, or not the one that was recorded.
    """
    world = World(environment)
    caller = _caller(world)
    messages: list[AnyMessage] = []
    for index, played in enumerate(rollout.turns[: turn + 1]):
        steps = played.steps if index < turn else played.steps[: step + 1]
        _open(world, played, rollout)
        messages.append(HumanMessage(played.user))
        for made in steps:
            reply = message_of(made, len(messages), rollout.template_hash)
            _make_again(made, reply, caller, world)
            messages += [reply, *_answers(made, reply)]
        if index < turn:
            _close(world.live, played)
    scores = [_plain_score(played) for played in rollout.turns[:turn]]
    return RestoredPoint(world.live, messages, scores, turn, step)


def message_of(step: RolloutStep, position: int, template_hash: str = "") -> AIMessage:
    """The reply of a step as a message; its calls are those of the outcomes.

    `position` makes missing ids unique. With the sampled tokens and the hash of the template that rendered them, the
    model that said it goes on from exactly these tokens.
    """
    said = parse_reply(step.reply)
    broken = [call.text for call in said.invalid]
    reply = AIMessage(said.content, response_metadata=_traced(step, template_hash))
    for index, outcome in enumerate(step.outcomes):
        call_id = outcome.call_id or f"call_{position}_{index}"
        if _kind(outcome) is FailureKind.MALFORMED_CALL:
            text = broken.pop(0) if broken else step.reply
            error = outcome.failure.message if outcome.failure else ""
            reply.invalid_tool_calls.append(
                {"type": "invalid_tool_call", "id": call_id, "name": outcome.name or None, "args": text, "error": error}
            )
        else:
            reply.tool_calls.append(
                {"type": "tool_call", "id": call_id, "name": outcome.name, "args": dict(outcome.args)}
            )
    return reply


def tool_message(outcome: CallOutcome, call_id: str) -> ToolMessage:
    """The answer to a call as the model was shown it, with its outcome."""
    outcome = replace(outcome, call_id=call_id)
    return ToolMessage(
        outcome.content,
        name=outcome.name,
        tool_call_id=call_id,
        status="error" if outcome.failure else "success",
        additional_kwargs={OUTCOME_KEY: plain_outcome(outcome)},
    )


def _traced(step: RolloutStep, template_hash: str) -> dict[str, Any]:
    if not step.completion_token_ids:
        return {}
    trace = TokenTrace(
        prompt_token_ids=step.prompt_token_ids,
        completion_token_ids=step.completion_token_ids,
        logprobs=step.logprobs,
        text=step.reply,
        template_hash=template_hash,
        constrained=step.constrained,
    )
    return {TOKEN_TRACE_KEY: trace.as_plain()}


def _answers(step: RolloutStep, reply: AIMessage) -> list[ToolMessage]:
    good, bad = iter(reply.tool_calls), iter(reply.invalid_tool_calls)
    ids = [
        next(bad)["id"] if _kind(outcome) is FailureKind.MALFORMED_CALL else next(good)["id"]
        for outcome in step.outcomes
    ]
    return [tool_message(outcome, call_id or "") for outcome, call_id in zip(step.outcomes, ids, strict=True)]


def _open(world: World, played: RolloutTurn, rollout: Rollout) -> None:
    message = world.live.open_turn()
    if message != played.user:
        raise EnvironmentStateError(
            f"{rollout.rollout_id}: the environment opens a turn with {_cut(message)}, the record with "
            f"{_cut(played.user)}. Give the tasks with which the run was collected."
        )


def _caller(world: World) -> AgentGraph:
    """A graph of the tool node alone, which is how every recorded call was made."""
    node = HintedToolNode(hints=0, environment=world)
    return StateGraph(EpisodeState).add_node("tools", node).add_edge(START, "tools").compile()


def _make_again(step: RolloutStep, reply: AIMessage, caller: AgentGraph, world: World) -> None:
    recorded = [outcome for outcome in step.outcomes if _kind(outcome) is not FailureKind.MALFORMED_CALL]
    for call, outcome in zip(reply.tool_calls, recorded, strict=True):
        if _kind(outcome) is FailureKind.TIMEOUT:
            _require_fork(world, outcome)
            continue
        asked = AIMessage("", tool_calls=[call])
        state = caller.invoke({"messages": [asked], "world": world.snapshot()})
        answer = outcomes_in(state["messages"])[0].raw_content
        if answer != outcome.raw_content:
            raise EnvironmentStateError(
                f"The state cannot be restored: {outcome.name} answered {_cut(outcome.raw_content)} in the record and "
                f"{_cut(answer)} now. The environment is not deterministic, or not the recorded one."
            )


def _require_fork(world: World, outcome: CallOutcome) -> None:
    if not isinstance(world.live, Forkable):
        raise EnvironmentStateError(
            f"The state cannot be restored: {outcome.name} timed out, and without `fork` nobody knows what it had done."
        )


def _close(environment: Environment, played: RolloutTurn) -> None:
    if isinstance(environment, ReadsReplies):
        last = played.steps[-1].reply if played.steps else ""
        environment.read_reply(parse_reply(last).content)
    environment.close_turn()


def _plain_score(played: RolloutTurn) -> dict[str, float]:
    score = played.score
    if score is None:
        raise EnvironmentStateError("A turn before the failed one was never scored, so the record is not whole.")
    return {"state": score.state, "response": score.response, "value": score.value}


def _kind(outcome: CallOutcome) -> FailureKind | None:
    return outcome.failure.kind if outcome.failure else None


def _cut(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}…"


def last_answers(messages: Sequence[AnyMessage]) -> int:
    """Index of the first of the answers to the last reply."""
    return max(index for index, message in enumerate(messages) if isinstance(message, AIMessage)) + 1
