"""A report as tables of text, for every form it is shown in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from envtune_agents.evaluate.entry import NOT_PLAYED, Entry
from envtune_agents.evaluate.files import ks
from envtune_agents.evaluate.report import Report
from envtune_agents.evaluate.score import Score

OVERALL = "OVERALL"


@dataclass(frozen=True, slots=True)
class Grid:
    """One table: its first column is text, the others are numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    total_rows: int = 0
    """How many of the last rows sum up the ones before."""


def grids(report: Report) -> list[Grid]:
    """Every table of a report that has something to say."""
    tables = [
        accuracy_grid(report),
        *([chances_grid(report)] if report.manifest.samples > 1 else []),
        _counts(
            "why episodes are unsolved", "error", (entry.error_type for entry in report.entries if not entry.solved)
        ),
        _counts("how episodes ended", "end", (entry.ended for entry in report.entries)),
        _counts("failed calls", "kind", _failure_kinds(report.entries)),
        cost_grid(report),
    ]
    return [table for table in tables if table.rows]


def accuracy_grid(report: Report) -> Grid:
    """Correct, total and accuracy as on a model card, each accuracy with its interval."""
    by_category = _by_category(report)
    rows = [_accuracy_row(name, report.score_of(entries), entries) for name, entries in by_category.items()]
    rows.append(_accuracy_row(OVERALL, report.score, report.entries))
    if len(by_category) > 1:
        rows.append(["mean of categories", "", "", f"{report.category_mean:.2%}", "", ""])
    header = ["category", "correct", "total", "accuracy", "95% interval", "turns solved"]
    return Grid("accuracy", header, rows, total_rows=min(2, len(by_category)))


def chances_grid(report: Report) -> Grid:
    """pass@k and pass^k."""
    shown = ks(report.manifest.samples)
    rows = [
        ["pass@k: at least one of k", *(f"{report.pass_at(k):.2%}" for k in shown)],
        ["pass^k: all of k", *(f"{report.pass_hat(k):.2%}" for k in shown)],
    ]
    title = f"{report.manifest.samples} episodes of each task"
    return Grid(title, [title, *(f"k = {k}" for k in shown)], rows)


def cost_grid(report: Report) -> Grid:
    """Model calls, tool calls, tokens and time."""
    by_category = _by_category(report)
    rows = [_cost_row(name, entries) for name, entries in by_category.items()]
    rows.append(_cost_row(OVERALL, report.entries))
    tokens = ("tokens\nin", "tokens\ncached", "tokens\nout")
    header = ["category", "steps", "calls", "calls\nfailed", *tokens, "seconds", "in\nmodel"]
    return Grid("cost", header, rows, total_rows=1)


def notes(report: Report) -> list[str]:
    """What a reader must know beside the tables, one sentence each."""
    said = []
    missing = sum(entry.ended == NOT_PLAYED for entry in report.entries)
    if missing:
        played = len(report.entries) - missing
        said.append(
            f"INTERRUPTED: {played} of {len(report.entries)} episodes were played; the others count as unsolved. Run "
            "the same command again to go on."
        )
    errors = Counter(entry.error for entry in report.entries if entry.error is not None)
    if errors:
        text, times = errors.most_common(1)[0]
        said.append(
            f"{errors.total()} of {len(report.entries)} episodes ended with an error and count as unsolved; "
            f"--retry-errors plays them again. Most often ({times}): {text}"
        )
    if report.flagged:
        rest = report.score_without_flagged
        solved = len({entry.task_id for entry in report.entries if entry.solved and entry.task_id in report.flagged})
        said.append(
            f"{len(report.flagged)} tasks are flagged for a bad label ({solved} solved all the same); without them "
            f"{rest.correct} of {rest.total}: {_percent(rest)}."
        )
    if report.manifest.samples > 1 and report.manifest.model.decoding.get("temperature") == 0:
        said.append("The model decodes greedily, so the samples of a task are alike: set a temperature.")
    return said


def facts(report: Report) -> list[tuple[str, str]]:
    """What the report was made with, as names and values."""
    made = report.manifest
    pairs = [
        (
            "model",
            f"{made.model.name} ({made.model.kind}{', ' + made.model.precision if made.model.precision else ''})",
        ),
        ("model sha256", made.model.sha256),
        ("endpoint", made.model.endpoint),
        ("template", made.model.template_hash),
        ("decoding", ", ".join(f"{name} {value}" for name, value in made.model.decoding.items())),
        ("tasks", f"{made.source or 'given in Python'}, split {made.split or '-'}, {len(made.task_hashes)} tasks"),
        ("data sha256", made.data_sha256),
        ("checker", ", ".join(f"{name} {value}" for name, value in made.fingerprint.items())),
        ("turn loop", ", ".join(f"{name} {value}" for name, value in made.settings.items())),
        ("samples, seed", f"{made.samples}, {made.seed}"),
        ("versions", ", ".join(f"{name} {value}" for name, value in made.versions.items())),
        ("command", made.command),
        ("finished", f"{made.finished}, after {made.wall_s:,.1f} s for {made.played} episodes"),
    ]
    return [(name, value) for name, value in pairs if value]


def _accuracy_row(name: str, score: Score, entries: Sequence[Entry]) -> list[str]:
    turns = sum(entry.turns_solved for entry in entries)
    return [
        name,
        f"{score.correct}",
        f"{score.total}",
        f"{float(score):.2%}",
        f"{100 * score.low:.1f}–{100 * score.high:.1f}%",
        f"{turns / max(1, sum(entry.n_turns for entry in entries)):.1%}",
    ]


def _cost_row(name: str, entries: Sequence[Entry]) -> list[str]:
    return [
        name,
        f"{sum(entry.steps for entry in entries):,}",
        f"{sum(entry.calls for entry in entries):,}",
        f"{sum(sum(entry.failures.values()) for entry in entries):,}",
        _short(sum(entry.input_tokens for entry in entries)),
        _short(sum(entry.cached_tokens for entry in entries)),
        _short(sum(entry.output_tokens for entry in entries)),
        f"{sum(entry.total_s for entry in entries):,.0f}",
        f"{sum(entry.model_s for entry in entries):,.0f}",
    ]


def _counts(title: str, what: str, values: Iterable[str | None]) -> Grid:
    counted = Counter(value or "unknown" for value in values)
    return Grid(title, [what, "number"], [[value, f"{count:,}"] for value, count in counted.most_common()])


def _failure_kinds(entries: Iterable[Entry]) -> Iterable[str]:
    for entry in entries:
        for kind, count in entry.failures.items():
            yield from [kind] * count


def _by_category(report: Report) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in report.entries:
        found.setdefault(entry.category, []).append(entry)
    return found


def _short(count: int) -> str:
    """A count in at most six characters: 950, 12.3k, 4.56M."""
    if count < 1000:
        return f"{count}"
    return f"{count / 1e3:.1f}k" if count < 1e6 else f"{count / 1e6:.2f}M"


def _percent(score: Score) -> str:
    return f"{float(score):.2%}, 95% interval {100 * score.low:.1f}–{100 * score.high:.1f}%"
