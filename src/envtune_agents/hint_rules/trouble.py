"""Rules for calls that got no proper answer: a deadline, a service that is down, and the same failure once more.

In: a `Scene`. Out: `Advice`, or None. They read the failure and the history alone, so they work for any tool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from envtune_agents.hint_rules.phrases import DOWN, TOO_FAST
from envtune_agents.hint_rules.reading import reading_of
from envtune_agents.hint_rules.words import quoted, split_name
from envtune_agents.types import Advice, CallOutcome, FailureKind, Scene, ToolCall

_LOOKS_BACK = 8
_AMOUNTS = frozenset({"limit", "count", "n", "max", "size", "pages", "rows", "results", "days", "depth", "top"})


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The tool did not answer within the time allowed for one call."""

    name: str = "call.timed_out"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.TIMEOUT})

    def __call__(self, scene: Scene) -> Advice | None:
        if scene.failure.kind not in self.kinds:
            return None
        amounts = [name for name in scene.call.args if _AMOUNTS & set(split_name(name).split())]
        less = f"Ask for less at a time: lower {' or '.join(amounts)}." if amounts else "Ask for less at a time."
        return Advice(
            problem=f"{quoted(scene.call.name)} did not answer in time, so its result is not known.",
            constraint="One call has only a limited time, and the same call is likely to take as long again.",
            pointer=f"{less} If the call changes something, look first whether it did.",
        )


@dataclass(frozen=True, slots=True)
class ServiceTrouble:
    """The service behind the tool is down or asks for patience; the arguments may well be right."""

    name: str = "call.service_trouble"
    bounded: ClassVar[bool] = True
    kinds: ClassVar[frozenset[FailureKind]] = frozenset({FailureKind.TOOL_ERROR})
    words: ClassVar[tuple[str, ...]] = (*TOO_FAST.words, *DOWN.words)

    def __call__(self, scene: Scene) -> Advice | None:
        if scene.failure.kind not in self.kinds:
            return None
        said = reading_of(scene).said
        if TOO_FAST.occur_in(said):
            return Advice(
                problem=f"The service behind {quoted(scene.call.name)} takes no more calls for the moment.",
                constraint="It limits how many calls it takes in a while; the arguments are not the reason.",
                pointer="Do without it, or make fewer and larger calls, and come back to this one later.",
            )
        if not DOWN.occur_in(said):
            return None
        return Advice(
            problem=f"The service behind {quoted(scene.call.name)} did not answer properly.",
            constraint="The arguments need not be wrong; such a failure often passes.",
            pointer="Make the same call once more; if it fails again, use another tool or tell the user.",
        )


@dataclass(frozen=True, slots=True)
class SameCallAgain:
    """A call that has failed before in this episode with these very arguments and this very message."""

    name: str = "call.same_again"
    bounded: ClassVar[bool] = True

    def __call__(self, scene: Scene) -> Advice | None:
        call = scene.call
        if not any(outcome.failure == scene.failure for outcome in _same_calls(scene.history, call)):
            return None
        return Advice(
            problem=f"{quoted(call.name)} has failed before with the same arguments and the same answer.",
            constraint="It will fail each time, as long as neither its arguments nor the state change.",
            pointer="Change an argument, or first call a tool that shows or changes what this one depends on.",
        )


def _same_calls(history: Sequence[CallOutcome], call: ToolCall) -> list[CallOutcome]:
    """The latest outcomes of this very call; a history that reads its outcomes late finds them without reading all."""
    find: Callable[[ToolCall, int], list[CallOutcome]] | None = getattr(history, "same_calls", None)
    if find is not None:
        return find(call, _LOOKS_BACK)
    latest = islice(reversed(history), _LOOKS_BACK)
    return [outcome for outcome in latest if outcome.name == call.name and outcome.args == call.args]
