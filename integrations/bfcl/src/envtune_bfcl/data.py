"""BFCL's own files -> tasks, function docs and the split.

In: the data folder of an installed `bfcl-eval`, found without importing the package. Out: `Task` records. Nothing is
downloaded or written, and nothing here runs a call.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from envtune_agents.errors import MissingDependencyError, TaskError, unknown
from envtune_agents.types import Task

BFCL_VERSION = "2026.3.23"
"""The release of bfcl-eval whose verdicts are reproduced."""
INSTALL = f"pip install --no-deps bfcl-eval=={BFCL_VERSION}\n  pip install mpmath"
CATEGORIES = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
SPLITS = ("train", "test", "validation", "all")
HELD_OUT_MESSAGE = "I have updated some more functions you can choose from. What about now?"
"""User message of a turn that reveals tools (BFCL `DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC`)."""

API_FILES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
"""File stem of each API class, for its source and for its docs (BFCL `executable_backend_config`)."""

Entry = Mapping[str, Any]
_SPLIT_FILE = Path(__file__).with_name("split.json")


# --- tasks ---


def load_tasks(split: str = "train", categories: Iterable[str] | str | None = None) -> list[Task]:
    """The tasks of one side of the fixed split, category by category in the order of `CATEGORIES`.

    `split`: "train" (400 tasks), "test" (the other 400), "validation" (100 that are part of "train"; leave them out
    of the training data when you tune on them) or "all" (800). `categories`: names such as "multi_turn_base" or
    "base"; None means all four. The same call gives the same tasks in the same order.
    Raises TaskError for an unknown split or category, MissingDependencyError without bfcl-eval.
    """
    if split not in SPLITS:
        raise TaskError(unknown("split", split, SPLITS))
    names = [categories] if isinstance(categories, str) else categories
    wanted = CATEGORIES if names is None else {full_category(name) for name in names}
    numbers = range(200) if split == "all" else sorted(read_split()[split])
    return [_tasks(category)[f"{category}_{n}"] for category in CATEGORIES if category in wanted for n in numbers]


def load_task(task_id: str) -> Task:
    """The task of this BFCL id, such as "multi_turn_base_7". Raises TaskError that names close ids."""
    category = task_id.rpartition("_")[0]
    task = _tasks(category).get(task_id) if category in CATEGORIES else None
    if task is None:
        ids = [known for name in CATEGORIES for known in _tasks(name)]
        close = difflib.get_close_matches(task_id, ids, n=3, cutoff=0.6)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise TaskError(
            f"Unknown task id {task_id!r}: ids are a category ({', '.join(CATEGORIES)}) and 0 to 199.{hint}"
        )
    return task


def full_category(name: str) -> str:
    """ "base" or "multi_turn_base" -> "multi_turn_base". Raises TaskError for anything else."""
    full = name if name.startswith("multi_turn_") else f"multi_turn_{name}"
    if full not in CATEGORIES:
        raise TaskError(unknown("category", name, CATEGORIES))
    return full


@lru_cache(maxsize=len(CATEGORIES))
def _tasks(category: str) -> dict[str, Task]:
    answers = {answer["id"]: answer["ground_truth"] for answer in _lines(_answer_file(category))}
    entries = _lines(_question_file(category))
    return {entry["id"]: _task(entry, category, answers[entry["id"]]) for entry in entries}


def _task(entry: Entry, category: str, ground_truth: list[list[str]]) -> Task:
    turns = tuple(messages[0]["content"] if messages else HELD_OUT_MESSAGE for messages in entry["question"])
    data = {
        "initial_config": entry["initial_config"],
        "involved_classes": entry["involved_classes"],
        "missed_function": entry.get("missed_function", {}),
        "ground_truth": ground_truth,
    }
    return Task(entry["id"], category, turns, data)


# --- function docs ---


@lru_cache(maxsize=len(API_FILES))
def function_docs(api: str) -> tuple[Entry, ...]:
    """The official docs of one API class: `{"name", "description", "parameters", "response"}` each, BFCL's types."""
    if api not in API_FILES:
        raise TaskError(unknown("API class", api, API_FILES))
    return tuple(_lines(package_folder() / "data" / "multi_turn_func_doc" / f"{API_FILES[api]}.json"))


@lru_cache(maxsize=1)
def parameter_names() -> dict[str, tuple[str, ...]]:
    """Parameter names in order, by tool name; the 128 tool names are unique over the eight APIs."""
    return {doc["name"]: tuple(doc["parameters"]["properties"]) for api in API_FILES for doc in function_docs(api)}


# --- the split ---


