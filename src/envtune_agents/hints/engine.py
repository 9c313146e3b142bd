"""The dial and the engine: one failed call in, one outcome with a hint at the dialled level out."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envtune_agents.errors import HintRuleError
from envtune_agents.hint_rules import DEFAULT_RULES
from envtune_agents.hints.failures import FailureDetector, classify_failure
from envtune_agents.types import Advice, CallOutcome, FailureKind, Hint, HintRule, Scene, ToolCall, ToolFailure

log = logging.getLogger(__name__)

MAX_LEVEL = 3


@dataclass(frozen=True, slots=True)
class HintDial:
    """How much help is given: 0 nothing, 1 what went wrong, 2 also the broken constraint, 3 also where to look.

    `tools` and `rules` hold lower caps for single tools and rules: a rule capped at 0 is retired. A cap never raises
    the level, so `HintDial(0)` shows nothing whatever else it holds.
    """

    level: int = MAX_LEVEL
    tools: Mapping[str, int] = field(default_factory=dict)
    rules: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for level in (self.level, *self.tools.values(), *self.rules.values()):
            if isinstance(level, bool) or level not in range(MAX_LEVEL + 1):
                raise HintRuleError(f"A hint level is a whole number from 0 to {MAX_LEVEL}, got {level!r}.")

    def level_for(self, rule: str, tool: str) -> int:
        """The level at which `rule` may speak about a failed call of `tool`."""
        return min(self.level, self.tools.get(tool, MAX_LEVEL), self.rules.get(rule, MAX_LEVEL))


class HintEngine:
    """The rules and the dial, asked once for each failed call.

    engine = HintEngine(dial=HintDial(3))
    outcome = engine.outcome(ToolCall("cd", {"path": "a"}), '{"error": "bad call"}', tools=tool_schemas(tools))
    outcome.content      # what the model sees, with a hint
    outcome.raw_content  # the tool's own bytes
    """

    def __init__(self, rules: Sequence[HintRule] = DEFAULT_RULES, dial: HintDial | None = None) -> None:
        names = [rule.name for rule in rules]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise HintRuleError(f"Every rule needs a name of its own; given twice: {', '.join(doubled)}.")
        self.rules = tuple(rules)
        self.dial = dial or HintDial()

    def outcome(
        self,
        call: ToolCall,
        raw_content: str,
        *,
        tools: Mapping[str, Mapping[str, Any]],
        history: Sequence[CallOutcome] = (),
        detect: FailureDetector | None = None,
        failure: ToolFailure | None = None,
        duration_s: float = 0.0,
    ) -> CallOutcome:
        """The outcome of a call that was answered with `raw_content`.

        `tools` are the visible tools (`tool_schemas`), `history` the episode's outcomes so far, oldest first.
        `failure` is given when the caller already knows that the call failed, for instance because the tool raised;
        otherwise the answer is classified, with `detect` for what only the tools' owner can recognise.
        """
        failure = failure or classify_failure(call, raw_content, tools=tools, detect=detect)
        hint = None
        if failure is not None and self.dial.level > 0:
            hint = self._hint(Scene(call, failure, raw_content, tools, history))
        content = attach_hint(raw_content, hint.text, failure) if hint and failure else raw_content
        return CallOutcome(call.name, call.args, content, raw_content, failure, hint, call.call_id, duration_s)

    def _hint(self, scene: Scene) -> Hint | None:
        for rule in self.rules:
            level = self.dial.level_for(rule.name, scene.call.name)
            advice = self._ask(rule, scene) if level > 0 else None
            text = advice_text(advice, level) if advice else ""
            if text:
                return Hint(rule.name, level, text)
        return None

    def _ask(self, rule: HintRule, scene: Scene) -> Advice | None:
        try:
            return rule(scene)
        except Exception:  # a user's rule must never fail the user's tool
            log.warning("hint rule %r raised and was skipped", rule.name, exc_info=True)
            return None


def advice_text(advice: Advice, level: int) -> str:
    """The parts of `advice` that `level` reveals, as one paragraph."""
    parts = (advice.problem, advice.constraint, advice.pointer)[:level]
    return " ".join(part.strip() for part in parts if part.strip())


def attach_hint(raw_content: str, hint: str, failure: ToolFailure) -> str:
    """What the model sees: the raw answer as a JSON object with one more key, "hint".

    An answer that is a JSON object keeps its keys; any other text becomes the value of "error", or of "result" where
    the tool answered politely that it found nothing.
    """
    try:
        answer = json.loads(raw_content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        answer = {"result" if failure.kind is FailureKind.EMPTY_RESULT else "error": raw_content}
    return json.dumps({**answer, "hint": hint}, ensure_ascii=False)


def as_engine(hints: HintEngine | HintDial | int) -> HintEngine:
    """An engine from whatever a caller may give for `hints`: an engine, a dial, or a level of the dial."""
    if isinstance(hints, HintEngine):
        return hints
    return HintEngine(dial=hints if isinstance(hints, HintDial) else HintDial(hints))
