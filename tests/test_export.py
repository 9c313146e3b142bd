from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from envtune_agents.cli import app
from envtune_agents.errors import FilterError, RecordError, TaskError
from envtune_agents.export import (
    FORMATS,
    export_rollouts,
    parse_where,
    to_grpo_groups,
    to_preference_pairs,
    to_sft_rows,
    to_token_rows,
)
from envtune_agents.playground import Playground, playground_tasks
from envtune_agents.rollout import RolloutStore, read_rollouts, run_episode
from envtune_agents.tape import branches_of, check_tape
from envtune_agents.testing import tiny_qwen
from envtune_agents.testing.token_script import TokenScript, scripted_logprob, tokenizer_only
from envtune_agents.types import (
    CallOutcome,
    FailureKind,
    Hint,
    Rollout,
    RolloutStep,
    RolloutTurn,
    StopReason,
    Task,
    ToolFailure,
    TurnScore,
)
from envtune_agents.weights import Weights

WRONG = '<tool_call>\n{"name": "pick_items", "arguments": {"item_id": "X"}}\n</tool_call>'
LOOK = '<tool_call>\n{"name": "list_items", "arguments": {"room": "annex"}}\n</tool_call>'


class Letters:
    """A tokenizer of one token a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, token_ids: Any) -> str:
        return "".join(map(chr, token_ids))


def made(
    name: str = "t/0/0", reward: float | None = 1.0, *, first: str = "A", hinted: bool = True, **more: Any
) -> Rollout:
    """Two steps: a failed call with a hint, then words; the tokens are the characters."""
    hint = Hint("rule", 3, "Try B.") if hinted else None
    content = '{"error": "no", "hint": "Try B."}' if hinted else '{"error": "no"}'
    failure = ToolFailure(FailureKind.TOOL_ERROR, "no")
    outcome = CallOutcome("tool", {}, content, '{"error": "no"}', failure, hint)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def step(
        prompt: str, said: str, outcomes: tuple[CallOutcome, ...] = (), *, constrained: bool = False
    ) -> RolloutStep:
        probabilities = tuple(-token / 1000 for token in ids(said))
        return RolloutStep(said, ids(prompt), ids(said), probabilities, constrained, "stop", outcomes)

    again = f"[do]{first}({content})"
    steps = (step("[do]", first, (outcome,), constrained=True), step(again, "B"))
    turn = RolloutTurn("do", steps, TurnScore(1, reward or 0, reward or 0))
    task, _, sample = name.rpartition("/0/")
    fields: dict[str, Any] = {
        "rollout_id": name, "task_id": task, "category": "base", "seed": 0, "sample": int(sample), "model": "m",
        "stage": "", "hint_level": 3, "turns": (turn,), "n_turns": 1, "reward": reward, "stop_reason": StopReason.DONE,
    }  # fmt: skip
    rollout = Rollout(**{**fields, **more})
    return dataclasses.replace(rollout, tape=check_tape(rollout, decode=Letters().decode))


def written(folder: Path, *rollouts: Rollout) -> Path:
    with RolloutStore(folder) as store:
        for rollout in rollouts:
            store.append(rollout)
    return folder


# --- filters ---


@pytest.mark.parametrize(
    ("where", "keeps"),
    [
        ("reward > 0 and hints == 0", False),
        ("reward > 0 and hints == 1", True),
        ("not solved", False),
        ("category in ('base', 'miss_func')", True),
        ("category not in ['base']", False),
        ("0 < reward <= 1", True),
        ("error is None", True),
        ("reward * 2 - 1 == 1 or calls / failures > 3", True),
        ("-reward < 0", True),
        ("'tool' in tools", True),
        ("  stop_reason == 'done'  ", True),
        ("True", True),
    ],
)
def test_a_filter_keeps_what_it_says(where: str, keeps: bool) -> None:
    assert parse_where(where)(made()) is keeps


def test_a_missing_reward_is_neither_more_nor_less() -> None:
    failed = made(reward=None)
    assert not parse_where("reward > 0")(failed)
    assert not parse_where("reward <= 0")(failed)
    assert parse_where("reward is None")(failed)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("reward >", "at character 9"),
        ("reward > 0 and hintz == 0", r"character 16: unknown name 'hintz'"),
        ("__import__('os').system('true')", "Call is not allowed"),
        ("task_id.upper() == 'T'", "Call is not allowed"),
        ("reward.real > 0", "Attribute is not allowed"),
        ("tools[0] == 'x'", "Subscript is not allowed"),
        ("(lambda: 1)()", "Call is not allowed"),
        ("reward ** 99999999", "BinOp is not allowed"),
        ("[x for x in tools]", "ListComp is not allowed"),
        ("f'{reward}'", "JoinedStr is not allowed"),
        ("reward := 1", "at character"),
        ("", "at character"),
        ("reward = 1", "at character"),
        ("\x00", "Cannot read"),
        ("(" * 500 + ")" * 500, "Cannot read|nested too deeply"),
        ("x" * 3000, "at most"),
    ],
)
def test_a_filter_that_does_not_parse_says_where(where: str, says: str) -> None:
    with pytest.raises(FilterError, match=says):
        parse_where(where)


def test_a_filter_that_does_not_fit_names_the_rollout() -> None:
    for where in ("reward > 'much'", "1 / (reward - 1) > 0", "category + 1 == 2"):
        with pytest.raises(FilterError, match="t/0/0"):
            parse_where(where)(made())


# --- rows ---


def test_sft_rows_are_the_conversation_word_for_word() -> None:
    (row,) = to_sft_rows([made()])
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert row["messages"][1]["content"] == "A"
    assert "Try B." in row["messages"][2]["content"]
    (bare,) = to_sft_rows([made()], hints="strip")
    assert bare["messages"][2]["content"] == '{"error": "no"}'
    assert "tools" not in row
    (with_tools,) = to_sft_rows([made()], tools=lambda rollout: [{"name": rollout.task_id}])
    assert json.loads(with_tools["tools"]) == [{"name": "t"}]
    assert list(to_sft_rows([dataclasses.replace(made(), turns=())])) == []


def test_token_rows_carry_the_sampled_tokens() -> None:
    (row,) = to_token_rows([made()])
    (branch,) = branches_of(made())
    assert row["input_ids"] == [*branch.prompt_ids, *branch.completion_ids]
    assert [token for token in row["labels"] if token != -100] == [ord("A"), ord("B")]
    assert sum(row["completion_mask"]) == 2


def test_hints_can_be_cut_out_of_the_context_or_marked() -> None:
    (row,) = to_token_rows([made()], hints="strip", tokenizer=Letters())
    assert Letters().decode(row["input_ids"]) == '[do]A({"error": "no"})B'
    assert Letters().decode([token for token in row["labels"] if token != -100]) == "AB"
    (row,) = to_token_rows([made()], hints="mask", tokenizer=Letters())
    assert Letters().decode(row["input_ids"]) == '[do]A({"error": "no", "hint": "Try B."})B'
    marked = [token for token, hidden in zip(row["input_ids"], row["hint_mask"], strict=True) if hidden]
    assert Letters().decode(marked) == ', "hint": "Try B."'
    assert not any(hidden and label != -100 for hidden, label in zip(row["hint_mask"], row["labels"], strict=True))
    with pytest.raises(TaskError, match="tokenizer"):
        list(to_token_rows([made()], hints="strip"))
    with pytest.raises(TaskError, match="Known: keep, strip, mask"):
        list(to_token_rows([made()], hints="hide"))


def test_groups_hold_on_policy_tokens_and_rewards() -> None:
    rollouts = [made("t/0/0", 1.0), made("t/0/1", 0.0, first="C"), made("u/0/0", 1.0), made("t/0/2", None)]
    (group,) = to_grpo_groups(rollouts)
    assert (group["task_id"], group["reward_mean"], group["reward_std"]) == ("t", 0.5, 0.5)
    assert [row["rollout_id"] for row in group["rollouts"]] == ["t/0/0", "t/0/1"]
    (branch,) = group["rollouts"][0]["branches"]
    said = [token for token, mask in zip(branch["completion_ids"], branch["loss_mask"], strict=True) if mask]
    assert said == [ord("B")]  # "A" was constrained
    assert len(branch["logprobs"]) == len(branch["completion_ids"])


def test_a_group_of_unlike_rollouts_is_refused() -> None:
    with pytest.raises(RecordError, match="mix model 'm' and 'other'"):
        list(to_grpo_groups([made("t/0/0"), made("t/0/1", model="other")]))
    with pytest.raises(RecordError, match="mix hint_level"):
        list(to_preference_pairs([made("t/0/0"), made("t/0/1", hint_level=0)]))
    with pytest.raises(RecordError, match="appears twice"):
        list(to_grpo_groups([made("t/0/0"), made("t/0/0")]))


def test_pairs_part_at_one_reply() -> None:
    rollouts = [made("t/0/0", 0.0, first="C"), made("t/0/1", 1.0), made("t/0/2", 0.0, first="C"), made("t/0/3", 1.0)]
    (pair,) = to_preference_pairs(rollouts)
    assert pair["prompt"] == [{"role": "user", "content": "do"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "A"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "C"}]
    assert (pair["chosen_id"], pair["rejected_reward"]) == ("t/0/1", 0.0)
    assert list(to_preference_pairs(rollouts, margin=1.0)) == []
    other_tool = made("t/0/1", 0.0, hinted=False)
    assert list(to_preference_pairs([made("t/0/0"), other_tool])) == []
    assert list(to_preference_pairs([made("t/0/0"), other_tool], hints="strip")) == []


# --- files ---


def test_best_of_keeps_the_best_of_each_task(tmp_path: Path) -> None:
    run = written(
        tmp_path / "run",
        made("t/0/0", 0.0),
        made("t/0/1", 0.5),
        made("t/0/2", 1.0),
        made("u/0/0", 0.0),
        made("u/0/1", None),
    )
    done = export_rollouts(run, "sft", tmp_path / "out.jsonl", best_of=1)
    assert (done.rows, done.read, done.kept) == (2, 5, 2)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["rollout_id"] for row in rows] == ["t/0/2", "u/0/0"]
    done = export_rollouts(run, "sft", tmp_path / "out.jsonl", best_of=2, where="reward > 0")
    assert done.kept == 2


def test_best_of_a_file_that_mixes_runs_takes_one_of_those_with_the_same_id(tmp_path: Path) -> None:
    runs = [written(tmp_path / str(reward), made("t/0/0", reward)) for reward in (0.2, 0.8, 0.5)]
    mixed, out = tmp_path / "rollouts.jsonl", tmp_path / "out.jsonl"
    mixed.write_bytes(b"".join((run / mixed.name).read_bytes() for run in runs))
    assert export_rollouts(mixed, "sft", out, best_of=1).kept == 1
    assert json.loads(out.read_text())["reward"] == 0.8


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs: /dev/full")
def test_a_full_device_is_said_and_stays_a_device(tmp_path: Path) -> None:
    run = written(tmp_path / "run", made())
    with pytest.raises(RecordError, match="No space left"):
        export_rollouts(run, "sft", "/dev/full")
    assert Path("/dev/full").is_char_device()
    with pytest.raises(RecordError, match="Is a directory"):
        export_rollouts(run, "sft", tmp_path)


def test_a_broken_tape_is_left_out_and_counted(tmp_path: Path) -> None:
    good = made("t/0/1")
    (turn,) = made().turns
    step = dataclasses.replace(turn.steps[0], logprobs=())
    broken = dataclasses.replace(made(), turns=(dataclasses.replace(turn, steps=(step,)),), tape=None)
    run = written(tmp_path / "run", broken, good)
    assert next(read_rollouts(run)).tape.broken  # type: ignore[union-attr]
    done = export_rollouts(run, "trl", tmp_path / "out.jsonl")
    assert (done.kept, done.broken, done.rows) == (1, 1, 1)


@pytest.mark.parametrize("form", ["sft", "grpo", "dpo", "trl"])
def test_json_lines_can_be_read_back(form: str, tmp_path: Path) -> None:
    run = written(tmp_path / "run", made("t/0/0", 1.0), made("t/0/1", 0.0, first="C"))
    done = export_rollouts(run, form, tmp_path / "deep" / "out.jsonl")
    rows = [json.loads(line) for line in done.path.read_text().splitlines()]
    assert len(rows) == done.rows > 0
    assert not list(done.path.parent.glob("*.part"))


@pytest.mark.parametrize("form", ["parquet", "verl", "hf"])
def test_parquet_is_opened_by_arrow(form: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    untraced = made("v/0/0", None, error="X: lone \ud800", turns=(RolloutTurn("hé \ud800", (RolloutStep("x\ud800"),)),))
    run = written(tmp_path / "run", untraced, made("t/0/0", 1.0), made("t/0/1", 0.0, first="C"))
    done = export_rollouts(run, form, tmp_path / "out")
    file = done.path / "data" / "train-00000-of-00001.parquet" if form == "hf" else done.path
    rows = parquet.read_table(file).to_pylist()
    assert len(rows) == done.rows == 3
    if form == "verl":
        assert rows[1]["messages"][0] == {"role": "user", "content": "do"}
        assert json.loads(rows[1]["extra_info"]["rollout"])["rollout_id"] == "t/0/0"
        return
    (branch,) = branches_of(made("t/0/0"))
    assert rows[1]["completion_ids"] == list(branch.completion_ids)
    assert rows[1]["loss_mask"] == list(branch.loss_mask)
    assert rows[1]["logprobs"] == pytest.approx(list(branch.logprobs))
    assert rows[0]["completion_ids"] == []
    if form == "hf":
        assert "data/*.parquet" in (done.path / "README.md").read_text()
        with pytest.raises(RecordError, match="exists already"):
            export_rollouts(run, form, tmp_path / "out")


def test_rollouts_without_tokens_say_which_models_record_them(tmp_path: Path) -> None:
    run = written(tmp_path / "run", dataclasses.replace(made(), turns=()))
    with pytest.raises(RecordError, match=r"the form 'trl'\. It holds sampled tokens"):
        export_rollouts(run, "trl", tmp_path / "out")


def test_what_cannot_be_exported_says_why_and_writes_nothing(tmp_path: Path) -> None:
    run, out = written(tmp_path / "run", made()), tmp_path / "out.jsonl"
    with pytest.raises(TaskError, match="Known: sft, grpo"):
        export_rollouts(run, "csv", out)
    with pytest.raises(RecordError, match="Nothing to export: of 1 rollouts 0 were kept"):
        export_rollouts(run, "sft", out, where="reward > 5")
    with pytest.raises(FilterError):
        export_rollouts(run, "sft", out, where="reward >")
    with pytest.raises(TaskError, match="for sft, dpo"):
        export_rollouts(run, "grpo", out, hints="strip")
    with pytest.raises(TaskError, match="Use --to trl"):
        export_rollouts(run, "sft", out, hints="mask")
    with pytest.raises(TaskError, match="at least 1"):
        export_rollouts(run, "sft", out, best_of=0)
    with pytest.raises(RecordError, match="No rollouts"):
        export_rollouts(tmp_path / "nowhere", "sft", out)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="Cannot write"):
        export_rollouts(run, "sft", tmp_path / "file" / "out.jsonl")
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_a_damaged_run_leaves_an_older_export_alone(tmp_path: Path) -> None:
    run, out = written(tmp_path / "run", made()), tmp_path / "out.jsonl"
    export_rollouts(run, "sft", out)
    before = out.read_bytes()
    with (run / "rollouts.jsonl").open("ab") as file:
        file.write(b"{broken\n")
    with pytest.raises(RecordError, match="line 2"):
        export_rollouts(run, "sft", out)
    assert out.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


# --- with a real tokenizer, template and episode ---


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return tokenizer_only(str(tiny_qwen(tmp_path_factory.mktemp("tiny"))))


async def test_stripped_rows_of_an_episode_hold_no_hint_and_all_said_tokens(weights: Weights) -> None:
    task: Task = playground_tasks(0, 1)[0]
    model = TokenScript(model="scripted", script=[WRONG, LOOK, "Hm."], scripted_weights=weights, split_seed=3)
    rollout = await run_episode(model, Playground(task), hints=3)
    hint = rollout.turns[0].steps[0].outcomes[0].hint
    assert hint is not None
    words = hint.text[:20]
    (kept,) = to_token_rows([rollout])
    (bare,) = to_token_rows([rollout], hints="strip", tokenizer=weights)
    (masked,) = to_token_rows([rollout], hints="mask", tokenizer=weights)
    assert words in weights.decode(kept["input_ids"])
    assert words not in weights.decode(bare["input_ids"])
    said = [token for token in kept["labels"] if token != -100]
    assert [token for token in bare["labels"] if token != -100] == said
    assert masked["input_ids"] == kept["input_ids"]
    hidden = [token for token, mark in zip(masked["input_ids"], masked["hint_mask"], strict=True) if mark]
    assert words in weights.decode(hidden)
    (branch,) = branches_of(rollout)
    assert all(
        logprob == (scripted_logprob(token) if mask else 0.0)
        for token, mask, logprob in zip(branch.completion_ids, branch.loss_mask, branch.logprobs, strict=True)
    )


async def test_the_command_knows_the_tools_and_the_tokenizer(tmp_path: Path, weights: Weights) -> None:
    task: Task = playground_tasks(0, 1)[0]
    model = TokenScript(model="scripted", script=[WRONG, "Hm."], scripted_weights=weights)
    run = written(tmp_path / "run", await run_episode(model, Playground(task), hints=3))

    def export(*arguments: str) -> list[dict[str, Any]]:
        done = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "out.jsonl"), *arguments])
        assert "1 rows from 1 of 1 rollouts" in done.stdout, done.exception
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    (row,) = export("--to", "sft", "--tasks", "playground", "--hints", "strip")
    assert "list_items" in {tool["function"]["name"] for tool in json.loads(row["tools"])}
    (row,) = export("--to", "trl", "--hints", "strip", "--tokenizer", weights.name, "--where", "failures > 0")
    assert "Similar names" not in weights.decode(row["input_ids"])
    failed = CliRunner().invoke(app, ["export", str(run), "--to", "sft", "--out", "x", "--where", "reward >> 1"])
    assert "BinOp is not allowed" in str(failed.exception)


def test_every_format_is_described() -> None:
    assert all(FORMATS.values())
