"""Exported results: bfcl-eval's own code comes to the same verdict on every entry."""

import asyncio
import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from envtune_agents.errors import TaskError
from envtune_agents.rollout import run_episode
from envtune_agents.testing import ScriptedChatModel, ai_message, calls_message
from envtune_agents.types import CallOutcome, FailureKind, Rollout, RolloutStep, RolloutTurn, StopReason, ToolFailure
from envtune_bfcl import BfclEnvironment, export_results, load_task, load_tasks, official_verdict, parse_call
from envtune_bfcl.environment import task_source
from envtune_bfcl.results import calls_of

official = pytest.mark.skipif(
    importlib.util.find_spec("bfcl_eval") is None, reason="the official checker is not installed"
)


# --- scripted models: the calls of each turn, one a step, then a word ---


def succeeds(task):
    return [list(turn) for turn in task.data["ground_truth"]]


def fails(task):
    return [["no_such_tool(x=1)"] for _ in task.turns]


def half_succeeds(task):
    """Solves the even entries, and the first half of the turns of the odd ones."""
    turns = succeeds(task)
    half = len(turns) // 2 if task.task_id[-1] in "13579" else len(turns)
    return [turn if number < half else [] for number, turn in enumerate(turns)]


def sampled(call):
    return "<tool_call>\n" + json.dumps({"name": call.name, "arguments": dict(call.args)}) + "\n</tool_call>"


def played(task, turns, write=sampled, **fields):
    """The rollout of a model that makes these calls."""
    env, done = BfclEnvironment(task), []
    for texts in turns:
        user, steps = env.open_turn(), []
        for call in map(parse_call, texts):
            answer = env.run_call(call)
            steps.append(RolloutStep(write(call), outcomes=(CallOutcome(call.name, call.args, answer, answer),)))
        env.close_turn()
        done.append(RolloutTurn(user, (*steps, RolloutStep("Done."))))
    sample = fields.pop("sample", 0)
    stop = fields.pop("stop_reason", StopReason.DONE)
    return Rollout(
        f"{task.task_id}/0/{sample}", task.task_id, task.category, 0, sample, "scripted", "", 0,
        tuple(done), len(task.turns), None, stop, **fields,
    )  # fmt: skip


# --- the official side: its functions as they stand, taken out of files whose import makes folders ---

OFFICIAL = """
import ast, json, re, sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import is_empty_execute_response

package = Path(find_spec("bfcl_eval").submodule_search_locations[0])
BaseHandler = override = None

def take(file, *names):
    for node in ast.walk(ast.parse((package / file).read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            exec(compile(ast.Module([node], []), file, "exec"), globals())

take("model_handler/utils.py", "convert_to_function_call")
take("model_handler/local_inference/qwen_fc.py", "decode_execute", "_extract_tool_calls")
take("eval_checker/eval_runner.py", "_evaluate_single_multi_turn_entry")
handler = type("QwenFCHandler", (), {"decode_execute": decode_execute, "_extract_tool_calls": _extract_tool_calls})
handler._extract_tool_calls = staticmethod(_extract_tool_calls)

def lines(path):
    return {row["id"]: row for row in map(json.loads, Path(path).open())}

verdicts = {}
for path in sys.argv[2:]:
    category = re.fullmatch(r"BFCL_v4_(\\w+)_result", Path(path).stem)[1]
    questions = lines(package / "data" / f"BFCL_v4_{category}.json")
    answers = lines(package / "data" / "possible_answer" / f"BFCL_v4_{category}.json")
    for row in map(json.loads, Path(path).open()):
        truth = answers[row["id"]]["ground_truth"]
        verdict = _evaluate_single_multi_turn_entry(
            handler(), row["id"], row["result"], truth, questions[row["id"]], sys.argv[1], category
        )
        verdicts[row["id"]] = [verdict["valid"], verdict.get("error", {}).get("error_type")]
print(json.dumps(verdicts))
"""


