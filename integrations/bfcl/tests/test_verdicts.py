"""`replay` gives the official verdict, and the facts of every turn."""

import ast
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from envtune_agents.errors import TaskError
from envtune_agents.progress import strict_score
from envtune_agents.types import Task
from envtune_bfcl import BfclEnvironment, load_task, load_tasks, replay


def steps_of(task):
    return [[[call] for call in turn] for turn in task.data["ground_truth"]]


def values(result):
    return [score.value for score in result.turn_scores]


@pytest.fixture(scope="module")
def task():
    return load_task("multi_turn_base_0")


# --- gold ---


@pytest.mark.parametrize("category", ["base", "miss_func", "miss_param", "long_context"])
def test_ground_truth_scores_one_on_every_task(category):
    for task in load_tasks("all", category):
        result = replay(task, steps_of(task))
        assert result.valid, task.task_id
        assert result.error_type is None
        assert values(result) == [1.0] * len(task.turns)


def test_no_calls_score_less_than_one():
    for task in load_tasks("all"):
        result = replay(task, [[] for _ in task.turns])
        assert not result.valid
        assert result.error_type == "multi_turn:empty_turn_model_response"
        assert values(result) == [0.0 if calls else 1.0 for calls in task.data["ground_truth"]]


# --- the official rules, one by one ---


def test_order_repeats_and_failing_calls_are_free(task):
    calls = steps_of(task)
    calls[1].insert(0, ["ls()", "ls()", "no_such_tool()", "cat(file_name='missing')"])
    assert replay(task, calls).valid


def test_empty_turn(task):
    calls = steps_of(task)
    calls[1] = []
    result = replay(task, calls)
    assert result.error_type == "multi_turn:empty_turn_model_response"
    assert (result.turn_scores[1].state, result.turn_scores[1].response, result.turn_scores[1].value) == (0, 0, 0)


@pytest.mark.parametrize("nothing", [[], [[]], [[""]], [[], []]])
def test_steps_without_a_call_do_not_count(task, nothing):
    calls = steps_of(task)
    calls[2] = nothing
    assert replay(task, calls).error_type == "multi_turn:empty_turn_model_response"


def test_state_mismatch_goes_before_response_mismatch(task):
    calls = steps_of(task)
    calls[0] = [["mkdir(dir_name='other')"]]
    result = replay(task, calls)
    assert result.error_type == "multi_turn:instance_state_mismatch"
    assert result.turn_scores[0].state == 0
    assert result.turn_scores[0].response == 0


def test_response_mismatch(task):
    calls = steps_of(task)
    calls[2] = [["ls()"]]
    result = replay(task, calls)
    assert result.error_type == "multi_turn:execution_response_mismatch"
    assert values(result) == [1, 1, 0, 1]
    assert result.evidence[2].response_checks == {"0:sort": False}


def test_a_result_of_an_earlier_turn_counts(task):
    calls = steps_of(task)
    calls[1].append(["sort('final_report.pdf')"])
    calls[2] = [["pwd()"]]
    assert replay(task, calls).valid


def test_a_needed_repeat_must_be_repeated():
    task = load_task("multi_turn_base_0")
    data = {**task.data, "ground_truth": [["ls()", "ls()"]]}
    twice = dataclasses.replace(task, task_id="multi_turn_base_twice", turns=("Look twice.",), data=data)
    assert replay(twice, [[["ls()"]]]).evidence[0].response_checks == {"0:ls": True, "1:ls": False}
    assert replay(twice, [[["ls()"], ["ls()"]]]).valid


def test_turns_without_ground_truth_are_not_judged_but_run():
    task = next(t for t in load_tasks("all", "miss_param") if [] in t.data["ground_truth"])
    silent = task.data["ground_truth"].index([])
    calls = steps_of(task)
    calls[silent] = [["no_such_tool()"]]
    result = replay(task, calls)
    assert result.valid
    assert not result.evidence[silent].judged
    assert result.results[silent] == (("Error during execution: name 'no_such_tool' is not defined",),)


@pytest.mark.parametrize("change", ["short", "long"])
def test_another_number_of_turns_is_force_terminated(task, change):
    calls = steps_of(task)
    calls = calls[:-1] if change == "short" else [*calls, [["ls()"]]]
    result = replay(task, calls)
    assert result.error_type == "multi_turn:force_terminated"
    assert not result.valid
    assert values(result) == ([1, 1, 1, 0] if change == "short" else [1, 1, 1, 1])


def test_a_tool_name_with_a_bracket_inside_a_text_is_rewritten_as_officially(task):
    calls = steps_of(task)
    calls[0].append(["echo(content='a b (c)')"])
    assert replay(task, calls).results[0][-1] == ('{"terminal_output": "a b(c)"}',)
    calls[0][-1] = ["echo(content='first sort (it)')"]
    shown = replay(task, calls).results[0][-1][0]
    assert shown.endswith('_multi_turn_base_0_GorillaFileSystem_instance.sort(it)"}')


def test_a_correct_run_after_a_wrong_one(task):
    wrong = [[["mkdir(dir_name='other')"], *turn] for turn in steps_of(task)]
    assert not replay(task, wrong).valid
    assert replay(task, steps_of(task)).valid


def test_wrong_shape_is_a_task_error(task):
    with pytest.raises(TaskError, match="list of call texts"):
        replay(task, [["cd(folder='document')"]])
    with pytest.raises(TaskError, match="load_tasks"):
        replay(Task("mine", "base", ("Hello",)), [[]])


# --- the live environment judges alike ---


def played(task, calls):
    env = BfclEnvironment(task)
    scores = []
    for steps in calls:
        env.open_turn()
        for text in (text for step in steps for text in step):
            env.run_text(text)
        scores.append(strict_score(env.close_turn()))
    assert env.open_turn() is None
    return scores


