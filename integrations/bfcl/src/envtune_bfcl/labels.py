"""Entries whose ground truth nobody can meet, each with a proof that a program found and can find again.

`bad_labels()` reads the list that `find_bad_labels()` wrote to `labels.json`. A label is *proved* bad when the verdict
depends on something that an agent can neither see nor work out:

- `unseen_word`: a text must hold a word that stands in no message so far, no tool doc, no initial state, no source
  file of the APIs and no answer.
- `misquote`: a text must be a passage of the user's message with another word in it, one that was said nowhere.
- `altered_copy`: a text must be the words of one answer in other order, spacing or punctuation, as no tool shows them.
- `hidden_tool`: a result is needed that only a tool gives which is held back until a later turn.

Others are *suspicious* only: an agent may well guess right.

- `altered_quote`: a text must be a passage of the user's message, but not letter by letter.
- `unstated_choice`: a number must be one that nobody said, out of the few that its parameter allows.

Every finding is tested on the checker itself: the ground truth with the obvious thing in its place is not valid.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from envtune_agents.types import Task, ToolCall
from envtune_bfcl.calls import call_text, parse_call
from envtune_bfcl.data import API_FILES, function_docs, load_tasks, package_folder
from envtune_bfcl.environment import visible_functions
from envtune_bfcl.truths import truth_of
from envtune_bfcl.verdicts import replay
from envtune_bfcl.worlds import World

PROVED = ("unseen_word", "misquote", "altered_copy", "hidden_tool")
"""Kinds of findings that prove a label bad."""

_FILE = Path(__file__).with_name("labels.json")
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class BadLabel:
    """One finding about the ground truth of one entry."""

    task_id: str
    turn: int
    """0-based index of the turn whose ground truth it is."""
    call: str
    """The ground-truth call."""
    kind: str
    """One of the kinds that this module's docstring lists."""
    evidence: str
    """What was found and where it was looked for."""

    @property
    def proved(self) -> bool:
        """True when no agent can know what the label wants; False when it is only suspicious."""
        return self.kind in PROVED


@lru_cache(maxsize=1)
def bad_labels() -> tuple[BadLabel, ...]:
    """The known findings, entry by entry; those with `proved` are the entries that nobody can solve but by luck."""
    return tuple(BadLabel(**fields) for fields in json.loads(_FILE.read_text(encoding="utf-8")))


def unsolvable() -> dict[str, str]:
    """Task id -> why, for the entries with a label that is proved bad."""
    return {label.task_id: f"{label.kind}: {label.evidence}" for label in bad_labels() if label.proved}


def write_bad_labels() -> None:
    """Write `labels.json` anew, one finding a line."""
    lines = ",\n ".join(json.dumps(asdict(label)) for label in find_bad_labels())
    _FILE.write_text(f"[{lines}]\n", encoding="utf-8")


def find_bad_labels(tasks: Iterable[Task] | None = None) -> list[BadLabel]:
    """Look for bad labels among all tasks; a few seconds."""
    return [label for task in (load_tasks("all") if tasks is None else tasks) for label in _findings(task)]


# --- one task ---


@dataclass(frozen=True, slots=True)
class _Place:
    """One ground-truth call, and what an agent has been shown by then."""

    task: Task
    turn: int
    index: int
    call: ToolCall
    said: set[str]
    """All words of the messages and answers so far; it grows from place to place."""
    made_of: set[str]
    """All words that the tools are made of: docs, initial states, sources."""
    answers: list[str]
    """The texts inside the answers of the calls before this one; it grows too."""

    @property
    def messages(self) -> tuple[str, ...]:
        """The user's messages so far."""
        return self.task.turns[: self.turn + 1]

    @property
    def calls_before(self) -> int:
        """How many ground-truth calls come before this one."""
        return sum(len(turn) for turn in self.task.data["ground_truth"][: self.turn]) + self.index

    def fails_with(self, old: object, new: object) -> bool:
        """Is the ground truth invalid with `new` in place of each argument, or item of one, that is `old`?"""
        args = {name: _swapped(value, old, new) for name, value in self.call.args.items()}
        return self.fails_as([call_text(ToolCall(self.call.name, args))])

    def fails_as(self, texts: list[str]) -> bool:
        """Is the ground truth invalid with these call texts in place of this one?"""
        calls = [[[text] for text in turn] for turn in self.task.data["ground_truth"]]
        calls[self.turn][self.index : self.index + 1] = [[text] for text in texts]
        return not replay(self.task, calls).valid

    def label(self, kind: str, evidence: str) -> BadLabel:
        text = self.task.data["ground_truth"][self.turn][self.index]
        return BadLabel(self.task.task_id, self.turn, text, kind, evidence)


