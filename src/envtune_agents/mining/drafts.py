"""Clusters of failures -> a YAML rule file with TODOs, which `load_rules` reads and a person finishes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import yaml

from envtune_agents.mining.clusters import FailureCluster

_HOLE = re.compile(r"\{[^{}]*\}|'…'|#|…")
_MIN_LETTERS = 4
_SHOWN_CHARS = 200
_HEADER = """\
# Drafts of hint rules, one for each kind of failure that no rule answered. They load as they are, but every TODO must
# be replaced by words before they are any use; `envtune hints check` finds those that are left. Keys and placeholders:
# docs/hint-rules.md. A rule must not say the answer: no value that the agent has not seen.

rules:
"""


def draft_rules(clusters: Iterable[FailureCluster]) -> str:
    """The YAML of one rule for each cluster, most frequent first, with its examples in comments."""
    names: set[str] = set()
    drafts = [_draft(cluster, names) for cluster in clusters]
    return _HEADER + ("\n".join(drafts) if drafts else "  []\n")


def _draft(cluster: FailureCluster, names: set[str]) -> str:
    fragment = shared_words(cluster)
    lines = [*_comments(cluster), f"  - name: {rule_name(cluster, 'draft', names)}", "    when:"]
    if cluster.tool:
        lines.append(f"      tool: {quoted_yaml(tool_glob(cluster.tool))}")
    lines.append(f"      kind: {cluster.kind.value}")
    if fragment:
        lines.append(f"      message_contains: {quoted_yaml(fragment)}")
    said = re.sub(r"[{}]", "", one_line(cluster.message))
    lines += [
        f"    problem: {quoted_yaml(f'TODO say precisely what went wrong. {{tool}} answered: {said}')}",
        '    constraint: "TODO the constraint that was broken, or the precondition that is missing."',
        '    pointer: "TODO which tool or argument to look at; name a tool as {visible:tool_name}."',
    ]
    return "\n".join(lines) + "\n"


def _comments(cluster: FailureCluster) -> Iterator[str]:
    yield f"  # {cluster.count} failures in {len(cluster.tasks)} tasks, such as"
    for example in cluster.examples:
        outcome = example.outcome
        where = f"{example.rollout_id}, turn {example.turn + 1}, step {example.step + 1}"
        answer = outcome.failure.message if outcome.failure else ""
        yield f"  #   {one_line(f'{where}: {example.call_text}')}"
        yield f"  #     -> {one_line(answer)}"


def shared_words(cluster: FailureCluster) -> str:
    """The longest literal piece of the cluster's wording that all its examples contain; "" when none is telling."""
    printable = "".join(letter if letter.isprintable() else "…" for letter in cluster.message)
    pieces = [piece.strip(" .,:;'\"") for piece in _HOLE.split(printable)]
    said = [example.outcome.failure.message.lower() for example in cluster.examples if example.outcome.failure]
    telling = [
        piece
        for piece in pieces
        if sum(letter.isalpha() for letter in piece) >= _MIN_LETTERS and all(piece.lower() in text for text in said)
    ]
    return max(telling, key=len, default="")


def rule_name(cluster: FailureCluster, prefix: str, taken: set[str]) -> str:
    """A name for the cluster's rule that is not in `taken`, to which it is added."""
    words = re.findall(r"[a-z0-9]+", shared_words(cluster).lower())[:4]
    tool = re.sub(r"[^a-z0-9_]+", "_", cluster.tool.lower()).strip("_")[:40]
    stem = name = ".".join(part for part in (prefix, tool or cluster.kind.value, "_".join(words)) if part)
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name


def tool_glob(tool: str) -> str:
    """A glob that fits exactly this name; blanks, which a rule file does not take, fit any character."""
    return re.sub(r"\s", "?", re.sub(r"([*?\[])", r"[\1]", tool))


def quoted_yaml(text: str) -> str:
    """A text as a double-quoted YAML scalar on one line."""
    clean = text.encode("utf-8", "replace").decode()
    return yaml.safe_dump(clean, default_style='"', width=10**9, allow_unicode=True).strip()


def one_line(text: str) -> str:
    """Text as it can stand in a comment: printable, on one line, shortened."""
    flat = "".join(letter if letter.isprintable() else " " for letter in text)
    flat = " ".join(flat.split())
    return flat if len(flat) <= _SHOWN_CHARS else f"{flat[: _SHOWN_CHARS - 1]}…"
