"""A report for people: text for a terminal, Markdown for a repository, one HTML page for a browser.

The HTML page loads nothing, runs no script, and shows whatever a model or a task says as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from envtune_agents.evaluate.grids import Grid, accuracy_grid, chances_grid, facts, grids, notes
from envtune_agents.evaluate.report import Report

if TYPE_CHECKING:
    from rich.table import Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
tr.total td { font-weight: 600; }
td.solved { color: #087443; } td.unsolved { color: #b42318; }
.words td { text-align: left; overflow-wrap: anywhere; }
p.note { border-left: 4px solid #d98e04; padding-left: .8rem; }
@media (prefers-color-scheme: dark) { body { background: #16181d; color: #e6e6e6; } td, th { border-color: #333; } }
""".strip()


def report_text(report: Report) -> str:
    """The accuracy table, the chances of several samples and the notes: plain text, 80 columns wide for usual names."""
    shown = [accuracy_grid(report), *([chances_grid(report)] if report.manifest.samples > 1 else [])]
    return "\n".join([*(line for grid in shown for line in _text_lines(grid)), *notes(report)])


def _text_lines(grid: Grid) -> Iterator[str]:
    rows = [list(grid.header), *[list(row) for row in grid.rows]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(grid.header))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()


def rich_tables(report: Report) -> list[Table]:
    """Every table of a report, for a rich console."""
    from rich.table import Table

    shown = []
    for grid in grids(report):
        table = Table(box=None, header_style="bold cyan", padding=(0, 1, 0, 0))
        first = grid.header[0] if grid.header[0] == "category" else grid.title
        for column, name in enumerate([first, *grid.header[1:]]):
            table.add_column(name, justify="left" if column == 0 else "right", no_wrap=True)
        for number, row in enumerate(grid.rows):
            if grid.total_rows and number == len(grid.rows) - grid.total_rows:
                table.add_section()
            table.add_row(*row)
        shown.append(table)
    return shown


def markdown(report: Report) -> str:
    """The report as Markdown."""
    made = report.manifest
    lines = [
        f"# {_cell(made.model.name)} on {_cell(made.source or 'tasks given in Python')} {_cell(made.split)}".rstrip()
    ]
    lines += [part for note in notes(report) for part in ("", f"> {note}")]
    for grid in grids(report):
        lines += ["", f"## {grid.title.capitalize()}", "", *_markdown_table(grid)]
    lines += ["", "## Made with", ""]
    lines += [f"- {name}: `{value.replace('`', chr(39))}`" for name, value in facts(report)]
    return "\n".join(lines) + "\n"


def html_page(report: Report) -> str:
    """The report as one HTML page that needs nothing else."""
    made = report.manifest
    title = escape(f"{made.model.name} on {made.source or 'tasks given in Python'} {made.split}".strip())
    parts = ["<!doctype html>", '<html lang="en"><meta charset="utf-8">', f"<title>{title}</title>"]
    parts += [f"<style>{_STYLE}</style>", f"<h1>{title}</h1>"]
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes(report)]
    for grid in grids(report):
        parts += [f"<h2>{escape(grid.title.capitalize())}</h2>", *_html_table(grid)]
    parts += ["<h2>Made with</h2>", '<table class="words">']
    parts += [f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts(report)]
    parts += ["</table>", "<h2>Episodes</h2>", *_html_entries(report), "</html>"]
    return "\n".join(parts) + "\n"


def _markdown_table(grid: Grid) -> Iterator[str]:
    yield "| " + " | ".join(_cell(name) or " " for name in grid.header) + " |"
    yield "|---" + "|---:" * (len(grid.header) - 1) + "|"
    for number, row in enumerate(grid.rows):
        bold = "**" if number >= len(grid.rows) - grid.total_rows else ""
        yield "| " + " | ".join(f"{bold}{_cell(cell)}{bold}" if cell else " " for cell in row) + " |"


def _html_table(grid: Grid) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{escape(name)}</th>" for name in grid.header) + "</tr>"
    for number, row in enumerate(grid.rows):
        kind = ' class="total"' if number >= len(grid.rows) - grid.total_rows else ""
        yield f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</table>"


def _html_entries(report: Report) -> Iterator[str]:
    names = ("task", "sample", "verdict", "turns", "steps", "calls", "failed", "tokens out", "seconds", "error")
    yield "<table><tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"
    for entry in report.entries:
        verdict = "solved" if entry.solved else "unsolved"
        cells = (
            f"{entry.turns_solved} of {entry.n_turns}",
            f"{entry.steps}",
            f"{entry.calls}",
            f"{sum(entry.failures.values())}",
            f"{entry.output_tokens:,}",
            f"{entry.total_s:.1f}",
            escape(entry.error or ""),
        )
        yield (
            f'<tr><td>{escape(entry.task_id)}</td><td>{entry.sample}</td><td class="{verdict}">'
            f"{escape(entry.error_type or verdict)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    yield "</table>"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
