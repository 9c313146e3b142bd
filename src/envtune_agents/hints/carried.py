"""How an outcome travels with the conversation: in plain form, inside the tool message that answered the call.

In: outcomes, or messages. Out: messages' extra fields, or outcomes. What is carried is what JSON and LangGraph's
checkpointers know, so a conversation that was saved and loaded still tells what its calls returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from envtune_agents.types import CallOutcome, FailureKind, Hint, ToolCall, ToolFailure

if TYPE_CHECKING:
    from langchain_core.messages import AnyMessage

OUTCOME_KEY = "outcome"
"""Key of a tool message's `additional_kwargs` under which its outcome travels; no chat model sends it on."""


def outcomes_in(messages: Sequence[AnyMessage]) -> list[CallOutcome]:
    """The outcomes that a conversation's tool messages carry, oldest first."""
    return [outcome_from(fields) for fields in _carried(messages)]


def _carried(messages: Iterable[AnyMessage]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        fields = getattr(message, "additional_kwargs", {}).get(OUTCOME_KEY)
        if fields:
            yield fields


def messages_in(state: Any) -> Sequence[AnyMessage]:
    """The conversation in a graph's state, whether that is a dictionary, a list, or an object with `messages`."""
    if type(state) is dict or isinstance(state, Mapping):
        return state.get("messages") or ()
    return state if isinstance(state, list) else getattr(state, "messages", ())


class History(Sequence[CallOutcome]):
    """`outcomes_in(messages_in(state))`, each read when a rule first looks at it: nearly all calls need none of it."""

    def __init__(self, state: Any) -> None:
        self._messages = messages_in(state)
        self._found: list[Mapping[str, Any]] | None = None
        self._read: dict[int, CallOutcome] = {}

    @property
    def _fields(self) -> list[Mapping[str, Any]]:
        if self._found is None:
            self._found = list(_carried(self._messages))
        return self._found

    def __len__(self) -> int:
        return len(self._fields)

    def __reversed__(self) -> Iterator[CallOutcome]:
        """The latest outcomes first, without a look at the rest."""
        return map(outcome_from, _carried(reversed(self._messages)))

    def same_calls(self, call: ToolCall, n: int) -> list[CallOutcome]:
        """Those of the last `n` outcomes that are of this very call, latest first; the others are not read."""
        latest = islice(_carried(reversed(self._messages)), n)
        return [
            outcome_from(fields) for fields in latest if fields["name"] == call.name and fields["args"] == call.args
        ]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        if position not in self._read:
            self._read[position] = outcome_from(self._fields[position])
        return self._read[position]


def plain_outcome(outcome: CallOutcome) -> dict[str, Any]:
    """An outcome in its plain form, which JSON and LangGraph's checkpointers know: dictionaries and text."""
    failure, hint = outcome.failure, outcome.hint
    return {
        "name": outcome.name,
        "args": outcome.args,
        "content": outcome.content,
        "raw_content": outcome.raw_content,
        "failure": {"kind": failure.kind.value, "message": failure.message} if failure else None,
        "hint": {"rule": hint.rule, "level": hint.level, "text": hint.text} if hint else None,
        "call_id": outcome.call_id,
        "duration_s": outcome.duration_s,
        "hint_error": outcome.hint_error,
    }


def plain_success(asked: Mapping[str, Any], content: str, duration_s: float) -> dict[str, Any]:
    """`plain_outcome` of a call that did its job, straight from LangChain's tool call and what the tool answered."""
    return {
        "name": asked["name"],
        "args": asked["args"],
        "content": content,
        "raw_content": content,
        "failure": None,
        "hint": None,
        "call_id": asked["id"] or "",
        "duration_s": duration_s,
        "hint_error": None,
    }


def outcome_from(fields: Mapping[str, Any]) -> CallOutcome:
    """A `CallOutcome` from its plain form, as `plain_outcome` or JSON gives it."""
    failure, hint = fields.get("failure"), fields.get("hint")
    return CallOutcome(
        name=fields["name"],
        args=fields["args"],
        content=fields["content"],
        raw_content=fields["raw_content"],
        failure=ToolFailure(FailureKind(failure["kind"]), failure["message"]) if failure else None,
        hint=Hint(**hint) if hint else None,
        call_id=fields.get("call_id", ""),
        duration_s=fields.get("duration_s", 0.0),
        hint_error=fields.get("hint_error"),
    )
