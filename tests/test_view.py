from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from envtune_agents.cli import app
from envtune_agents.errors import FilterError, RecordError
from envtune_agents.rollout import RolloutStore
from envtune_agents.types import (
    CallOutcome,
    FailureKind,
    Hint,
    Rollout,
    RolloutStep,
    RolloutTurn,
    StopReason,
    TapeFacts,
    Timings,
    ToolFailure,
    TurnEvidence,
    TurnScore,
    Usage,
)
from envtune_agents.view import run_text, write_report

EVIL = (
    "\x1b]0;owned\x07<script>window.pwned=1</script>"
    '<img src=x onerror="window.pwned=1">\u2028</script>{{SCRIPT}}&amp;\ud800'
)
RAW = '{"error": "no such room"}'


def made(task: str, sample: int, reward: float | None, *, stage: str = "1", evil: bool = False) -> Rollout:
    words = EVIL if evil else "I could not."
    hint = Hint("schema.wrong_type", 3, "Use a room.")
    outcome = CallOutcome(
        words if evil else "list_items",
        {"room": words},
        f'{RAW[:-1]}, "hint": "Use a room. {words}"}}' if not evil else words,
        RAW,
        ToolFailure(FailureKind.TOOL_ERROR, words),
        hint,
    )
    call = RolloutStep(words, (1, 2), (3, 4), (-0.1, -4.0), False, "tool_calls", (outcome,), 0.5)
    end = RolloutStep(words, (1, 2, 3, 4, 5), (6,), (-0.2,), True, "stop")
    evidence = TurnEvidence(
        0,
        {"Room": False, "Stock": True},
        {"0:list": False},
        differences={"Room": "door: wanted 'open', found 'shut'", "0:list": f"missing {words}"},
        changes={"Room.door": "'shut' -> 'ajar'"},
    )
    turns = (RolloutTurn(words if evil else "Open the door.", (call, end), TurnScore(0, 0, reward or 0), evidence),)
    return Rollout(
        rollout_id=f"{task}/0/{sample}",
        task_id=task,
        category=words if evil else "base",
        seed=0,
        sample=sample,
        model="m",
        stage=stage,
        hint_level=3,
        turns=turns,
        n_turns=1,
        reward=reward,
        stop_reason=StopReason.ERROR if reward is None else StopReason.DONE,
        error=f"ValueError: {words}" if reward is None else None,
        usage=Usage(10, 3),
        timings=Timings(1.5),
        tape=TapeFacts(1, 0, 0, 3, 2),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view") / "run"
    with RolloutStore(folder) as store:
        store.append(made("evil", 0, 0.0, evil=True))
        store.append(made("evil", 1, None, evil=True))
        for task in range(50):
            for sample in range(2):
                store.append(made(f"task_{task}", sample, sample / 1, stage="1" if task < 25 else "2"))
    return folder


def test_the_page_holds_no_text_of_a_model_as_markup(run: Path, tmp_path: Path) -> None:
    done = write_report(run, tmp_path / "report.html")
    page = done.path.read_text()
    assert done.rollouts == 102
    assert page.count("<script") == page.count("</script>") == 1 + 1 + 6  # head, chunks of 20 and the page's own
    assert "pwned" not in page
    assert "onerror" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page
    assert "{{" not in page.partition("<script>")[0]


def test_a_page_can_be_filtered_and_limited(run: Path, tmp_path: Path) -> None:
    assert write_report(run, tmp_path / "a.html", where="reward == 1").rollouts == 50
    assert write_report(run, tmp_path / "a.html", limit=7).rollouts == 7
    assert write_report([run, run], tmp_path / "a.html").rollouts == 204
    with pytest.raises(RecordError, match="Nothing to show"):
        write_report(run, tmp_path / "b.html", where="reward > 1")
    with pytest.raises(FilterError):
        write_report(run, tmp_path / "b.html", where="reward >")
    with pytest.raises(RecordError, match="No rollouts"):
        write_report(tmp_path / "nowhere", tmp_path / "b.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="Cannot write"):
        write_report(run, tmp_path / "file" / "b.html")
    assert not (tmp_path / "b.html").exists()


def shown(thing: Any) -> str:
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(thing, soft_wrap=True)
    return captured.get()


def test_text_shows_the_worst_first_with_the_reason(run: Path) -> None:
    text = shown(run_text(run, where="category == 'base'", limit=1))
    assert "100 rollouts: 50 solved" in text
    assert "reward 0.00" in text
    assert "why    state Room: door: wanted 'open', found 'shut'" in text
    assert "hint   [schema.wrong_type] Use a room." in text
    assert "task_0/0/1" not in text
    with pytest.raises(RecordError, match="Nothing to show"):
        run_text(run, where="reward > 1")


def test_the_command_writes_a_page_or_text(run: Path, tmp_path: Path) -> None:
    def envtune(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["view", *arguments])

    done = envtune(str(run), "--out", str(tmp_path / "report.html"), "--limit", "3")
    assert "3 rollouts" in done.stdout, done.exception
    assert (tmp_path / "report.html").exists()
    text = envtune(str(run), "--text").stdout
    assert "reward" in text
    assert "\x1b]0;" not in text
    failed = envtune(str(run), "--where", "rewrad > 0", "--text")
    assert "unknown name 'rewrad'" in str(failed.exception)


# --- in a real browser ---

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    report = write_report(
        run, tmp_path_factory.mktemp("page") / "report.html", decode=lambda ids: f"«{list(ids)}»"
    ).path
    with driver.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 800}, color_scheme="light")
        page.seen = []
        page.on("request", lambda request: page.seen.append(request.url))
        page.on("pageerror", lambda error: page.seen.append(f"error: {error}"))
        page.on("console", lambda message: page.seen.append(f"console: {message.text}"))
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        yield page
        assert page.seen == [report.as_uri()]
        browser.close()


