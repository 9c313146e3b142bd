"""The list of bad labels is what the search finds, and every finding holds on the checker itself."""

import dataclasses
import json

from envtune_bfcl import bad_labels, load_task, load_tasks, replay
from envtune_bfcl.environment import task_source
from envtune_bfcl.labels import find_bad_labels, unsolvable


def of_kind(kind):
    return {label.task_id for label in bad_labels() if label.kind == kind}


def test_the_list_is_what_the_search_finds():
    known = list(dict.fromkeys(label.task_id for label in bad_labels()))
    assert find_bad_labels(load_task(task_id) for task_id in known) == list(bad_labels())


def test_other_entries_have_no_finding():
    known = {label.task_id for label in bad_labels()}
    others = [task for task in load_tasks("all") if task.task_id not in known]
    assert find_bad_labels(others[::12]) == []


def test_findings_of_each_kind():
    assert of_kind("hidden_tool") == {"multi_turn_miss_func_49"}
    assert of_kind("misquote") == {"multi_turn_base_176"}
    assert of_kind("unseen_word") == {
        f"multi_turn_{c}_187" for c in ("base", "miss_func", "miss_param", "long_context")
    }
    assert {"multi_turn_base_4", "multi_turn_base_18", "multi_turn_base_30"} < of_kind("altered_copy")
    assert {"multi_turn_long_context_41", "multi_turn_long_context_43"} < of_kind("altered_copy")
    assert not of_kind("altered_quote") & set(unsolvable())


def test_a_perfect_reader_fails_on_a_proved_label():
    """The user asks for a file's text exactly as it is; posting just that is wrong."""
    task = load_task("multi_turn_base_30")
    calls = [[[text] for text in turn] for turn in task.data["ground_truth"]]
    calls[1] = [["post_tweet(content=" + repr(file_text(task)) + ")"]]
    assert replay(task, calls).error_type == "multi_turn:instance_state_mismatch"


def file_text(task):
    calls = [[[text] for text in task.data["ground_truth"][0]]]
    return json.loads(replay(task, calls).results[0][-1][0])["file_content"]


def test_a_label_that_can_be_met_is_not_flagged():
    """Mending the text takes the finding away."""
    task = load_task("multi_turn_base_4")
    assert [label.kind for label in find_bad_labels([task])] == ["altered_copy"]
    truth = [list(turn) for turn in task.data["ground_truth"]]
    truth[2] = [truth[2][0].replace("More unsorted data Unsorted data", "Unsorted data More unsorted data")]
    mended = dataclasses.replace(task, task_id="multi_turn_base_mended", data={**task.data, "ground_truth": truth})
    assert find_bad_labels([mended]) == []


def test_the_task_source_flags_the_proved_ones():
    flagged = task_source().flagged()
    assert flagged == unsolvable()
    assert set(flagged) == {label.task_id for label in bad_labels() if label.proved}
    assert all(flagged.values())