@lru_cache(maxsize=1)
def read_split() -> dict[str, Any]:
    """The committed split: entry numbers under "train", "validation" (part of train) and "test"."""
    split: dict[str, Any] = json.loads(_SPLIT_FILE.read_text(encoding="utf-8"))
    return split


def draw_split(seed: str = "envtune-bfcl-split-1") -> dict[str, Any]:
    """Draw the split that `split.json` holds.

    Entry n of all four categories tells one story, so numbers are drawn, not entries; numbers that share an initial
    state, a ground truth or a first user message are near duplicates and stay together (`clusters`). Clusters are
    visited in the order of sha256(seed:first number); a cluster joins validation while it fits into 25, then train
    while that fits into 100 together with validation, else test.
    """
    clusters = sorted(_clusters(), key=lambda group: hashlib.sha256(f"{seed}:{group[0]}".encode()).hexdigest())
    validation: list[int] = []
    train: list[int] = []
    test: list[int] = []
    for group in clusters:
        fits_validation = len(validation) + len(group) <= 25
        fits_train = len(validation) + len(train) + len(group) <= 100
        (validation if fits_validation else train if fits_train else test).extend(group)
    return {
        "drawn_by": "envtune_bfcl.data.draw_split",
        "seed": seed,
        "bfcl_eval": BFCL_VERSION,
        "data_sha256": data_hash(),
        "clusters": sorted(group for group in clusters if len(group) > 1),
        "train": sorted(validation + train),
        "validation": sorted(validation),
        "test": sorted(test),
    }


def data_hash() -> str:
    """sha256 over the eight question and answer files, line ends as `\\n`."""
    digest = hashlib.sha256()
    for path in (file(category) for category in CATEGORIES for file in (_question_file, _answer_file)):
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def checker_hash() -> str:
    """sha256 over the official checker and the sources of its eight API classes, as installed."""
    folder = package_folder() / "eval_checker" / "multi_turn_eval"
    stems = [*API_FILES.values(), "long_context"]
    digest = hashlib.sha256()
    for name in ("multi_turn_checker", "multi_turn_utils", *(f"func_source_code/{stem}" for stem in stems)):
        digest.update((folder / f"{name}.py").read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def fingerprint() -> dict[str, str]:
    """What decides a verdict: the installed release, the hash of its 800 entries and the hash of its checker."""
    try:
        release = importlib.metadata.version("bfcl-eval")
    except importlib.metadata.PackageNotFoundError:
        release = "unknown"
    return {"bfcl-eval": release, "bfcl_data": data_hash(), "bfcl_checker": checker_hash()}


def _clusters() -> list[list[int]]:
    home = {number: number for number in range(200)}
    first_with: dict[str, int] = {}
    for category in CATEGORIES:
        for task in _tasks(category).values():
            number = int(task.task_id.rpartition("_")[2])
            for key in _fingerprints(task):
                _join(home, number, first_with.setdefault(key, number))
    groups: dict[int, list[int]] = {}
    for number in range(200):
        groups.setdefault(home[number], []).append(number)
    return list(groups.values())


def _fingerprints(task: Task) -> tuple[str, str, str]:
    state, truth = task.data["initial_config"], task.data["ground_truth"]
    return json.dumps(state, sort_keys=True), json.dumps(truth), " ".join(task.turns[0].lower().split())


def _join(home: dict[int, int], a: int, b: int) -> None:
    old, new = max(home[a], home[b]), min(home[a], home[b])
    home.update({number: new for number, group in home.items() if group == old})


# --- the installed package ---


@lru_cache(maxsize=1)
def package_folder() -> Path:
    """Folder of the installed bfcl_eval. Finding it imports nothing, so none of its dependencies are needed."""
    try:
        spec = importlib.util.find_spec("bfcl_eval")
    except ValueError:  # a module of that name without a spec is in sys.modules
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise MissingDependencyError(
            f"envtune_bfcl needs the package 'bfcl-eval', which is not installed. Install it with:\n  {INSTALL}"
        )
    _warn_of_other_version()
    return Path(folders[0])


def _warn_of_other_version() -> None:
    try:
        found = importlib.metadata.version("bfcl-eval")
    except importlib.metadata.PackageNotFoundError:  # a copy on the path, without metadata
        return
    if found != BFCL_VERSION:
        warnings.warn(
            f"bfcl-eval {found} is installed; the split and verdicts were checked with {BFCL_VERSION}. "
            f"Install that one with:\n  {INSTALL}",
            stacklevel=3,
        )


def _question_file(category: str) -> Path:
    return package_folder() / "data" / f"BFCL_v4_{category}.json"


def _answer_file(category: str) -> Path:
    return package_folder() / "data" / "possible_answer" / f"BFCL_v4_{category}.json"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