def officially(files, model="scripted"):
    done = subprocess.run(
        [sys.executable, "-c", OFFICIAL, model, *map(str, files)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {task_id: tuple(verdict) for task_id, verdict in json.loads(done.stdout).items()}


def ours(rollouts):
    found = {rollout.task_id: official_verdict(load_task(rollout.task_id), rollout) for rollout in rollouts}
    return {task_id: (verdict.solved, verdict.error_type) for task_id, verdict in found.items()}


@official
@pytest.mark.parametrize(("model", "solved"), [(succeeds, 800), (fails, 0), (half_succeeds, 400)])
def test_the_same_verdict_on_every_entry(model, solved, tmp_path):
    rollouts = [played(task, model(task)) for task in load_tasks("all")]
    files = export_results(rollouts, tmp_path)
    assert len(files) == 4
    expected = officially(files)
    assert ours(rollouts) == expected
    assert len(expected) == 800
    assert sum(valid for valid, _ in expected.values()) == solved


@official
def test_unusual_rollouts(tmp_path):
    tasks = load_tasks("train", "base")[:12]
    truths = [succeeds(task) for task in tasks]
    force_quit = {"stop_reason": StopReason.STEP_LIMIT}
    rollouts = [
        played(tasks[0], truths[0], write=lambda call: f"{call.name}{dict(call.args)}"),  # another notation
        played(tasks[1], truths[1], write=lambda call: f"First <think>.\n{sampled(call)}\nThen we see."),
        played(tasks[2], truths[2][:-1], **force_quit),  # turns are missing
        played(tasks[3], truths[3], **force_quit),  # in the last turn: the official checker judges it
        played(tasks[4], [*truths[4][:-1], []], **force_quit),
        played(tasks[5], truths[5], stop_reason=StopReason.TIMEOUT),
        played(tasks[6], [], stop_reason=StopReason.ERROR, error="ValueError: no"),
        played(tasks[7], truths[7], stop_reason=StopReason.CONTEXT),
        played(tasks[8], []),
        with_reply(played(tasks[9], truths[9]), sampled(parse_call("mkdir(dir_name='never_run')"))),
        with_reply(played(tasks[10], truths[10]), "<tool_call>\n{not json}\n</tool_call>"),
        with_malformed(played(tasks[11], truths[11])),
    ]
    expected = officially(export_results(rollouts, tmp_path))
    assert ours(rollouts) == expected
    assert [expected[rollout.task_id][1] for rollout in rollouts] == [
        None,
        None,
        "multi_turn:force_terminated",
        None,
        "multi_turn:empty_turn_model_response",
        "multi_turn:inference_error",
        "multi_turn:inference_error",
        "multi_turn:inference_error",
        "multi_turn:force_terminated",
        None,
        None,
        None,
    ]


def with_reply(rollout, text):
    """The same with a last reply that was never run, whatever it says."""
    *first, last = rollout.turns
    return dataclasses.replace(
        rollout, turns=(*first, dataclasses.replace(last, steps=(*last.steps, RolloutStep(text))))
    )


def with_malformed(rollout):
    """The same with a reply that held one call that could be read and one that could not."""
    turn = rollout.turns[0]
    step = turn.steps[0]
    broken = CallOutcome("", {}, "no", "no", ToolFailure(FailureKind.MALFORMED_CALL, "no"))
    step = dataclasses.replace(
        step, reply=f"{step.reply}\n<tool_call>\n{{\n</tool_call>", outcomes=(*step.outcomes, broken)
    )
    turn = dataclasses.replace(turn, steps=(step, *turn.steps[1:]))
    return dataclasses.replace(rollout, turns=(turn, *rollout.turns[1:]))


# --- a real loop ---


def episode(task, replies, **options):
    run = run_episode(ScriptedChatModel(script=replies), BfclEnvironment(task), hints=0, **options)
    return asyncio.run(run) if asyncio.iscoroutine(run) else run


@official
def test_episodes_of_the_real_loop(tmp_path):
    task, other, quits = load_tasks("train", "base")[:3]
    malformed = ai_message('<tool_call>\n{"name": "ls", "arguments": {\n</tool_call>')
    rollouts = [
        episode(task, script(task)),
        episode(other, [malformed, *script(other)[1:]], malformed_ends_turn=True),
        episode(quits, [calls_message(("pwd", {}))] * 40),
    ]
    assert [rollout.stop_reason for rollout in rollouts] == [StopReason.DONE, StopReason.DONE, StopReason.STEP_LIMIT]
    assert len(calls_of(rollouts[2])[0]) == 21
    assert ours(rollouts) == officially(export_results(rollouts, tmp_path))
    assert ours(rollouts)[task.task_id] == (True, None)


def script(task):
    replies = []
    for turn in task.data["ground_truth"]:
        replies += [calls_message((call.name, dict(call.args))) for call in map(parse_call, turn)]
        replies.append(ai_message("Done."))
    return replies


# --- files ---


def test_files_have_the_official_names_and_order(tmp_path):
    tasks = [load_task("multi_turn_base_10"), load_task("multi_turn_base_9"), load_task("multi_turn_miss_func_3")]
    rollouts = [played(task, fails(task)) for task in tasks]
    files = export_results([*rollouts, played(tasks[0], fails(tasks[0]), sample=1)], tmp_path)
    folder = "Qwen_Qwen3-4B-Instruct-2507-FC/multi_turn"
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        f"{folder}/BFCL_v4_multi_turn_base_result.json",
        f"{folder}/BFCL_v4_multi_turn_miss_func_result.json",
        f"sample_1/{folder}/BFCL_v4_multi_turn_base_result.json",
    ]
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert [row["id"] for row in rows] == ["multi_turn_base_9", "multi_turn_base_10"]
    assert rows[0]["result"][0] == [
        '<tool_call>\n{"name": "no_such_tool", "arguments": {"x": 1}}\n</tool_call>',
        "Done.",
    ]


def test_wrong_rollouts_are_refused(tmp_path):
    task = load_task("multi_turn_base_1")
    rollout = played(task, fails(task))
    with pytest.raises(TaskError, match="Two rollouts of 'multi_turn_base_1'"):
        export_results([rollout, rollout], tmp_path)
    foreign = Rollout("a/0/0", "a", "base", 0, 0, "m", "", 0, (), 1, None, StopReason.DONE)
    with pytest.raises(TaskError, match="not of a BFCL task"):
        export_results([foreign], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_task_source_judges_and_exports():
    source = task_source()
    assert source.judge is official_verdict
    assert source.export is export_results
    assert set(source.fingerprint()) == {"bfcl-eval", "bfcl_data", "bfcl_checker"}
    assert len(source.fingerprint()["bfcl_checker"]) == 64
