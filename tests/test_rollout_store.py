"""The file of a run: compression, damage, older and newer forms, the manifest, runs beside each other."""

from __future__ import annotations

import json
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from envtune_agents.cli import app
from envtune_agents.errors import RecordError
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import (
    RolloutStore,
    collect,
    from_line,
    read_manifest,
    read_rollouts,
    run_manifest,
    set_aside_errors,
    to_line,
)
from envtune_agents.rollout.runs import differences, find_runs, runs_table
from envtune_agents.testing import ScriptedChatModel, solution_model, tiny_qwen
from envtune_agents.types import SCHEMA_VERSION, Rollout, RolloutStep, RolloutTurn, StopReason, TurnScore

TASKS = playground_tasks(0, 4)


def example(name: str = "t/0/0", tokens: int = 3, **changes: Any) -> Rollout:
    said = tuple(range(1, tokens + 1))
    step = RolloutStep("hé \ud800", (7, 8), said, (-0.5,) * tokens)
    turns = (RolloutTurn("please", (step,), TurnScore(1, 1, 1.0)),)
    fields: dict[str, Any] = {
        "rollout_id": name, "task_id": name.partition("/")[0], "category": "base", "seed": 0, "sample": 0, "model": "m",
        "stage": "", "hint_level": 3, "turns": turns, "n_turns": 1, "reward": 1.0, "stop_reason": StopReason.DONE,
    }  # fmt: skip
    return Rollout(**{**fields, **changes})


def test_a_line_is_a_line_whatever_was_said() -> None:
    said = "é \u2028 \x85 \x1e \ud800 \U0001f642 \r\n \0"
    for text in ("plain", said, said.replace("\ud800", "")):
        step = RolloutStep(text, (7,), (1,), (-0.1,))
        line = to_line(example(turns=(RolloutTurn(text, (step,)),)))
        assert len(line.decode("ascii").splitlines()) == 1
        assert from_line(line).turns == (RolloutTurn(text, (step,)),)


# --- errors set aside ---


