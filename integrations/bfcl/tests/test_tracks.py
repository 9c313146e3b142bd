"""Following the ground truth's tracks changes nothing: every answer and every check is that of running the calls."""

import dataclasses
import pickle
import random

import pytest

from envtune_agents.types import ToolCall
from envtune_bfcl import load_task, load_tasks, parse_call, replay
from envtune_bfcl.calls import call_text
from envtune_bfcl.environment import visible_functions
from envtune_bfcl.play import Play
from envtune_bfcl.truths import truth_of, world_name
from envtune_bfcl.worlds import World


def wandering(task, rng):
    """The ground truth with calls repeated, moved, dropped, broken, nested, and with reads and guesses in between."""
    truth = task.data["ground_truth"]
    known = [text for turn in truth for text in turn]
    names = [doc["name"] for _, doc in visible_functions(task, len(truth)) if not doc["parameters"]["required"]]
    for turn in truth:
        texts = []
        for text in turn:
            chance = rng.random()
            if chance < 0.1 and names:
                texts += [f"{rng.choice(names)}()", text]
            elif chance < 0.2:
                texts += [text, rng.choice(known)]
            elif chance < 0.25:
                texts += [text.replace("(", "(nothing=1,", 1), text]
            elif chance < 0.3:
                texts += [text.replace("'", "'x", 1), text.replace("=", " = ", 1)]
            elif chance < 0.31:
                call = parse_call(text)
                texts.append(call_text(ToolCall(call.name, dict(reversed(call.args.items())))))
            elif chance < 0.33:
                texts += [f"[{text}, {rng.choice(known)}]", text[:-1]]
            elif chance > 0.05:
                texts.append(text)
        if rng.random() < 0.15:
            rng.shuffle(texts)
        yield texts if rng.random() < 0.95 else []


def facts(play, turns, *, at_once):
    """Answers and evidence of each turn."""
    found = []
    for texts in turns:
        play.open_turn()
        steps = play.run_steps([(text,) for text in texts]) if at_once else [(play.run(text),) for text in texts]
        found.append(([answer for step in steps for answer in step], play.close_turn()))
    return found


def running(task):
    """A play that follows no track."""
    play = Play(task)
    play._world = World(truth_of(task).scenario, world_name(task))
    return play


def check(task, seed):
    turns = list(wandering(task, random.Random(f"{task.task_id}/{seed}")))
    expected = facts(running(task), turns, at_once=False)
    assert facts(Play(task), turns, at_once=False) == expected, task.task_id
    assert facts(Play(task), turns, at_once=True) == expected, task.task_id


@pytest.mark.parametrize("seed", [1, 2])
def test_tracks_change_no_answer_and_no_check(seed):
    for task in load_tasks("all")[seed::9]:
        check(task, seed)


def test_every_ground_truth_can_be_followed():
    for task in load_tasks("all"):
        assert truth_of(task).tracks.texts, task.task_id


def test_a_followed_call_makes_no_instance():
    task = load_task("multi_turn_base_0")
    play = Play(task)
    facts(play, task.data["ground_truth"], at_once=True)
    assert not play._world._instances
    play.open_turn()
    assert play.run("pwd()") == running_after(task, "pwd()")


def test_a_call_written_another_way_is_followed():
    task = load_task("multi_turn_base_0")
    turns = [[call_text(parse_call(text)) for text in turn] for turn in task.data["ground_truth"]]
    assert turns != task.data["ground_truth"]
    play = Play(task)
    assert facts(play, turns, at_once=True) == facts(running(task), turns, at_once=False)
    assert not play._world._instances


def test_a_call_that_means_something_else_is_run():
    """1, 1.0 and True are equal and print differently."""
    task = next(t for t in load_tasks("all", "base") if "fillFuelTank" in str(t.data["ground_truth"]))
    data = {**task.data, "ground_truth": [["fillFuelTank(fuelAmount=1)", "displayCarStatus('fuel')"]]}
    one = dataclasses.replace(task, task_id="multi_turn_base_one", turns=("Fill it.",), data=data)
    for amount in ("1.0", "True", "'1'", "2"):
        turns = [[f"fillFuelTank(fuelAmount={amount})", "displayCarStatus('fuel')"]]
        play = Play(one)
        assert facts(play, turns, at_once=True) == facts(running(one), turns, at_once=False)
        assert play._world._instances


def running_after(task, text):
    play = running(task)
    facts(play, task.data["ground_truth"], at_once=False)
    play.open_turn()
    return play.run(text)


def test_a_ground_truth_that_mixes_apis_is_run():
    """A nested call reaches two methods, so that there is no track; verdicts are the same all the same."""
    task = load_task("multi_turn_base_0")
    data = {**task.data, "ground_truth": [["echo(content=pwd())", "touch(file_name='a.txt')"]]}
    mixed = dataclasses.replace(task, task_id="multi_turn_base_mixed", turns=("Do it.",), data=data)
    assert not truth_of(mixed).tracks.texts
    assert replay(mixed, [[["echo(content=pwd())"], ["touch(file_name='a.txt')"]]]).valid
    assert not replay(mixed, [[["echo(content=pwd())"]]]).valid


def test_a_state_with_a_nan_is_not_followed():
    """Two worlds that make the same calls hold different NaNs, which are not equal."""
    task = next(t for t in load_tasks("all", "base") if t.data["involved_classes"][0] == "VehicleControlAPI")
    calls = [["fillFuelTank(fuelAmount=1e999 - 1e999)"], ["displayCarStatus('fuel')"]]
    data = {**task.data, "ground_truth": calls}
    odd = dataclasses.replace(task, task_id="multi_turn_base_nan", turns=("a", "b"), data=data)
    assert not truth_of(odd).tracks.texts
    expected = facts(running(odd), calls, at_once=False)
    assert not all(expected[0][1].state_checks.values())
    assert facts(Play(odd), calls, at_once=True) == expected


def test_a_replay_can_be_pickled_and_asked_late():
    task = load_task("multi_turn_base_0")
    calls = [[[text] for text in turn] for turn in task.data["ground_truth"]]
    calls[0] = [["mkdir(dir_name='other')"]]
    result = replay(task, calls)
    calls[1:] = []
    again = pickle.loads(pickle.dumps(result))
    assert result.error_type == again.error_type == "multi_turn:instance_state_mismatch"
    assert again.turn_scores == result.turn_scores
    assert again.evidence == result.evidence
    assert len(again.results) == len(task.turns)
