"""Tasks, docs and the split come from the installed files as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from envtune_agents.errors import MissingDependencyError, TaskError
from envtune_bfcl import CATEGORIES, load_task, load_tasks
from envtune_bfcl.data import API_FILES, HELD_OUT_MESSAGE, draw_split, function_docs, package_folder, read_split


def numbers(tasks):
    return {int(task.task_id.rpartition("_")[2]) for task in tasks}


def test_halves_are_even_and_disjoint():
    train, test = load_tasks("train"), load_tasks("test")
    assert len(train) == len(test) == 400
    assert not {task.task_id for task in train} & {task.task_id for task in test}
    for category in CATEGORIES:
        assert len(load_tasks("train", category)) == len(load_tasks("test", [category])) == 100
        assert len(load_tasks("validation", category)) == 25
    assert len(load_tasks("all")) == 800


def test_validation_is_part_of_train():
    assert {task.task_id for task in load_tasks("validation")} < {task.task_id for task in load_tasks("train")}


def test_siblings_and_near_duplicates_stay_together():
    validation, train = numbers(load_tasks("validation")), numbers(load_tasks("train"))
    for category in CATEGORIES:
        assert numbers(load_tasks("train", category)) == train
    for cluster in read_split()["clusters"]:
        assert len({(n in train, n in validation) for n in cluster}) == 1
    seen = {}
    for task in load_tasks("all"):
        number = int(task.task_id.rpartition("_")[2])
        for key in (json.dumps(task.data["initial_config"], sort_keys=True), json.dumps(task.data["ground_truth"])):
            assert (seen.setdefault(key, number) in train) == (number in train)


def test_split_file_is_what_is_drawn():
    assert draw_split() == read_split()


def test_short_names_and_order():
    assert load_tasks("test", "base") == load_tasks("test", ["multi_turn_base"])
    both = load_tasks("test", ["long_context", "base"])
    assert [task.category for task in both] == ["multi_turn_base"] * 100 + ["multi_turn_long_context"] * 100


def test_unknown_names_list_what_exists():
    with pytest.raises(TaskError, match="train, test, validation, all"):
        load_tasks("dev")
    with pytest.raises(TaskError, match="multi_turn_base, "):
        load_tasks("train", ["base2"])
    with pytest.raises(TaskError, match="multi_turn_base_7"):
        load_task("multi_turn_bas_7")


def test_held_out_turns_have_the_official_message():
    prompts = (package_folder() / "constants" / "default_prompts.py").read_text()
    assert f'"{HELD_OUT_MESSAGE}"' in prompts
    for task in load_tasks("all", "miss_func"):
        held = [int(turn) for turn in task.data["missed_function"]]
        assert [turn for turn, text in enumerate(task.turns) if text == HELD_OUT_MESSAGE] == held
    assert all(len(task.turns) == len(task.data["ground_truth"]) for task in load_tasks("all"))


def test_docs_of_all_tools():
    assert sum(len(function_docs(api)) for api in API_FILES) == 128


def run_python(code, *arguments):
    return subprocess.run([sys.executable, *arguments, "-c", code], capture_output=True, text=True, check=False)


def test_missing_package_says_how_to_install():
    code = """
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *more: None if name == "bfcl_eval" else find(name, *more)
from envtune_bfcl import load_tasks
load_tasks()
"""
    done = run_python(code)
    assert MissingDependencyError.__name__ in done.stderr
    assert "pip install --no-deps bfcl-eval==2026.3.23" in done.stderr
    assert "pip install mpmath" in done.stderr


def test_import_is_light_and_leaves_bfcl_eval_alone():
    code = """
import sys, envtune_bfcl
heavy = {"torch", "langchain_core", "langgraph", "mpmath", "pydantic", "bfcl_eval", "numpy"}
print(sorted(heavy & set(sys.modules)))
task = envtune_bfcl.load_task("multi_turn_base_0")
envtune_bfcl.replay(task, [])
print(sorted(name for name in sys.modules if name.startswith("bfcl_eval")))
"""
    done = run_python(code)
    assert done.stdout.split() == ["[]", "[]"], done.stderr


def test_nothing_is_written_beside_the_installed_files():
    before = set(package_folder().rglob("*"))
    code = "from envtune_bfcl import load_tasks, replay\nreplay(load_tasks()[0], [])"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert set(package_folder().rglob("*")) == before


def test_readme_shows_what_its_program_prints():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    program, output = (text.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("python", "text"))
    done = run_python(program)
    assert done.stdout == output, done.stderr