def _findings(task: Task) -> Iterator[BadLabel]:
    for place in _places(task):
        for look in (_hidden_tool, _unseen_word, _misquote, _altered_copy, _altered_quote, _unstated_choice):
            found = look(place)
            if found is not None:
                yield found
                break


def _places(task: Task) -> Iterator[_Place]:
    apis = task.data["involved_classes"]
    made_of = {word for api in apis for word in _api_words(api)}
    made_of.update(word for api in apis for word in _words(json.dumps(task.data["initial_config"].get(api, {}))))
    said: set[str] = set()
    answers: list[str] = []
    for turn, done in enumerate(truth_of(task).turns):
        said.update(_words(task.turns[turn]))
        for index, (text, result) in enumerate(zip(done.calls, done.results, strict=True)):
            yield _Place(task, turn, index, parse_call(text), said, made_of, answers)
            said.update(_words(result))
            answers += _texts(_decoded(result))


# --- the kinds ---


def _hidden_tool(place: _Place) -> BadLabel | None:
    docs = {doc["name"]: doc for _, doc in visible_functions(place.task, place.turn)}
    held = place.task.data.get("missed_function", {})
    if place.call.name in docs or not any(place.call.name in names for names in held.values()):
        return None
    result = _decoded(truth_of(place.task).turns[place.turn].results[place.index])
    keys = set(result) if isinstance(result, dict) else set()
    shown = {key for doc in docs.values() for key in doc["response"].get("properties", {})}
    if not keys or keys & shown or not place.fails_as([]):
        return None
    turns = ", ".join(turn for turn, names in held.items() if place.call.name in names)
    return place.label(
        "hidden_tool",
        f"needs the answer {sorted(keys)} of {place.call.name}, which is held back until turn {turns}; no tool "
        f"shown in turn {place.turn} has such an answer",
    )


def _unseen_word(place: _Place) -> BadLabel | None:
    for text in _texts(place.call.args):
        words = [word for word in _words(text) if not word.isdecimal()]
        unseen = [word for word in words if word not in place.said and word not in place.made_of]
        other = re.sub("|".join(rf"\b{word}\b" for word in unseen), "other", text, flags=re.IGNORECASE)
        if len(text.split()) > 1 and unseen and place.fails_with(text, other):
            where = "message so far, tool doc, initial state, API source or answer"
            return place.label("unseen_word", f"{', '.join(map(repr, unseen))} in {text!r} stands in no {where}")
    return None


def _misquote(place: _Place) -> BadLabel | None:
    for text in _texts(place.call.args):
        wanted = _words(text)
        for message in place.messages if len(wanted) > 5 else ():
            said = _words(message)
            for start in range(len(said) - len(wanted) + 1):
                pairs = zip(wanted, said[start : start + len(wanted)], strict=True)
                wrong = [(new, old) for new, old in pairs if new != old]
                if len(wrong) != 1 or wrong[0][0] in place.said:
                    continue
                quote = re.sub(rf"\b{wrong[0][0]}\b", wrong[0][1], text, flags=re.IGNORECASE)
                if place.fails_with(text, quote):
                    evidence = f"must say {wrong[0][0]!r} where the user says {wrong[0][1]!r}, in {text!r}"
                    return place.label("misquote", evidence)
    return None


