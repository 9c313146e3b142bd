"""Does a run that must be free of hints hold a single hint token?

A hint token is any token that the hint engine put before the model. An audit looks for them wherever a record keeps
what the model saw, and does not trust the record's own bookkeeping:

    hint      an outcome that says it was hinted
    content   an outcome whose shown answer is not the tool's own answer, byte for byte
    raw       a tool's "own" answer in the shape of a hinted one: a JSON object with a key "hint"
    prompt    the text of the recorded prompt tokens, where a tool's answer holds `"hint": "…`
    user      a user message that holds the same

The first two cost nothing to hide by editing the record; the third and fourth are what is left then. Prompts can be
read only with the model's tokenizer; those that were not read are counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envtune_agents.errors import RecordError
from envtune_agents.ledger.tokens import ESTIMATE, TokenCounter
from envtune_agents.types import CallOutcome, Rollout

_HINT_FREE = re.compile(r"(stage)?4?(alignment)?|eval(uation|uate)?|test")
_SHOWN_HINT = re.compile(r'\\*"hint\\*"\s*:\s*\\*"')


@dataclass(frozen=True, slots=True)
class Finding:
    """One place in a hint-free run where the model was shown a hint."""

    rollout_id: str
    turn: int
    """0-based."""
    step: int
    """0-based; -1 for a user message."""
    place: str
    """"hint", "content", "raw", "prompt" or "user"; see the module."""
    tokens: int
    """Hint tokens found there, at least 1."""
    text: str
    """What was found, shortened."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found."""

    rollouts: int
    audited: int
    """Rollouts that must be free of hints: those of stage 4 or of an evaluation, or all of them on request."""
    dial_on: int
    """Audited rollouts recorded with the dial above 0: hints could have been shown, whether or not one was."""
    prompts_read: int
    """Model calls whose prompt tokens were decoded and searched."""
    prompts_unread: int
    """Model calls with prompt tokens but no tokenizer to read them."""
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """True when not one hint token was found."""
        return not self.findings


def is_hint_free_stage(stage: str) -> bool:
    """Whether a run of this name must hold no hints: stage 4 ("4", "alignment") or an evaluation ("eval", "test")."""
    name = re.sub(r"[^a-z0-9]", "", stage.lower())
    return bool(name) and _HINT_FREE.fullmatch(name) is not None and name != "stage"


def audit_run(
    run: str | Path,
    counter: TokenCounter = ESTIMATE,
    *,
    own_hint_tools: Sequence[str] = (),
    everything: bool = False,
) -> Audit:
    """Looks for hint tokens in every rollout of a run that must be free of them.

    A rollout must be when its own `stage` or that of the run's manifest says so; `everything` audits the others too.
    `own_hint_tools` are tools that give a key "hint" themselves. Raises RecordError for a run that cannot be read or
    holds no rollouts: an audit of nothing proves nothing.
    """
    from envtune_agents.rollout import read_rollouts, run_settings

    of_run = everything or is_hint_free_stage(str(run_settings(run).get("stage") or ""))
    count, audits = 0, list[Audit]()
    for rollout in read_rollouts(run):
        count += 1
        if of_run or is_hint_free_stage(rollout.stage):
            audits.append(_audited(rollout, counter, own_hint_tools))
    if not count:
        raise RecordError(f"{run} holds no rollouts, so there is nothing to audit. Collect some first.")
    return Audit(
        rollouts=count,
        audited=len(audits),
        dial_on=sum(audit.dial_on for audit in audits),
        prompts_read=sum(audit.prompts_read for audit in audits),
        prompts_unread=sum(audit.prompts_unread for audit in audits),
        findings=tuple(finding for audit in audits for finding in audit.findings),
    )


def _audited(rollout: Rollout, counter: TokenCounter, own_hint_tools: Sequence[str]) -> Audit:
    traced = sum(bool(step.prompt_token_ids) for turn in rollout.turns for step in turn.steps)
    findings = [*_in_outcomes(rollout, counter, own_hint_tools), *_in_users(rollout, counter)]
    if counter.decode:
        findings += _in_prompts(rollout, counter, counter.decode, own_hint_tools)
    return Audit(
        rollouts=1,
        audited=1,
        dial_on=rollout.hint_level > 0,
        prompts_read=traced if counter.decode else 0,
        prompts_unread=0 if counter.decode else traced,
        findings=tuple(findings),
    )


def _in_outcomes(rollout: Rollout, counter: TokenCounter, own: Sequence[str]) -> Iterator[Finding]:
    for turn, played in enumerate(rollout.turns):
        for index, step in enumerate(played.steps):
            for outcome in step.outcomes:
                place, text = _in_outcome(outcome, own)
                if place:
                    yield _finding(rollout, turn, index, place, text, counter)


def _in_outcome(outcome: CallOutcome, own: Sequence[str]) -> tuple[str, str]:
    if outcome.hint is not None:
        return "hint", outcome.hint.text
    if outcome.content != outcome.raw_content:
        return "content", _added(outcome.content, outcome.raw_content)
    hint = None if outcome.name in own else _hint_key(outcome.raw_content)
    return ("", "") if hint is None else ("raw", hint)


def _added(content: str, raw_content: str) -> str:
    """What is shown from the first character on that is not the tool's own."""
    pairs = enumerate(zip(content, raw_content, strict=False))
    start = next((index for index, (shown, own) in pairs if shown != own), min(len(content), len(raw_content)))
    return content[start:]


def _hint_key(answer: str) -> str | None:
    if '"hint"' not in answer:
        return None
    try:
        parsed = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return str(parsed["hint"]) if isinstance(parsed, Mapping) and "hint" in parsed else None


def _in_users(rollout: Rollout, counter: TokenCounter) -> Iterator[Finding]:
    for turn, played in enumerate(rollout.turns):
        for text in _shown_hints(played.user):
            yield _finding(rollout, turn, -1, "user", text, counter)


def _in_prompts(
    rollout: Rollout, counter: TokenCounter, decode: Callable[[Sequence[int]], str], own: Sequence[str]
) -> Iterator[Finding]:
    """Searches what each prompt adds to the tokens before it: the answers of the tools, and at first everything."""
    before: tuple[int, ...] = ()
    known: list[str] = []
    for turn, played in enumerate(rollout.turns):
        for index, step in enumerate(played.steps):
            prompt = step.prompt_token_ids
            goes_on = bool(before) and prompt[: len(before)] == before
            added = decode(prompt[len(before) :] if goes_on else prompt)
            for answer in known:
                added = added.replace(answer, "")
            for text in _shown_hints(added):
                yield _finding(rollout, turn, index, "prompt", text, counter)
            before = prompt + step.completion_token_ids
            known += [outcome.raw_content for outcome in step.outcomes if outcome.name in own]


def _shown_hints(text: str) -> Iterable[str]:
    return (text[match.start() : match.end() + 200].split("\n")[0] for match in _SHOWN_HINT.finditer(text))


def _finding(rollout: Rollout, turn: int, step: int, place: str, text: str, counter: TokenCounter) -> Finding:
    tokens = max(counter.count(text), 1)
    return Finding(rollout.rollout_id, turn, step, place, tokens, " ".join(text.split())[:160])
