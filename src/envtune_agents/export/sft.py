"""Rollouts -> rows for supervised fine-tuning: conversations, or the exact tokens with a loss mask."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from envtune_agents.errors import TaskError, unknown
from envtune_agents.tape import TapeBranch, tape_of
from envtune_agents.types import CallOutcome, Rollout, RolloutTurn

HINTS = ("keep", "strip", "mask")
Row = dict[str, Any]
ToolsOf = Callable[[Rollout], Sequence[Mapping[str, Any]]]
"""The tools that a rollout's model was offered, OpenAI-style."""


class Tokenizer(Protocol):
    """What rewriting context needs: the model's own tokenizer, such as `Weights`."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


def to_sft_rows(rollouts: Iterable[Rollout], *, hints: str = "keep", tools: ToolsOf | None = None) -> Iterator[Row]:
    """One row for each rollout: `messages` (role and content), `tools` if known, and where it comes from.

    An assistant's content is its reply word for word, tool calls included. `hints="keep"` shows tool results as the
    model saw them, "strip" as the tool gave them; "mask" is for token rows. `tools` is a JSON text, since columns of
    unlike dictionaries do not survive a table.
    """
    _check(hints, ("keep", "strip"))
    for rollout in rollouts:
        row: Row = {"messages": messages_of(rollout.turns, stripped=hints == "strip")}
        if tools is not None:
            row["tools"] = json.dumps(list(tools(rollout)))
        if row["messages"]:
            yield {**row, **origin(rollout)}


def to_token_rows(
    rollouts: Iterable[Rollout], *, hints: str = "keep", tokenizer: Tokenizer | None = None
) -> Iterator[Row]:
    """One row for each branch: `input_ids`, and `labels` with -100 where the model did not sample the token.

    `completion_mask` is the same as a mask of 0 and 1. Replies that a grammar limited are trained on as well.
    `hints="keep"`: the tokens as they were. "mask": the same, with `hint_mask`, 1 for each token of a hint, so that a
    trainer can hide them from attention; hints never carry loss. "strip": the hints' texts are cut out of the context,
    which is tokenised anew around the sampled tokens; these stay as they are. The last two need the model's
    `tokenizer`.
    """
    _check(hints, HINTS)
    if hints != "keep" and tokenizer is None:
        raise TaskError(f"hints='{hints}' on token rows needs the model's tokenizer (--tokenizer on the command line).")
    for rollout in rollouts:
        for index, branch in enumerate(tape_of(rollout).branches):
            yield {**_token_row(rollout, branch, hints, tokenizer), **origin(rollout), "branch": index}


def origin(rollout: Rollout) -> Row:
    """The columns that say where a row comes from and what it was worth."""
    return {
        "rollout_id": rollout.rollout_id,
        "task_id": rollout.task_id,
        "category": rollout.category,
        "model": rollout.model,
        "stage": rollout.stage,
        "hint_level": rollout.hint_level,
        "reward": rollout.reward,
    }


def messages_of(turns: Sequence[RolloutTurn], *, stripped: bool = False) -> list[dict[str, str]]:
    """The conversation of some turns, with tool results as the model saw them or, `stripped`, without hints."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        messages.append({"role": "user", "content": turn.user})
        for step in turn.steps:
            messages.append({"role": "assistant", "content": step.reply})
            messages += [
                {"role": "tool", "content": outcome.raw_content if stripped else outcome.content, "name": outcome.name}
                for outcome in step.outcomes
            ]
    return messages if any(message["role"] == "assistant" for message in messages) else []


def _check(hints: str, known: Sequence[str]) -> None:
    if hints not in known:
        raise TaskError(unknown("treatment of hints", hints, known))


def _token_row(rollout: Rollout, branch: TapeBranch, hints: str, tokenizer: Tokenizer | None) -> Row:
    ids, mask = [*branch.prompt_ids], [0] * len(branch.prompt_ids)
    hidden: list[int] = []
    if hints == "keep" or tokenizer is None:
        ids += branch.completion_ids
        mask += branch.loss_mask
    else:
        outcomes = [outcome for turn in rollout.turns for step in turn.steps for outcome in step.outcomes]
        hinted = [outcome for outcome in outcomes if outcome.hint is not None]
        ids, mask, hidden = _rewritten(branch, hinted, tokenizer, strip=hints == "strip")
    labels = [token if sampled else -100 for token, sampled in zip(ids, mask, strict=True)]
    row: Row = {"input_ids": ids, "labels": labels, "completion_mask": mask}
    return {**row, "hint_mask": hidden} if hints == "mask" else row


def _rewritten(
    branch: TapeBranch, hinted: Sequence[CallOutcome], tokenizer: Tokenizer, *, strip: bool
) -> tuple[list[int], list[int], list[int]]:
    """Ids, loss mask and hint mask of a branch whose context was stripped of its hints, or only marked."""
    ids, mask, hidden = list[int](), list[int](), list[int]()

    def context(tokens: Sequence[int]) -> None:
        if strip:
            text = tokenizer.decode(tokens)
            bare = _without_hints(text, hinted)
            kept = list(tokens) if bare == text else tokenizer.encode(bare)
            marks = [0] * len(kept)
        else:
            kept, marks = list(tokens), _hint_marks(tokens, hinted, tokenizer)
        ids.extend(kept)
        mask.extend([0] * len(kept))
        hidden.extend(marks)

    context(branch.prompt_ids)
    at = 0
    for span in branch.spans:
        context(branch.completion_ids[at : span.start])
        said = branch.said(span)
        ids.extend(said)
        mask.extend([1] * len(said))
        hidden.extend([0] * len(said))
        at = span.end
    return ids, mask, hidden


def _without_hints(text: str, hinted: Sequence[CallOutcome]) -> str:
    """`text` with each answer that carries a hint replaced by the tool's own bytes, in the order of the calls."""
    at = 0
    for outcome in hinted:
        found = text.find(outcome.content, at)
        if found >= 0:
            text = text[:found] + outcome.raw_content + text[found + len(outcome.content) :]
            at = found + len(outcome.raw_content)
    return text


def _hint_marks(tokens: Sequence[int], hinted: Sequence[CallOutcome], tokenizer: Tokenizer) -> list[int]:
    """1 for each token that holds a part of a hint's text."""
    text, marks, at = tokenizer.decode(tokens), [0] * len(tokens), 0
    for outcome in hinted:
        found = text.find(outcome.content, at)
        if found < 0:
            continue
        start, end = _added(outcome)
        first, last = _token_range(tokens, found + start, found + end, tokenizer)
        marks[first:last] = [1] * (last - first)
        at = found + len(outcome.content)
    return marks


def _added(outcome: CallOutcome) -> tuple[int, int]:
    """Where in the content the hint's part lies: what `content` has more than `raw_content`."""
    content, raw = outcome.content, outcome.raw_content
    start = 0
    while start < min(len(content), len(raw)) and content[start] == raw[start]:
        start += 1
    back = 0
    while back < min(len(content), len(raw)) - start and content[-1 - back] == raw[-1 - back]:
        back += 1
    return start, len(content) - back


def _token_range(tokens: Sequence[int], start: int, end: int, tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens whose text overlaps the characters from `start` to `end`, by bisection on decoded lengths."""

    def tokens_before(characters: int) -> int:
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high + 1) // 2
            if len(tokenizer.decode(tokens[:middle])) <= characters:
                low = middle
            else:
                high = middle - 1
        return low

    last = tokens_before(end)
    return tokens_before(start), last + (len(tokenizer.decode(tokens[:last])) < end)