def _altered_copy(place: _Place) -> BadLabel | None:
    for text in _texts(place.call.args):
        if len(_words(text)) < 4 or any(text in shown for shown in (*place.messages, *place.answers)):
            continue
        for answer in place.answers:
            same_words = Counter(_words(answer)) == Counter(_words(text))
            if same_words and place.fails_with(text, answer) and not any(text in other for other in _readable(place)):
                wanted, shown = _where_they_differ(text, answer)
                return place.label("altered_copy", f"must be {wanted!r}; the tools answer {shown!r}")
    return None


def _altered_quote(place: _Place) -> BadLabel | None:
    for text in _texts(place.call.args):
        words = _words(text)
        for message in place.messages:
            passage = re.search(r"[^a-z0-9]+".join(words), message, re.IGNORECASE) if len(words) > 3 else None
            if passage and text not in message and place.fails_with(text, passage[0]):
                return place.label("altered_quote", f"must be {text!r}; the user says {passage[0]!r}")
    return None


def _unstated_choice(place: _Place) -> BadLabel | None:
    documented = {doc["name"]: doc["parameters"]["properties"] for api in API_FILES for doc in function_docs(api)}
    for name, value in place.call.args.items():
        description = documented.get(place.call.name, {}).get(name, {}).get("description", "")
        span = re.search(r"\b(\d+) (?:to|and|-) (\d+)\b", description)
        if span is None or type(value) is not int or not int(span[1]) <= value <= int(span[2]):
            continue
        if str(value) not in place.said and place.fails_with(value, int(span[1]) + int(span[2]) - value - 1):
            return place.label("unstated_choice", f"{name} must be {value} of {span[0]}, which nobody says")
    return None


def _readable(place: _Place) -> Iterator[str]:
    """The texts that tools could show at this place: those of every state, and what the file tools make of files."""
    truth = truth_of(place.task)
    world = World(truth.scenario, "")
    done = [call for turn in truth.turns for call in turn.calls][: place.calls_before]
    for call in done:
        world.run(call)
    for api in truth.scenario.templates:
        yield from _texts([value for value in vars(world.instance(api)).values() if not hasattr(value, "contents")])
    files = world.instance("GorillaFileSystem") if "GorillaFileSystem" in truth.scenario.templates else None
    names = (
        [name for name, item in files._current_dir.contents.items() if not hasattr(item, "contents")] if files else []
    )
    calls = [f"{tool}({name!r})" for tool in ("cat", "sort", "tail") for name in names]
    calls += [f"diff({first!r}, {second!r})" for first in names for second in names]
    for call in calls:
        yield from _texts(_decoded(world.run(call)))


# --- texts ---


def _where_they_differ(first: str, second: str) -> tuple[str, str]:
    """Two texts, or of long ones the passages around their first difference."""
    if len(first) + len(second) < 400:
        return first, second
    pairs = enumerate(zip(first, second, strict=False))
    start = next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
    passage = slice(max(0, start - 60), start + 60)
    return f"…{first[passage]}…", f"…{second[passage]}…"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _texts(value: Any) -> list[str]:
    """Every text inside a JSON value."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for item in items for text in _texts(item)]


def _swapped(value: Any, old: object, new: object) -> Any:
    if isinstance(value, dict):
        return {key: _swapped(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_swapped(item, old, new) for item in value]
    return new if value == old and type(value) is type(old) else value


def _decoded(result: str) -> Any:
    try:
        return json.loads(result)
    except ValueError:
        return result


@cache
def _api_words(api: str) -> frozenset[str]:
    folder = package_folder() / "eval_checker" / "multi_turn_eval" / "func_source_code"
    sources = [(folder / f"{stem}.py").read_text(encoding="utf-8") for stem in (API_FILES[api], "long_context")]
    return frozenset(word for text in (*sources, json.dumps(function_docs(api))) for word in _words(text))