def clear(page: Any) -> None:
    for control in ("run", "stage", "category", "outcome"):
        page.select_option(f"#{control}", "")
    page.fill("#search", "")
    page.keyboard.press("Escape")


def test_a_rollout_that_tries_a_script_is_only_text(page: Any) -> None:
    clear(page)
    page.click(".chip[data-index='0']")
    page.wait_for_selector("h2.title:has-text('evil/0/0')")
    assert "<script>window.pwned=1</script>" in page.inner_text(".reply pre >> nth=0")
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.querySelectorAll('article script, article img').length") == 0
    page.click(".chip[data-index='1']")
    page.wait_for_selector("p.bad:has-text('<script>')")
    assert page.evaluate("window.pwned") is None


def test_filters_search_and_pages(page: Any) -> None:
    clear(page)
    assert "page 1 of 2, 51 groups, 102 rollouts" in page.inner_text("#pager")
    page.keyboard.press("n")
    assert "page 2 of 2" in page.inner_text("#pager")
    page.select_option("#outcome", "zero")
    assert "51 rollouts" in page.inner_text("#pager")
    page.select_option("#stage", "2")
    assert "25 rollouts" in page.inner_text("#pager")
    clear(page)
    page.fill("#search", "task_31")
    assert "1 groups, 2 rollouts" in page.inner_text("#pager")
    page.fill("#search", "window.pwned")
    page.press("#search", "Enter")
    page.wait_for_selector("#pager:has-text('2 rollouts')")
    page.fill("#search", "nothing like it")
    assert "No rollout passes" in page.inner_text("#groups")
    clear(page)
    assert page.inner_text("#overview").count("stage") >= 1


def test_one_rollout_shows_hint_reason_change_and_tokens(page: Any) -> None:
    clear(page)
    page.click(".chip[data-index='2']")
    page.wait_for_selector("h2.title:has-text('task_0/0/0')")
    assert page.inner_text(".call ins") == ', "hint": "Use a room. I could not."'
    why = page.inner_text(".checks")
    for part in ("✗ state Room", "wanted 'open', found 'shut'", "✓ state Stock", "✗ result 0:list", "'shut' -> 'ajar'"):
        assert part in why
    assert "2 context tokens, mask 0" in page.inner_text(".tokens >> nth=0")
    odd = page.eval_on_selector_all(
        ".token", "nodes => nodes.map(node => getComputedStyle(node).getPropertyValue('--odd'))"
    )
    assert odd == ["0.020", "0.800", "0.040"]
    colours = page.eval_on_selector_all(".token", "nodes => nodes.map(node => getComputedStyle(node).backgroundColor)")
    assert len(set(colours)) == 3
    assert page.eval_on_selector_all(".token.limited", "nodes => nodes.length") == 1


def test_keys_and_themes(page: Any) -> None:
    clear(page)
    page.click(".chip[data-index='2']")
    page.wait_for_selector("h2.title:has-text('task_0/0/0')")
    page.keyboard.press("j")
    page.wait_for_selector("h2.title:has-text('task_0/0/1')")
    page.keyboard.press("k")
    page.wait_for_selector("h2.title:has-text('task_0/0/0')")
    page.keyboard.press("t")
    assert not page.is_visible(".tokens >> nth=0")
    page.keyboard.press("t")
    page.keyboard.press("o")
    assert page.get_attribute("details.turn", "open") is None
    page.keyboard.press("o")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Escape")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("d")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.keyboard.press("d")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    assert len(page.screenshot()) > 20_000


def test_records_of_version_1_are_shown(run: Path, tmp_path: Path) -> None:
    line = (run / "rollouts.jsonl").read_bytes().splitlines()[2]
    record = json.loads(line)
    for key in ("tape", "template_hash", "schema_version"):
        record.pop(key)
    for turn in record["turns"]:
        turn.pop("evidence")
    old = tmp_path / "old"
    old.mkdir()
    (old / "rollouts.jsonl").write_text(json.dumps(record) + "\n")
    assert write_report(old, tmp_path / "old.html").rollouts == 1
    assert "reward" in shown(run_text(old))