def mutations(task):
    calls = steps_of(task)
    yield calls
    yield [turn[:-1] for turn in calls]
    yield [[*turn, *turn[-1:]] for turn in calls]
    yield [[[text.replace("'", "'x", 1)] for (text,) in turn] for turn in calls]


def test_live_scores_are_replayed_scores():
    for task in load_tasks("validation")[::4]:
        for calls in mutations(task):
            assert played(task, calls) == list(replay(task, calls).turn_scores), task.task_id


# --- beside the official checker, where it can be imported ---

official = pytest.mark.skipif(
    importlib.util.find_spec("bfcl_eval") is None, reason="the official checker is not installed"
)

OFFICIAL = """
import json, sys
{before}
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
{after}
verdicts = []
for number, (entry, calls) in enumerate(json.load(sys.stdin)):
    truth, task_id = entry["ground_truth"], entry["id"]
    verdict = multi_turn_checker(calls, truth, entry, task_id.rpartition("_")[0], f"model{{number}}")
    verdicts.append([verdict["valid"], verdict.get("error_type")])
print(json.dumps(verdicts))
"""
USE_OURS = (
    "import envtune_bfcl; envtune_bfcl.replay(envtune_bfcl.load_task('multi_turn_long_context_150'), [[['ls()']]])"
)


def official_verdicts(cases, before="", after=""):
    entries = [({"id": task.task_id, **task.data}, calls) for task, calls in cases]
    code = OFFICIAL.format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(entries), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [tuple(verdict) for verdict in json.loads(done.stdout)]


@official
@pytest.mark.parametrize("order", ["before", "after"])
def test_same_verdicts_in_either_import_order(order):
    cases = [(task, calls) for task in load_tasks("validation")[::7] for calls in mutations(task)]
    expected = official_verdicts(cases, **{order: USE_OURS})
    found = [replay(task, calls) for task, calls in cases]
    assert [(result.valid, result.error_type) for result in found] == expected
    assert {valid for valid, _ in expected} == {True, False}


def insurance_case():
    """The model pays once more with a long-context card, which both sides' instances share."""
    task = next(t for t in load_tasks("all", "long_context") if t.data["involved_classes"] == ["TravelAPI"])
    config = {"TravelAPI": {**task.data["initial_config"]["TravelAPI"], "access_token": "abc", "token_expires_in": 2}}
    buy = (
        "purchase_insurance(access_token='abc', insurance_type='basic', booking_id='{booking}', "
        "insurance_cost={cost}, card_id='{card}')"
    )
    world = BfclEnvironment(task)
    world.open_turn()
    cards = json.loads(world.run_text("get_all_credit_cards()"))["credit_card_list"]
    own = task.data["initial_config"]["TravelAPI"].get("credit_card_list", {})
    card = next(card for card in cards if card not in own)
    booked = {**config["TravelAPI"].get("booking_record", {})}
    config["TravelAPI"]["booking_record"] = {**booked, "77": {"card_id": card, "travel_cost": 1.0}}
    text = buy.format(booking="77", cost=100, card=card)
    data = {**task.data, "initial_config": config, "ground_truth": [[text]]}
    return dataclasses.replace(task, turns=("Insure it.",), data=data), [[[text], [text]]]


@official
def test_shared_official_objects_count_as_in_a_fresh_process():
    twitter = next(t for t in load_tasks("all", "base") if "TwitterAPI" in t.data["involved_classes"])
    config = {**twitter.data["initial_config"]}
    config["TwitterAPI"] = {**config.get("TwitterAPI", {}), "authenticated": True, "tweet_counter": 50}
    post, mention = "post_tweet(content='hi')", "mention(tweet_id=50, mentioned_usernames=['@a'])"
    tweets = {**twitter.data, "initial_config": config, "ground_truth": [[post], [mention], [post]]}
    twitter = dataclasses.replace(twitter, turns=("a", "b", "c"), data=tweets)
    both = dataclasses.replace(twitter, turns=("a",), data={**tweets, "ground_truth": [[post, mention]]})
    cases = [
        insurance_case(),
        (twitter, [[[post]], [[mention]], [[post]]]),
        (twitter, [[[post]], [[mention], [mention]], [[post]]]),
        (both, [[[post], [mention]]]),
    ]
    expected = [official_verdicts([case])[0] for case in cases]  # one fresh process each
    found = [replay(task, calls) for task, calls in cases]
    assert [(result.valid, result.error_type) for result in found] == expected
    assert expected[0] == (True, None)  # worlds that share nothing would say: state mismatch
    for (task, calls), result in zip(cases, found, strict=True):
        assert played(task, calls) == list(result.turn_scores)


# --- determinism ---


def test_results_do_not_depend_on_the_hash_seed():
    code = """
from envtune_bfcl import load_tasks, replay
task = next(t for t in load_tasks("all") if set(t.data["involved_classes"]) == {"TicketAPI", "TravelAPI"})
tickets = {"ticket_queue": [{"id": 1, "created_by": "a", "status": "Open"}]}
import dataclasses
task = dataclasses.replace(task, data={**task.data, "initial_config": {"TicketAPI": tickets}})
calls = ["edit_ticket(ticket_id=1, updates={'b': 1, 'a': 2, 'c': 3, 'title': 'x'})",
         "authenticate_travel('a','b','c','write','d','e')", "register_credit_card('%s','1','1','1',1)"]
print(replay(task, [[calls]]).results)
"""
    seen = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(done.stdout)
    assert len(seen) == 1
    ((answers,),) = ast.literal_eval(seen.pop())
    assert answers[0] == '{"error": "Invalid fields for update: a, b, c"}'
