"""`envtune hints`: what hints did in a run, and where new rules come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from envtune_agents.cli.app import app, err, out, print_json
from envtune_agents.cli.options import JsonOption, split_names

if TYPE_CHECKING:
    from envtune_agents.ledger import Audit, HintReport, TokenCounter
    from envtune_agents.types import Rollout

hints_app = typer.Typer(
    name="hints",
    help="What hints did in a run: report, audit, replay. Where rules come from: check, mine, write.",
    epilog="Example: envtune hints report runs/demo",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(hints_app)

RunArgument = Annotated[Path, typer.Argument(help="Folder of the run, or its rollouts.jsonl.")]
TokenizerOption = Annotated[
    str | None,
    typer.Option(help="Whose tokens are counted: a folder, a GGUF file or smollm2; the run's own model by default."),
]
SourceOption = Annotated[
    str | None,
    typer.Option("--tasks", help="Where the run's tasks come from; guessed from their ids by default."),
]


@hints_app.command(name="report")
def report_command(
    run: RunArgument,
    baseline: Annotated[
        Path | None, typer.Option(help="A run of the same tasks at level 0; its failures join the comparison.")
    ] = None,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """For each rule of a run: how often shown, how often taken up, steps saved, tokens spent, in how many tasks.

    Example: envtune hints report runs/demo
    """
    from envtune_agents.errors import RecordError
    from envtune_agents.ledger import hint_report
    from envtune_agents.rollout import read_rollouts

    counter = _counter(run, tokenizer)
    report = hint_report(read_rollouts(run), counter, baseline=read_rollouts(baseline) if baseline else ())
    if not report.rollouts:
        raise RecordError(f"{run} holds no rollouts. Collect some first: envtune collect --out {run}")
    if as_json:
        print_json(report.to_plain())
    else:
        _show_report(report)


@hints_app.command(name="audit")
def audit_command(
    run: RunArgument,
    tokenizer: TokenizerOption = None,
    own_hint_tools: Annotated[
        str | None, typer.Option(help="Comma-separated tools that answer with a key 'hint' of their own.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Audit every rollout, whatever its stage.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fail, with exit code 1, if a run of stage 4 or an evaluation holds one hint token.

    Example: envtune hints audit runs/stage4
    """
    from dataclasses import asdict

    from envtune_agents.ledger import audit_run

    audit = audit_run(
        run, _counter(run, tokenizer), own_hint_tools=split_names(own_hint_tools) or (), everything=everything
    )
    if as_json:
        print_json({**asdict(audit), "clean": audit.clean})
    else:
        _show_audit(audit)
    if not audit.clean:
        raise typer.Exit(1)


@hints_app.command(name="check")
def check_command(
    rules: Annotated[Path, typer.Argument(help="The YAML file.")],
    as_json: JsonOption = False,
) -> None:
    """Check a rule file: exit code 2 with file and line if it is wrong, 1 if a TODO is left, else a summary.

    Example: envtune hints check my_rules.yaml
    """
    from envtune_agents.hint_rules import load_rules
    from envtune_agents.mining import open_todos, rule_summary

    table, todos = rule_summary(rules), open_todos(rules)
    if as_json:
        names = [rule.name for rule in load_rules(rules)]
        print_json({"rules": names, "todos": [{"line": line, "text": text} for line, text in todos]})
    else:
        out.print(table)
        for line, text in todos:
            out.print(f"{escape(str(rules))}, line {line}: {escape(text)}", soft_wrap=True)
        if todos:
            out.print(f"{len(todos)} places are still to do; the rules load, but are not ready for an agent.")
    if todos:
        raise typer.Exit(1)


