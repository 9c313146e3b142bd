"""Accepted hints -> a YAML rule file for a person to review."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from envtune_agents.mining.drafts import one_line, quoted_yaml, rule_name, shared_words, tool_glob

if TYPE_CHECKING:
    from envtune_agents.hint_writer.case import HintCase
    from envtune_agents.hint_writer.replies import Draft
    from envtune_agents.hint_writer.write import WrittenHint

_HEADER = """\
# Hint rules written by a chat model and accepted by a judge. No agent sees them before a person has reviewed them:
# read each rule and its examples, mend its words and conditions, take its TODO line out, and move it into your own
# rule file. `envtune hints check` finds the TODO lines that are left. Keys and placeholders: docs/hint-rules.md.

rules:
"""


def written_rules(hints: Iterable[WrittenHint], writer: str, judge: str) -> str:
    """The YAML of the accepted hints; `writer` and `judge` are the models' names, for the comments."""
    names: set[str] = set()
    rules = [
        "\n".join([*_comments(hint, writer, judge), *rule_lines(hint.case, hint.draft, names)]) + "\n"
        for hint in hints
        if hint.case is not None and hint.draft is not None
    ]
    return _HEADER + ("\n".join(rules) if rules else "  []\n")


def rule_lines(case: HintCase, draft: Draft, names: set[str]) -> Iterator[str]:
    """The lines of one rule. Its conditions are the cluster's, its words the writer's with tools as placeholders."""
    cluster = case.cluster
    fragment = shared_words(cluster)
    yield f"  - name: {rule_name(cluster, 'written', names)}"
    yield "    when:"
    if cluster.tool:
        yield f"      tool: {quoted_yaml(tool_glob(cluster.tool))}"
    yield f"      kind: {cluster.kind.value}"
    if fragment:
        yield f"      message_contains: {quoted_yaml(fragment)}"
    for key, text in draft.parts().items():
        if text:
            yield f"    {key}: {quoted_yaml(with_placeholders(text, cluster.tool, case.tools))}"


def with_placeholders(text: str, called: str, tools: Mapping[str, Mapping[str, Any]]) -> str:
    """The text with the called tool as `{tool}` and other visible tools as `{visible:name}`.

    A name that is also a plain word ("find", "sort") counts as a tool only in quotes or before a bracket.
    """
    for name in sorted(tools, key=len, reverse=True):
        place = "{tool}" if name == called else f"{{visible:{name}}}"
        inner = re.escape(name)
        patterns = [rf"(?<![\w:])(['\"`]){inner}(?:\(\))?\1", rf"(?<![\w:]){inner}\(\)"]
        if "_" in name or re.search(r"[a-z][A-Z]", name):
            patterns.append(rf"(?<![\w:]){inner}(?!\w)")
        for pattern in patterns:
            text = re.sub(pattern, place, text)
    return text


def _comments(hint: WrittenHint, writer: str, judge: str) -> Iterator[str]:
    cluster = hint.cluster
    category = f", {hint.draft.category}" if hint.draft and hint.draft.category else ""
    yield f"  # TODO review: written by {one_line(writer)}, accepted by {one_line(judge)}{category}"
    yield f"  # {cluster.count} failures in {len(cluster.tasks)} tasks, such as"
    for example in cluster.examples:
        answer = example.outcome.failure.message if example.outcome.failure else ""
        where = f"{example.rollout_id}, turn {example.turn + 1}, step {example.step + 1}"
        yield f"  #   {one_line(f'{where}: {example.call_text}')}"
        yield f"  #     -> {one_line(answer)}"