@pytest.mark.parametrize("zstd", [False, True])
def test_errors_are_set_aside_and_the_rest_stays_byte_for_byte(tmp_path: Path, zstd: bool) -> None:
    if zstd:
        pytest.importorskip("zstandard")
    good = [example(f"t/0/{sample}", 400) for sample in range(5)]
    bad = [example(f"e/0/{sample}", 400, error="ValueError: no", reward=None) for sample in range(2)]
    for folder, rollouts in (("mixed", [bad[0], *good[:3], bad[1], *good[3:]]), ("clean", good)):
        with RolloutStore(tmp_path / folder, zstd=zstd) as store:
            for rollout in rollouts:
                store.append(rollout)
    name = store.path.name
    assert set_aside_errors(tmp_path / "clean") == 0
    assert not (tmp_path / "clean" / "errors.jsonl").exists()
    assert set_aside_errors(tmp_path / "mixed") == 2
    assert (tmp_path / "mixed" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()
    assert [one.rollout_id for one in read_rollouts(tmp_path / "mixed" / "errors.jsonl")] == ["e/0/0", "e/0/1"]
    assert {path.name for path in (tmp_path / "mixed").iterdir()} == {name, "errors.jsonl"}
    with RolloutStore(tmp_path / "mixed", zstd=zstd) as store:
        assert store.finished == {one.rollout_id for one in good}


# --- zstd ---


def test_a_compressed_run_is_read_and_resumed(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    with RolloutStore(tmp_path, zstd=True) as store:
        written = [store.append(example(f"t/0/{sample}", 500)) for sample in range(20)]
    assert store.path.name == "rollouts.jsonl.zst"
    assert list(read_rollouts(tmp_path)) == written
    with store.path.open("rb") as file:  # any zstd program reads the whole
        text = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    assert text.count(b"\n") == 20
    assert store.path.stat().st_size < len(text) / 3
    with RolloutStore(tmp_path, zstd=True) as store:
        assert len(store.finished) == 20


def test_a_torn_compressed_end_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("zstandard")
    with RolloutStore(tmp_path, zstd=True) as store:
        for sample in range(3):
            store.append(example(f"t/0/{sample}"))
    whole = store.path.read_bytes()
    for cut in (1, 5, 40):
        store.path.write_bytes(whole[:-cut])
        with caplog.at_level(logging.WARNING):
            assert [rollout.rollout_id for rollout in read_rollouts(tmp_path)] == ["t/0/0", "t/0/1"]
        assert "torn" in caplog.text
    with RolloutStore(tmp_path, zstd=True) as store:
        assert store.finished == {"t/0/0", "t/0/1"}
        store.append(example("t/0/2"))
    assert len(list(read_rollouts(tmp_path))) == 3


def test_damage_in_a_compressed_file_names_the_line(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    with RolloutStore(tmp_path, zstd=True) as store:
        store.append(example("t/0/0"))
        end = store.path.stat().st_size
        store.append(example("t/0/1"))
    data = bytearray(store.path.read_bytes())
    data[end : end + 4] = b"junk"
    store.path.write_bytes(data)
    with pytest.raises(RecordError, match="line 2 is damaged"):
        list(read_rollouts(tmp_path))
    with pytest.raises(RecordError, match="line 2 is damaged"), RolloutStore(tmp_path, zstd=True):
        pass


def test_a_run_has_one_form(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    with RolloutStore(tmp_path) as store:
        store.append(example())
    with pytest.raises(RecordError, match=r"holds rollouts\.jsonl"), RolloutStore(tmp_path, zstd=True):
        pass
    (tmp_path / "rollouts.jsonl.zst").write_bytes(b"")
    with pytest.raises(RecordError, match="holds both"):
        list(read_rollouts(tmp_path))
    assert len(list(read_rollouts(tmp_path / "rollouts.jsonl"))) == 1


# --- forms ---


def test_a_record_of_version_1_is_read_as_it_is() -> None:
    record = json.loads(to_line(example()))
    for key in ("tape", "template_hash", "schema_version"):
        del record[key]
    for turn in record["turns"]:
        del turn["evidence"]
    old = from_line(json.dumps(record))
    assert (old.schema_version, old.tape, old.turns[0].evidence) == (1, None, None)
    assert old.turns[0].steps == example().turns[0].steps
    record["a field of the future"] = 1
    assert from_line(json.dumps(record)) == old


def test_a_record_of_a_newer_version_says_what_to_do() -> None:
    record = json.loads(to_line(example())) | {"schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(RecordError, match="Install a newer one"):
        from_line(json.dumps(record))


@pytest.mark.parametrize(
    "junk", [b"\x1f\x8b\x08\x00 gzip\n", b"\xff\xfe\x00\n", b"<html>\n", b"[1, 2]\n", b"\x00" * 99 + b"\n"]
)
def test_a_file_that_is_something_else_is_an_error(junk: bytes, tmp_path: Path) -> None:
    (tmp_path / "rollouts.jsonl").write_bytes(junk)
    with pytest.raises(RecordError, match="line 1"):
        list(read_rollouts(tmp_path))
    with pytest.raises(RecordError, match="line 1"), RolloutStore(tmp_path):
        pass


def test_every_record_that_is_written_is_checked(tmp_path: Path) -> None:
    (turn,) = example().turns
    (step,) = turn.steps
    broken = RolloutTurn(turn.user, (RolloutStep(step.reply, (7,), (1, 2), (-0.5,)),), turn.score)
    with RolloutStore(tmp_path) as store:
        store.append(example("t/0/0"))
        store.append(example("t/0/1", turns=(broken,)))
        store.append(example("t/0/2", turns=()))
    good, bad, empty = read_rollouts(tmp_path)
    assert good.tape
    assert good.tape.note == ""
    assert bad.tape
    assert bad.tape.broken
    assert "log-probabilities" in bad.tape.note
    assert empty.tape
    assert "no trainable token" in empty.tape.note


def test_reading_holds_one_rollout_at_a_time(tmp_path: Path) -> None:
    with RolloutStore(tmp_path) as store:
        for sample in range(300):
            store.append(example(f"t/0/{sample}", 1_000))
    rollouts = read_rollouts(tmp_path)
    next(rollouts)
    tracemalloc.start()
    for _ in range(20):
        next(rollouts)
    early = tracemalloc.get_traced_memory()[1]
    count = sum(1 for _ in rollouts)
    late = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 279
    assert late < 1.5 * early + 100_000


# --- the manifest and the list of runs ---


async def test_a_run_says_what_it_was_made_with(tmp_path: Path) -> None:
    await collect(TASKS, solution_model(TASKS), Playground, out=tmp_path / "a", hints=2, stage="2", samples=2)
    manifest = read_manifest(tmp_path / "a")
    assert manifest is not None
    assert (manifest.model.name, manifest.model.kind) == ("solution", "ScriptedChatModel")
    assert (manifest.n_tasks, manifest.samples, len(manifest.data_sha256)) == (4, 2, 64)
    assert manifest.settings["dial"]["level"] == 2
    assert manifest.settings["stage"] == "2"
    assert "langgraph" in manifest.versions
    again = run_manifest(solution_model(TASKS), TASKS, settings=manifest.settings, samples=2)
    assert again.data_sha256 == manifest.data_sha256
    assert run_manifest(solution_model(TASKS), TASKS[1:]).data_sha256 != manifest.data_sha256


def test_a_local_checkpoint_is_known_by_its_files(tmp_path: Path) -> None:
    from envtune_agents.chat_model import ChatTransformers

    one, other = tiny_qwen(tmp_path / "one"), tiny_qwen(tmp_path / "other", seed=1)
    prints = [run_manifest(ChatTransformers(model=path)).model for path in (one, one, other)]
    assert prints[0] == prints[1]
    assert prints[0].sha256 != prints[2].sha256
    assert len(prints[0].template_hash) == 16
    assert prints[0].decoding["temperature"] == 0.7


async def test_settings_of_version_1_still_guard_a_run(tmp_path: Path) -> None:
    model = ScriptedChatModel(script=["Hm."])
    await collect(TASKS[:1], model, Playground, out=tmp_path)
    settings = dict(read_manifest(tmp_path).settings) | {"model": "scripted", "decoding": {}}  # type: ignore[union-attr]
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert (await collect(TASKS, model, Playground, out=tmp_path)).skipped == 1
    with pytest.raises(RecordError, match="seed was 0, is 1"):
        await collect(TASKS, model, Playground, out=tmp_path, seed=1)
    (tmp_path / "run.json").write_text("{torn")
    with pytest.raises(RecordError, match=r"Cannot read .*run\.json"):
        await collect(TASKS, model, Playground, out=tmp_path)


async def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{torn")
    with pytest.raises(RecordError, match=r"Cannot read .*manifest\.json"):
        await collect(TASKS, solution_model(TASKS), Playground, out=tmp_path)


async def test_runs_are_listed_and_compared(tmp_path: Path) -> None:
    await collect(TASKS, solution_model(TASKS), Playground, out=tmp_path / "runs" / "a", hints=0)
    await collect(TASKS[:2], ScriptedChatModel(script=["Hm."]), Playground, out=tmp_path / "runs" / "b", hints=3)
    damaged = tmp_path / "runs" / "c"
    damaged.mkdir()
    (damaged / "rollouts.jsonl").write_bytes(to_line(example()) + b"{junk\n")
    runs = {run.folder.name: run for run in find_runs([tmp_path / "runs"])}
    assert (runs["a"].rollouts, runs["a"].solved, runs["a"].reward) == (4, 4, 1.0)
    assert (runs["b"].rollouts, runs["b"].solved) == (2, 0)
    assert "line 2 is damaged" in runs["c"].problem
    assert runs["c"].rollouts == 1
    differing = differences([runs["a"], runs["b"]])
    assert set(differing) >= {"model", "tasks", "dial"}
    assert "seed" not in differing
    console = Console(width=200)
    with console.capture() as captured:
        console.print(runs_table(list(runs.values())))
    assert "solution" in captured.get()
    shown = CliRunner().invoke(app, ["runs", str(tmp_path / "runs")])
    assert "dial" in shown.stdout
    assert "line 2 is damaged" in shown.stderr
    with pytest.raises(RecordError, match="No runs in"):
        find_runs([tmp_path / "nowhere"])