@hints_app.command(name="mine")
def mine_command(
    run: RunArgument,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The draft; it is printed when no file is given.")
    ] = None,
    unasked: Annotated[
        bool, typer.Option("--all", help="Also failures of rollouts at level 0, where no rule was asked.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rules.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draft rules for the failures that no rule answered: a YAML file with TODOs, ready to edit.

    Example: envtune hints mine runs/demo --out drafts.yaml
    """
    from envtune_agents.mining import draft_rules, mine_failures
    from envtune_agents.rollout import read_rollouts

    mined = mine_failures(read_rollouts(run), unasked=unasked)
    clusters = mined.clusters[:limit]
    draft = draft_rules(clusters)
    if out_file:
        write_new(out_file, draft)
    if as_json:
        print_json(
            {
                "failures": mined.failures,
                "unanswered": mined.unanswered,
                "rules": [
                    {"tool": c.tool, "kind": c.kind, "message": c.message, "count": c.count, "tasks": len(c.tasks)}
                    for c in clusters
                ],
            }
        )
    elif not out_file:
        out.out(draft, end="", highlight=False)
    drafts = "1 draft" if len(clusters) == 1 else f"{len(clusters)} drafts"
    note = f"{mined.unanswered} of {mined.failures} failures were answered by no rule: {drafts}"
    err.print(note + (f" in {out_file}" if out_file else ""), soft_wrap=True)
    if mined.unasked and not unasked:
        note = f"{mined.unasked} failures at level 0, where no rule was asked, were left out; --all takes them in"
        err.print(note, soft_wrap=True)


def write_new(path: Path, text: str) -> None:
    """Writes a draft; a file that is there already is somebody's work and is refused."""
    from envtune_agents.errors import HintRuleError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise HintRuleError(f"{path} is there already, perhaps with your edits. Choose another --out.") from error
    except OSError as error:
        raise HintRuleError(f"Cannot write {path}: {error.strerror}. Choose another --out.") from error


def rollouts_of(run: Path) -> list[Rollout]:
    """The rollouts of a run; one without any is a user error."""
    from envtune_agents.errors import RecordError
    from envtune_agents.rollout import read_rollouts

    rollouts = list(read_rollouts(run))
    if not rollouts:
        raise RecordError(f"{run} holds no rollouts. Collect some first: envtune collect --out {run}")
    return rollouts


def _counter(run: Path, tokenizer: str | None) -> TokenCounter:
    from envtune_agents.ledger import token_counter, tokenizer_of_run
    from envtune_agents.rollout import read_rollouts

    with err.status("reading the run and its tokenizer"):
        return token_counter(tokenizer) if tokenizer else tokenizer_of_run(read_rollouts(run))


def _show_report(report: HintReport) -> None:
    from rich.table import Table

    hinted = sum(row.shown for row in report.rules)
    out.print(
        f"{report.rollouts} rollouts, {report.calls} calls, {report.failures} failures, {hinted} of them hinted",
        soft_wrap=True,
    )
    if not report.rules:
        out.print("no hint was shown in this run")
        return
    table = Table(box=None, header_style="bold cyan", padding=(0, 1, 0, 0))
    table.add_column("rule", overflow="fold")
    for name in ("shown", "uptake", "steps saved", "tokens", "tasks"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rules:
        saved = "–" if row.steps_saved is None else f"{row.steps_saved:+.1f}"
        uptake = f"{row.fixed} of {row.shown}"
        table.add_row(escape(row.rule), f"{row.shown}", uptake, saved, f"{row.tokens:,}", f"{row.tasks}")
    out.print(table)
    compared = ", ".join(f"{kind.value} {count}" for kind, count in sorted(report.baseline_failures.items()))
    out.print(f"tokens: {escape(report.tokenizer)}{'' if report.tokens_exact else ' (estimated)'}", soft_wrap=True)
    suspects = sum(row.suspects for row in report.rules)
    if suspects:
        out.print(f"{suspects} hints may have leaked: the next success used a value that only the hint had shown")
    out.print(f"steps saved: a hint, against unhinted failures ({compared or 'none in this run'})", soft_wrap=True)


def _show_audit(audit: Audit) -> None:
    for found in audit.findings:
        where = f"{found.rollout_id}, turn {found.turn + 1}"
        where += f", step {found.step + 1}" if found.step >= 0 else ""
        out.print(f"[red]{found.place}[/red] {escape(where)}: {escape(found.text)}", soft_wrap=True)
    if not audit.audited:
        out.print(f"{audit.rollouts} rollouts, none of stage 4 or an evaluation: nothing to audit (--all audits them)")
        return
    tokens = sum(found.tokens for found in audit.findings)
    verdict = "no hint token" if audit.clean else f"{tokens} hint tokens in {len(audit.findings)} places"
    out.print(f"{audit.audited} of {audit.rollouts} rollouts audited: {verdict}", style="bold", soft_wrap=True)
    for note in _notes(audit):
        err.print(f"[yellow]warning:[/yellow] {note}", soft_wrap=True)


def _notes(audit: Audit) -> list[Any]:
    notes = []
    if audit.dial_on:
        notes.append(f"{audit.dial_on} of them were recorded with the dial above 0: collect them with --hints 0.")
    if audit.prompts_unread:
        notes.append(
            f"the prompt tokens of {audit.prompts_unread} model calls were not read, for want of their tokenizer. "
            "Name it: --tokenizer FOLDER"
        )
    return notes
