"""No hint leaks: whole episodes of all 800 entries with seeded bad calls among the ground-truth calls, at level 3.

How the test knows. It keeps what the agent has been shown up to each call, as one text: the user messages of the
turns opened so far, the declarations of the tools visible now, every raw answer so far, and the agent's own calls. Its
secrets are (a) the argument values of the task's whole ground truth, (b) every string, number and key of the world's
initial state (for the long-context entries, whose state is enlarged by code, of the answers that the ground truth
gets), (c) the names of all 128 tools that are not visible
now, held-out ones included. A hint is cut into its runs of one to six words, and a run that is a secret and is not in
the shown text is a leak. Since the runs are looked up in the secrets, and not words in a list, it needs no knowledge of
what rules might say. That it can fail is shown by rules that leak on purpose.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import pytest
from langchain_core.tools import BaseTool

from envtune_agents.hints import HintEngine, tool_schemas
from envtune_agents.types import Advice, CallOutcome, Scene, Task, ToolCall
from envtune_bfcl import CATEGORIES, BfclEnvironment, load_task, load_tasks, parse_call
from envtune_bfcl.data import function_docs
from envtune_bfcl.rules import hint_rules

Schemas = Mapping[str, Mapping[str, Any]]

APIS = (
    "GorillaFileSystem",
    "MathAPI",
    "MessageAPI",
    "TicketAPI",
    "TradingBot",
    "TravelAPI",
    "TwitterAPI",
    "VehicleControlAPI",
)
MADE_UP = ["unknown_thing", "./a/b", "", "00000", "card_0", "1", 999_999, -3, 0.5, None, [], ["x"], {"k": 1}, True]
BAD_CALLS_PER_TURN = 2
LONGEST_RUN = 6


class Eavesdropper:
    """One episode: what was shown so far, what must stay secret, and the leaks found."""

    def __init__(self, task: Task, engine: HintEngine) -> None:
        self.env, self.engine = BfclEnvironment(task), engine
        self.shown: list[str] = []
        self.history: list[CallOutcome] = []
        self.hints = 0
        self.leaks: list[str] = []
        self.schemas: Schemas = {}
        self.held_out: frozenset[str] = frozenset()
        self.hidden_tools: frozenset[str] = frozenset()
        self.ever_held_out = {name for names in task.data.get("missed_function", {}).values() for name in names}
        answers = answers_of(task) if "long_context" in task.category else ()
        self.secrets = {*ground_truth_values(task), *state_of(task), *answers}

    def open_turn(self) -> bool:
        message = self.env.open_turn()
        self.shown.append(message or "")
        self.schemas = {tool.name: schema_of(tool) for tool in self.env.tools()}
        self.hidden_tools = all_tools() - set(self.schemas)
        self.held_out = self.hidden_tools & self.ever_held_out
        return message is not None

    def call(self, call: ToolCall) -> None:
        raw = self.env.run_call(call)
        got = self.engine.outcome(call, raw, tools=self.schemas, history=self.history, detect=self.env.detect_failure)
        self.shown += [call.name, *texts_in(call.args), json.dumps(call.args, default=str), raw]
        self.history.append(got)
        if got.hint:
            self.hints += 1
            self.leaks += [f"{call.name}: {leak!r} in {got.hint}" for leak in self._leaks(got.hint.text)]

    def _leaks(self, said: str) -> Iterator[str]:
        for run in runs(said):
            if run in self.held_out and not any(run in text for text in self.shown):
                yield run  # strict: "sort" counts, even if the docs of another tool hold that word
            elif (run in self.secrets or run in self.hidden_tools) and not self._was_shown(run):
                yield run

    def _was_shown(self, value: str) -> bool:
        return any(value in text for text in (*self.shown, *map(declaration, self.schemas)))


def play(task: Task, engine: HintEngine, seed: int = 0) -> Eavesdropper:
    """The ground truth of a task, with seeded bad calls before and after its calls."""
    rng, ear = random.Random(f"{seed} {task.task_id}"), Eavesdropper(task, engine)
    held = sorted(ear.ever_held_out)
    for calls in task.data["ground_truth"]:
        assert ear.open_turn()
        right = [parse_call(text) for text in calls]
        bad = [bad_call(rng, ear.schemas, right, held) for _ in range(BAD_CALLS_PER_TURN)]
        for call in [*bad[::2], *right, *bad[1::2]]:
            ear.call(call)
        ear.env.close_turn()
    return ear


def bad_call(rng: random.Random, schemas: Schemas, right: list[ToolCall], held: list[str]) -> ToolCall:
    """One bad call: a right one spoilt, a held-out or unknown tool, or a visible tool with made-up values."""
    kind = rng.randrange(6)
    if kind == 0 and held:
        return ToolCall(rng.choice(held), {"x": 1})
    if kind == 1:
        name = rng.choice(sorted(all_tools()))
        return ToolCall(rng.choice([name[:-1], name.upper(), f"api.{name}", f"get_{name}"]), {})
    if kind in (2, 3, 4) and right and (call := rng.choice(right)).args:
        name = rng.choice(sorted(call.args))
        return ToolCall(call.name, {**call.args, name: spoilt(rng, call.args[name])})
    name = rng.choice(sorted(schemas))
    arguments = sorted(schemas[name]["parameters"].get("properties") or {})
    return ToolCall(name, {argument: rng.choice(MADE_UP) for argument in arguments if rng.random() < 0.9})


def spoilt(rng: random.Random, value: Any) -> Any:
    """Something else than `value`, often made from it."""
    if isinstance(value, str):
        return rng.choice([value.upper(), value.title(), f"./sub/{value}", value[:-1], [value], rng.choice(MADE_UP)])
    if isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice([-value - 1, value * 1000 + 999, str(value), [value], rng.choice(MADE_UP)])
    return rng.choice(MADE_UP)


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_hint_of_any_entry_leaks(category: str) -> None:
    engine, hints = HintEngine(hint_rules()), 0
    for task in load_tasks("all", category):
        ear = play(task, engine)
        assert ear.leaks == [], task.task_id
        hints += ear.hints
    assert hints > 1_000


class Blabs:
    """A rule that says what it must not know."""

    name = "blabs"

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __call__(self, scene: Scene) -> Advice | None:
        return Advice(f"Wrong. Try {self.secret}!")


@pytest.mark.parametrize(
    ("task_id", "secret"),
    [
        ("multi_turn_base_0", "budget analysis"),  # an argument of a later ground-truth call
        ("multi_turn_base_0", "previous_report.pdf"),  # a file that nobody has seen yet
        ("multi_turn_base_100", "amount=2203.4"),  # a number
        ("multi_turn_miss_func_2", "cp"),  # held out until a later turn
        ("multi_turn_base_0", "get_flight_cost"),  # a tool of another API
        ("multi_turn_long_context_103", "233.33"),  # state that only code puts there
    ],
)
def test_a_rule_that_leaks_is_caught(task_id: str, secret: str) -> None:
    ear = play(load_task(task_id), HintEngine((Blabs(secret),)))
    assert ear.leaks


def test_a_rule_that_says_what_was_shown_is_not_caught() -> None:
    ear = play(load_task("multi_turn_base_0"), HintEngine((Blabs("the folder 'document' with ls, cd or find"),)))
    assert ear.hints
    assert not ear.leaks


@lru_cache(maxsize=4096)
def runs(text: str) -> set[str]:
    """The runs of one to six words in a text, without quotes, brackets and final punctuation around them."""
    words = text.replace("=", " ").split()
    found = set()
    for start in range(len(words)):
        for end in range(start + 1, min(start + LONGEST_RUN, len(words)) + 1):
            run = " ".join(words[start:end])
            bare = run.strip("\"'.,:;()[]{}!?")
            found |= {run, bare, bare.removesuffix(".0")}
    return found


# --- secrets ---


def ground_truth_values(task: Task) -> Iterator[str]:
    for calls in task.data["ground_truth"]:
        for text in calls:
            yield from texts_in(parse_call(text).args)


def state_of(task: Task) -> Iterator[str]:
    return texts_in(task.data["initial_config"], keys=True)


def answers_of(task: Task) -> Iterator[str]:
    """What the ground truth will be answered; also hidden state, as long as it was not shown."""
    env = BfclEnvironment(task)
    for calls in task.data["ground_truth"]:
        env.open_turn()
        for text in calls:
            with contextlib.suppress(ValueError):
                yield from texts_in(json.loads(env.run_text(text)))
        env.close_turn()


def texts_in(value: Any, *, keys: bool = False) -> Iterator[str]:
    """Every string and number in plain data; a number also without ".0", a string of several lines not at all."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if keys and key not in state_words():
                yield str(key)
            yield from texts_in(item, keys=keys)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item, keys=keys)
    elif isinstance(value, str):
        if 0 < len(value) <= 80:
            yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from (str(value), str(value).removesuffix(".0"))


@lru_cache(maxsize=1)
def state_words() -> frozenset[str]:
    """The field names of the worlds' own data format, such as "contents": keys that most worlds of an API share."""
    counts: dict[str, int] = {}
    tasks = load_tasks("all", "base")
    for task in tasks:
        for key in set(_keys(task.data["initial_config"])):
            counts[key] = counts.get(key, 0) + 1
    return frozenset(key for key, count in counts.items() if count > len(tasks) / 10)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _keys(item)


@lru_cache(maxsize=1)
def all_tools() -> frozenset[str]:
    return frozenset(doc["name"] for api in APIS for doc in function_docs(api))


_SCHEMAS: dict[str, Mapping[str, Any]] = {}


def schema_of(tool: BaseTool) -> Mapping[str, Any]:
    """What hints read of a tool; the same tool declares the same in every task."""
    if tool.name not in _SCHEMAS:
        _SCHEMAS.update(tool_schemas([tool]))
    return _SCHEMAS[tool.name]


@lru_cache(maxsize=1000)
def declaration(name: str) -> str:
    return json.dumps(_SCHEMAS[name])
