"""What a hint may say, as it is put to the writer and to the judge.

Three articles, after the paper's: no leak, room to explore, something to act on. The categories are the paper's, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from envtune_agents.hint_writer.case import HintCase
from envtune_agents.hint_writer.replies import CATEGORIES, Draft
from envtune_agents.types import CallOutcome

_ARTICLES = """\
1. No leak. The hint holds no part of the answer: no argument value, no id, name or number that the agent could not
   already read above, no tool that is not in the list of tools, and no word on whether a call is wanted at all.
2. Room to explore. The hint names the kind of thing that is missing and where to look for it. It never writes out the
   next call with its arguments, nor a whole sequence of calls.
3. Something to act on. After reading the hint the agent can do something else than before. Repeating the error in other
   words, or advice such as "check your input", is not enough.

Bad:  You should call get_airport_code(city="San Francisco") first.
Good: This is no airport code. The code of a city has to be looked up before a flight can be searched."""

_WRITER = f"""\
You write hints for the tools of an AI agent. A hint is added to the tool's answer when a call fails. It must hold for
every failure of this kind, not only for the example. The rules:

{_ARTICLES}

Write in plain sentences to the agent. Answer with one JSON object and nothing else:
{{"problem": what went wrong, precisely,
 "constraint": the constraint that was broken or the precondition that is missing,
 "pointer": which tool or argument to look at,
 "category": one of {", ".join(CATEGORIES)}}}"""

_JUDGE = f"""\
You judge a hint that was written for the tools of an AI agent. You know the answer to the task, the agent does not. The
rules for hints:

{_ARTICLES}

Answer with one JSON object and nothing else:
{{"leaks": true if rule 1 is broken, "explores": true if rule 2 is kept, "actionable": true if rule 3 is kept,
 "reason": one sentence}}"""

_MAX_TOOL_CHARS = 1_500
_MAX_OTHERS = 60
_MAX_HISTORY = 12
_MAX_CHARS = 400


def writer_messages(case: HintCase) -> list[BaseMessage]:
    """What the writer is asked. There is no ground truth in it."""
    return [SystemMessage(_WRITER), HumanMessage(_told(case))]


def judge_messages(case: HintCase, draft: Draft, truth: Any) -> list[BaseMessage]:
    """What the judge is asked: the same, the hint, and the ground truth where there is one."""
    answer = "unknown" if truth is None else _cut(json.dumps(truth, ensure_ascii=False, default=str), 4_000)
    hint = json.dumps(draft.parts(), ensure_ascii=False)
    told = f"{_told(case)}\n\nTHE HINT\n{hint}\n\nTHE ANSWER TO THE TASK (the agent must find it by itself)\n{answer}"
    return [SystemMessage(_JUDGE), HumanMessage(told)]


def _told(case: HintCase) -> str:
    failure, cluster = case.outcome.failure, case.cluster
    kind, message = (failure.kind.value, failure.message) if failure else ("tool_error", "")
    parts = [
        f"THE FAILED CALL\n{_line(case.outcome)}",
        f"WHY IT FAILED ({kind})\n{_cut(message)}",
        f"HOW OFTEN\n{cluster.count} times in {len(cluster.tasks)} tasks. The wording: {cluster.message}",
        "THE TOOLS THE AGENT SEES\n" + "\n".join(_tools(case)),
        "WHAT THE USER SAID\n" + "\n".join(_cut(user) for user in case.users[-3:]),
        "WHAT HAPPENED BEFORE\n" + ("\n".join(map(_line, case.history[-_MAX_HISTORY:])) or "nothing"),
    ]
    return "\n\n".join(parts)


def _tools(case: HintCase) -> Iterator[str]:
    own = case.tools.get(case.outcome.name)
    if own is not None:
        yield _cut(json.dumps(own, ensure_ascii=False, default=str), _MAX_TOOL_CHARS)
    for name, schema in list(case.tools.items())[:_MAX_OTHERS]:
        if name != case.outcome.name:
            properties = (schema.get("parameters") or {}).get("properties") or {}
            yield f"{name}({', '.join(properties)}): {_cut(str(schema.get('description', '')), 200)}"


def _line(outcome: CallOutcome) -> str:
    args = ", ".join(f"{name}={json.dumps(value, default=str)}" for name, value in outcome.args.items())
    return _cut(f"{outcome.name}({args}) -> {outcome.raw_content}")


def _cut(text: str, chars: int = _MAX_CHARS) -> str:
    text = " ".join(text.split())
    return text if len(text) <= chars else f"{text[:chars]}…"
