"""The engine: one failed call in, one outcome with a hint at the dialled level out."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from envtune_agents.deadline import call_with_deadline
from envtune_agents.errors import HintRuleError
from envtune_agents.hint_rules import DEFAULT_RULES, DeclaredRule
from envtune_agents.hint_rules.reading import READ_CHARS
from envtune_agents.hint_rules.words import as_json, cut
from envtune_agents.hints.dial import HintDial
from envtune_agents.hints.failures import FailureDetector, classify_failure
from envtune_agents.types import Advice, CallOutcome, FailureKind, Hint, HintRule, Scene, Task, ToolCall, ToolFailure

log = logging.getLogger(__name__)

MAX_HINT_CHARS = 2_000
RULE_TIMEOUT_S = 5.0
_MAX_KNOWN = 1_000
_KINDS = tuple(FailureKind)


class HintEngine:
    """The rules and the dial, asked once for each failed call.

    engine = HintEngine(dial=HintDial(3))
    outcome = engine.outcome(ToolCall("cd", {"path": "a"}), '{"error": "bad call"}', tools=tool_schemas(tools))
    outcome.content      # what the model sees, with a hint
    outcome.raw_content  # the tool's own bytes

    Nothing that a rule does fails the call: one that raises, gives something else than `Advice` or takes longer than
    `rule_timeout_s` seconds is skipped, and `outcome.hint_error` says so.
    """

    def __init__(
        self,
        rules: Sequence[HintRule] = DEFAULT_RULES,
        dial: HintDial | None = None,
        *,
        rule_timeout_s: float | None = RULE_TIMEOUT_S,
    ) -> None:
        names = [_name_of(rule) for rule in rules]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise HintRuleError(f"Every rule needs a name of its own; given twice: {', '.join(doubled)}.")
        self.rules = tuple(rules)
        self._asked = tuple(_Asked.of(rule) for rule in self.rules)
        self.dial = dial or HintDial()
        self._rule_timeout_s = rule_timeout_s
        self._concerned: dict[tuple[str, FailureKind], tuple[_Asked, ...]] = {}

    @classmethod
    def for_serving(
        cls,
        rules: Sequence[HintRule] = DEFAULT_RULES,
        dial: HintDial | None = None,
        *,
        rule_timeout_s: float | None = RULE_TIMEOUT_S,
    ) -> HintEngine:
        """An engine for production, where hints are a self-repair layer: it holds no rule that is `training_only`.

        agent_tools = with_hints(tools, HintEngine.for_serving())
        """
        served = [rule for rule in rules if not getattr(rule, "training_only", False)]
        return cls(served, dial, rule_timeout_s=rule_timeout_s)

    def with_dial(self, dial: HintDial) -> HintEngine:
        """The same rules under another dial."""
        new = copy.copy(self)
        new.dial = dial
        return new

    def for_episode(self, task: Task | None = None, stage: str = "") -> HintEngine:
        """The engine under the dial that holds for one task in one stage; see `HintDial.for_episode`."""
        dial = self.dial.for_episode(task, stage)
        return self if dial is self.dial else self.with_dial(dial)

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
        errors: list[str] = []
        if failure is None:
            failure = _classified(call, raw_content, tools, detect, errors)
        hint, content = None, raw_content
        if failure is not None and self.dial.level > 0:
            unreadable = (tools.get(call.name) or {}).get("unreadable")
            if unreadable:
                errors.append(f"the schema of tool {call.name!r} was read in part: {unreadable}")
            hint = self._hint(Scene(call, failure, raw_content, tools, history), errors)
            content = attach_hint(raw_content, hint.text, failure) if hint else raw_content
        error = cut("; ".join(errors), MAX_HINT_CHARS) if errors else None
        return CallOutcome(call.name, call.args, content, raw_content, failure, hint, call.call_id, duration_s, error)

    def _hint(self, scene: Scene, errors: list[str]) -> Hint | None:
        dial, tool = self.dial, scene.call.name
        uncapped = dial.level_for("", tool) if not dial.rules else None
        said = ""
        for asked in self._asked_about(tool, scene.failure.kind):
            if asked.words:
                said = said or scene.failure.message[:READ_CHARS].lower()
                if not any(map(said.__contains__, asked.words)):
                    continue
            rule = asked.rule
            level = dial.level_for(rule.name, tool) if uncapped is None else uncapped
            text = self._text(asked, scene, level, errors) if level > 0 else ""
            if text:
                return Hint(rule.name, level, text)
        return None

    def _asked_about(self, tool: str, kind: FailureKind) -> tuple[_Asked, ...]:
        """The rules that can have something to say; most declared rules are about other tools."""
        found = self._concerned.get((tool, kind))
        if found is None:
            if len(self._concerned) > _MAX_KNOWN:
                self._concerned.clear()  # models make up tool names without end
            found = tuple(asked for asked in self._asked if _concerns(asked.rule, tool, kind))
            self._concerned[tool, kind] = found
        return found

    def _text(self, asked: _Asked, scene: Scene, level: int, errors: list[str]) -> str:
        """What a rule says at a level; "" when it says nothing or fails, and then `errors` grows."""
        rule = asked.rule
        try:
            advice = rule(scene) if asked.bounded else call_with_deadline(partial(rule, scene), self._rule_timeout_s)
            return advice_text(advice, level) if advice is not None else ""
        except Exception as error:  # a rule must never fail the user's tool
            log.warning("hint rule %r failed and was skipped", rule.name, exc_info=True)
            errors.append(f"rule {rule.name!r}: {_one_line(error)}")
            return ""


class _Asked(NamedTuple):
    """A rule with what the engine must know to ask it; reading that from the rule each time costs more than asking."""

    rule: HintRule
    bounded: bool
    words: tuple[str, ...]

    @classmethod
    def of(cls, rule: HintRule) -> _Asked:
        return cls(rule, bool(getattr(rule, "bounded", False)), tuple(getattr(rule, "words", ())))


def advice_text(advice: Advice, level: int) -> str:
    """The parts of `advice` that `level` reveals, as one paragraph. Raises TypeError for what is no advice."""
    if not isinstance(advice, Advice):
        raise TypeError(f"gave {type(advice).__name__}, expected Advice or None")
    parts = (advice.problem, advice.constraint, advice.pointer)[:level]
    for part in parts:
        if not isinstance(part, str):
            raise TypeError(f"gave advice with a part of type {type(part).__name__}, expected text")
    text = " ".join(part.strip() for part in parts if part.strip())
    return text if len(text) <= MAX_HINT_CHARS else f"{text[: MAX_HINT_CHARS - 1]}…"


def attach_hint(raw_content: str, hint: str, failure: ToolFailure) -> str:
    """What the model sees: the raw answer as a JSON object with one more key, "hint".

    An answer that is a JSON object keeps every byte inside its braces; any other text becomes the value of "error", or
    of "result" where the tool answered politely that it found nothing.
    """
    answer = raw_content.strip()
    if _is_object(answer):
        inside = answer[1:-1].rstrip()
        return f'{{{inside}{", " if inside.strip() else ""}"hint": {_dumps(hint)}}}'
    key = "result" if failure.kind is FailureKind.EMPTY_RESULT else "error"
    return f'{{"{key}": {_dumps(raw_content)}, "hint": {_dumps(hint)}}}'


def as_engine(hints: HintEngine | HintDial | int) -> HintEngine:
    """An engine from whatever a caller may give for `hints`: an engine, a dial, or a level of the dial."""
    if isinstance(hints, HintEngine):
        return hints
    return HintEngine(dial=hints if isinstance(hints, HintDial) else HintDial(hints))


def _classified(
    call: ToolCall,
    raw_content: str,
    tools: Mapping[str, Mapping[str, Any]],
    detect: FailureDetector | None,
    errors: list[str],
) -> ToolFailure | None:
    try:
        failure = classify_failure(call, raw_content, tools=tools, detect=detect)
        if failure is not None and not isinstance(failure, ToolFailure):
            raise TypeError(f"gave {type(failure).__name__}, expected ToolFailure or None")
    except Exception as error:  # a detector is somebody else's code
        log.warning("the failure detector failed on an answer of %r", call.name, exc_info=True)
        errors.append(f"failure detector: {_one_line(error)}")
        return None
    return failure


def _name_of(rule: HintRule) -> str:
    name = getattr(rule, "name", None)
    if not isinstance(name, str) or not name or not callable(rule):
        raise HintRuleError(
            f"{rule!r} is no hint rule. A rule has a `name` that is text and not empty, and is called with a Scene; "
            "see envtune_agents.types.HintRule."
        )
    kinds = getattr(rule, "kinds", ())
    if not isinstance(kinds, Collection) or isinstance(kinds, str) or not all(kind in _KINDS for kind in kinds):
        raise HintRuleError(
            f"The rule {name!r} has kinds = {kinds!r}. Expected a set of FailureKind, such as {{FailureKind.TIMEOUT}}."
        )
    words = getattr(rule, "words", ())
    if not isinstance(words, Collection) or isinstance(words, str) or not all(map(_is_word, words)):
        raise HintRuleError(
            f"The rule {name!r} has words = {words!r}. Expected texts in lower case, such as ('denied',)."
        )
    return name


def _is_word(word: Any) -> bool:
    return isinstance(word, str) and bool(word) and word == word.lower()


def _concerns(rule: HintRule, tool: str, kind: FailureKind) -> bool:
    if isinstance(rule, DeclaredRule):
        return rule.when.concerns(tool, kind)
    return kind in getattr(rule, "kinds", FailureKind)


def _is_object(text: str) -> bool:
    if not (text.startswith("{") and text.endswith("}")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _dumps(text: str) -> str:
    dumped = as_json(text)
    return dumped if dumped.isprintable() or _encodable(dumped) else json.dumps(text)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no file and no request can hold
        return False
    return True


def _one_line(error: Exception) -> str:
    return cut(f"{type(error).__name__}: {error}", 300)
