"""A run -> a file in the form that a trainer opens, with filters and a count of what was left out."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from envtune_agents.errors import RecordError, TaskError, require, unknown
from envtune_agents.export.groups import to_grpo_groups
from envtune_agents.export.pairs import to_preference_pairs
from envtune_agents.export.sft import Row, Tokenizer, ToolsOf, messages_of, origin, to_sft_rows, to_token_rows
from envtune_agents.export.where import parse_where
from envtune_agents.rollout import read_rollouts
from envtune_agents.rollout.replacing import replacing
from envtune_agents.tape import tape_of
from envtune_agents.types import Rollout

FORMATS = {
    "sft": "JSON lines of conversations (`messages`), for any SFT trainer",
    "grpo": "JSON lines, one group of rollouts of a task a line, with exact tokens, masks and log-probabilities",
    "dpo": "JSON lines of `prompt`, `chosen`, `rejected`, for TRL's DPOTrainer and others",
    "trl": "JSON lines of `input_ids` and `labels`, for TRL's SFTTrainer",
    "verl": "Parquet with `messages` for verl's multi-turn SFT dataset and `prompt` for its RL dataset",
    "hf": "a folder with Parquet and a dataset card, for `datasets.load_dataset`",
    "parquet": "Parquet, one token-continuous branch a row, with everything else about its rollout",
}
PARQUET_INSTALL = "pip install 'envtune-agents[parquet]'"
_BATCH = 500
_OF_TOKENS = ("grpo", "trl", "parquet")


@dataclass(frozen=True, slots=True)
class Exported:
    """What one export did."""

    path: Path
    rows: int
    read: int
    """Rollouts in the run."""
    kept: int
    """Rollouts that passed the filter and the choice of the best."""
    broken: int
    """Rollouts left out because their token tape is broken."""


def export_rollouts(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    where: str | None = None,
    best_of: int | None = None,
    hints: str = "keep",
    tokenizer: Tokenizer | None = None,
    tools: ToolsOf | None = None,
) -> Exported:
    """Writes the rollouts of `run` to `out` in one of `FORMATS`, whole or not at all.

    `where` is a filter (`parse_where`); `best_of=n` keeps the n rollouts of each task with the highest reward; `hints`
    is "keep", "strip" or "mask", see `to_sft_rows` and `to_token_rows`. Rollouts with a broken tape are left out and
    counted. Raises `FilterError`, `TaskError` or `RecordError` before `out` is touched.
    """
    if to not in FORMATS:
        raise TaskError(unknown("export format", to, FORMATS))
    selection = _Selection(Path(run), where, best_of)
    rows = _rows(to, iter(selection), hints, tokenizer, tools)
    path = Path(out)
    write = {"hf": _write_dataset, "verl": _write_parquet, "parquet": _write_parquet}.get(to, _write_lines)
    first = next(rows, None)
    if first is None:
        advice = " It holds sampled tokens, which local and served models record; 'sft' holds text."
        raise RecordError(
            f"Nothing to export: of {selection.read} rollouts {selection.kept} were kept and {selection.broken} have a "
            f"broken tape; none gives a row of the form '{to}'.{advice if selection.kept and to in _OF_TOKENS else ''}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        count = write(path, chain([first], rows))
    except OSError as error:
        raise RecordError(f"Cannot write {path}: {error.strerror or error}. Nothing was written.") from error
    return Exported(path, count, selection.read, selection.kept, selection.broken)


class _Selection:
    """The rollouts of a run that are to be exported, streamed, and how many there were."""

    def __init__(self, run: Path, where: str | None, best_of: int | None) -> None:
        if best_of is not None and best_of < 1:
            raise TaskError(f"best-of is at least 1, got {best_of}.")
        self._run = run
        self._keeps = parse_where(where) if where else None
        self._best = self._best_places(best_of) if best_of else None
        self.read = self.kept = self.broken = 0

    def __iter__(self) -> Iterator[Rollout]:
        self.read = self.kept = self.broken = 0
        for place, rollout in enumerate(read_rollouts(self._run)):
            self.read += 1
            if rollout.tape is not None and rollout.tape.broken:
                self.broken += 1
            elif self._wanted(place, rollout):
                self.kept += 1
                yield rollout

    def _wanted(self, place: int, rollout: Rollout) -> bool:
        if self._best is not None and place not in self._best:
            return False
        return self._keeps is None or self._keeps(rollout)

    def _best_places(self, n: int) -> set[int]:
        """A first pass that holds n places in the file for each task; of equal rewards the earlier rollout wins.

        Places, not ids: a file that mixes runs holds an id more than once.
        """
        best: dict[str, list[tuple[float, int]]] = {}
        for place, rollout in enumerate(read_rollouts(self._run)):
            if rollout.reward is None or (rollout.tape and rollout.tape.broken):
                continue
            if self._keeps is not None and not self._keeps(rollout):
                continue
            heap = best.setdefault(rollout.task_id, [])
            heapq.heappush(heap, (rollout.reward, -place))
            if len(heap) > n:
                heapq.heappop(heap)
        return {-place for heap in best.values() for _, place in heap}


def _rows(
    to: str, rollouts: Iterable[Rollout], hints: str, tokenizer: Tokenizer | None, tools: ToolsOf | None
) -> Iterator[Row]:
    makers: dict[str, Callable[[], Iterator[Row]]] = {
        "sft": lambda: to_sft_rows(rollouts, hints=hints, tools=tools),
        "grpo": lambda: to_grpo_groups(rollouts),
        "dpo": lambda: to_preference_pairs(rollouts, hints=hints, tools=tools),
        "trl": lambda: to_token_rows(rollouts, hints=hints, tokenizer=tokenizer),
        "verl": lambda: _verl_rows(rollouts, hints, tools),
        "hf": lambda: _table_rows(rollouts),
        "parquet": lambda: _table_rows(rollouts),
    }
    if hints != "keep" and to in ("grpo", "hf", "parquet"):
        raise TaskError(f"'{to}' holds the tokens as they were sampled; hints='{hints}' is for sft, dpo, verl and trl.")
    if hints == "mask" and to != "trl":
        raise TaskError(f"hints='mask' marks tokens, and '{to}' holds text. Use --to trl, or hints='strip'.")
    return makers[to]()


def _verl_rows(rollouts: Iterable[Rollout], hints: str, tools: ToolsOf | None) -> Iterator[Row]:
    """verl 0.9: `messages` and `tools` for `MultiTurnSFTDataset`, the other columns for its RL dataset."""
    for index, row in enumerate(to_sft_rows(rollouts, hints=hints, tools=tools)):
        about = {key: row[key] for key in ("rollout_id", "task_id", "category", "model", "stage", "reward")}
        yield {
            "messages": [{"role": message["role"], "content": message["content"]} for message in row["messages"]],
            **({"tools": row["tools"]} if "tools" in row else {}),
            "data_source": row["category"],
            "prompt": [{"role": "user", "content": row["messages"][0]["content"]}],
            "ability": "tool_use",
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": index, "rollout": json.dumps(about)},  # verl asks it for `index`
        }


def _table_rows(rollouts: Iterable[Rollout]) -> Iterator[Row]:
    """One row for each branch; a rollout without tokens is one row with empty ids."""
    for rollout in rollouts:
        about = {
            **origin(rollout),
            "seed": rollout.seed,
            "sample": rollout.sample,
            "solved": rollout.solved,
            "stop_reason": rollout.stop_reason.value,
            "error": rollout.error,
            "n_turns": rollout.n_turns,
            "turn_scores": [turn.score.value for turn in rollout.turns if turn.score],
            "messages": json.dumps(messages_of(rollout.turns)),
        }
        tokens = [
            (branch.prompt_ids, branch.completion_ids, branch.loss_mask, branch.on_policy_mask, branch.logprobs)
            for branch in tape_of(rollout).branches
        ]
        for index, (prompt, completion, mask, on_policy, logprobs) in enumerate(tokens or [((),) * 5]):
            yield {
                **about,
                "branch": index,
                "prompt_ids": list(prompt),
                "completion_ids": list(completion),
                "loss_mask": list(mask),
                "on_policy_mask": list(on_policy),
                "logprobs": list(logprobs),
            }


# --- files ---


def _write_lines(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with replacing(path) as draft, draft.open("wb") as file:
        for row in rows:
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    """Parquet in row groups of a fixed size, so that memory does not grow with the run."""
    parquet = require("pyarrow.parquet", feature="Parquet", install=PARQUET_INSTALL)
    arrow = require("pyarrow", feature="Parquet", install=PARQUET_INSTALL)
    count, writer = 0, None
    with replacing(path) as draft:
        rows = iter(rows)
        while batch := [_encodable(row) for row in islice(rows, _BATCH)]:
            schema = writer.schema if writer else _schema(batch, arrow)
            table = arrow.Table.from_pylist(batch, schema=schema)
            writer = writer or parquet.ParquetWriter(draft, schema, compression="zstd")
            writer.write_table(table)
            count += len(batch)
        if writer:
            writer.close()
    return count


def _schema(batch: list[Row], arrow: Any) -> Any:
    """The columns' types, fixed where the first batch may not show them: an empty list, a missing reward."""
    fixed = {
        "prompt_ids": arrow.list_(arrow.int32()),
        "completion_ids": arrow.list_(arrow.int32()),
        "loss_mask": arrow.list_(arrow.int8()),
        "on_policy_mask": arrow.list_(arrow.int8()),
        "logprobs": arrow.list_(arrow.float32()),
        "turn_scores": arrow.list_(arrow.float64()),
        "reward": arrow.float64(),
        "error": arrow.string(),
    }
    found = arrow.Table.from_pylist(batch).schema
    return arrow.schema([arrow.field(field.name, fixed.get(field.name, field.type)) for field in found])


def _write_dataset(path: Path, rows: Iterable[Row]) -> int:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RecordError(f"{path} exists already; a dataset is written to a new folder.")
    (path / "data").mkdir(parents=True)
    count = _write_parquet(path / "data" / "train-00000-of-00001.parquet", rows)
    (path / "README.md").write_text(_CARD.format(rows=count), encoding="utf-8")
    return count


_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- agents
- tool-use
---

# Rollouts

{rows} token-continuous branches of agent rollouts, one a row. `prompt_ids` and `completion_ids` are the tokens as they
were fed and sampled; `loss_mask` is 1 where the model sampled the token, `on_policy_mask` leaves out replies that a
grammar limited, `logprobs` is 0 for context. `messages` is the whole conversation as JSON. Written by envtune-agents.
"""


def _encodable(value: Any) -> Any:
    """`value` with lone surrogates, which a model may say and UTF-8 cannot hold, replaced."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _encodable(part) for key, part in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], str | dict):
        return [_encodable(part) for part in value]
    return value
