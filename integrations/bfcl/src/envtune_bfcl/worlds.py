"""Worlds: one set of API instances for one episode, and the official executor's answer to each call.

In: a scenario and call texts. Out: answer texts, byte for byte those of BFCL's `execute_multi_turn_func_call`. A world
owns everything its calls can change, and judges nothing.
"""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

from envtune_bfcl.apis import MATH_GUARDS, STATELESS, Method, Scenario, function_like
from envtune_bfcl.calls import Prepared, arguments, evaluate, prepare
from envtune_bfcl.copies import Instance, copy_instance, fingerprint

_TRAVEL_CLASSES = "Must be one of {'economy', 'business', 'first'}"


Meaning = tuple[str, str]
"""Method and arguments of a call, the same for every way to write it: order, quotes, spacing, names or positions."""


@dataclass(frozen=True, slots=True)
class Tracks:
    """Plain calls of each API, in order from its template on, and the answers that they get."""

    texts: Mapping[str, tuple[str, ...]]
    meanings: Mapping[str, tuple[Meaning | None, ...]]
    results: Mapping[str, tuple[str, ...]]
    homes: Mapping[str, str]
    """The API that each text reaches, the only one."""


NO_TRACKS = Tracks({}, {}, {}, {})


class World:
    """One set of API instances: give it call texts in order, it gives the official executor's answers.

    `name` prefixes the instance names, which BFCL writes into string arguments that look like calls. With `twin`, the
    few objects that all official instances of one process share (long-context credit cards, default lists) are the
    twin's; otherwise they are this world's own. Not thread-safe; two worlds never share anything that changes.

    What a call answers follows from the template and the calls that reached the instance before. So an API whose
    calls are those of its track so far has its answers from there; its instance is made, and makes up for the calls it
    has missed, when another call comes. A call that leaves the instance as it was does not leave the track.
    """

    def __init__(self, scenario: Scenario, name: str, *, twin: World | None = None, tracks: Tracks = NO_TRACKS) -> None:
        self._scenario = scenario
        self._name = name
        self._twin = twin
        self._instances: dict[str, Instance] = {}
        self._bound: dict[str, Callable[..., Any]] = {}
        self._default_lists: dict[str, tuple[Any, ...]] = twin._default_lists if twin else {}
        self._changed: set[str] = set()
        self._tracks = tracks
        self._followed = dict.fromkeys(tracks.texts, 0)
        self._caught_up: dict[str, int] = {}
        self._prints: dict[str, Any] = {}

    def run(self, text: str) -> str:
        """The official answer to one call text. Whatever goes wrong is part of the answer; nothing is raised."""
        at = self._followed.get(home := self._tracks.homes.get(text, ""))
        if at is not None and self._tracks.texts[home][at : at + 1] == (text,):
            return self._follow(home, at)
        try:
            prepared = prepare(text, self._instance_name)
            if not prepared.method:
                return self._rendered(evaluate(prepared.node, self._resolve))
            official = self._official(prepared.method)  # an unknown name is an error before its arguments are
            args, kwargs = self._arguments(prepared)
            if self._is_next(official, prepared.method, args, kwargs):
                return self._follow(official.api, self._followed[official.api])
            return self._rendered(self._called(prepared.method, official, args, kwargs))
        except Exception as error:
            return f"Error during execution: {error}"

    def instance(self, api: str) -> Instance:
        """The instance of this class to read; the untouched template when no call has reached it yet."""
        self._catch_up(api)
        return self._instances[api] if api in self._instances else self._scenario.templates[api].instance

    def take_changed(self) -> set[str]:
        """The class names whose methods ran since this was last asked."""
        changed, self._changed = self._changed, set()
        return changed

    def sharing_matters(self) -> bool:
        """Was an object changed, away from the tracks, that official instances of one process would share?"""
        for defaults in self._default_lists.values():
            if any(value for value in defaults if isinstance(value, list)):
                return True
        if "TravelAPI" not in self._instances:
            return False
        cards = self._scenario.templates["TravelAPI"].shared_cards
        found = self._instances["TravelAPI"].credit_card_list
        return any(found[card] != info for card, info in cards.items())

    # --- following the tracks ---

    def followed(self, api: str) -> int | None:
        """How many calls of its track this API has had; None when its state may be another one than theirs."""
        return self._followed.get(api)

    def stands_at(self, positions: Mapping[str, int]) -> bool:
        """Has every API had just so many calls of its track, and nothing that changed it?"""
        return self._followed == positions

    def jump(self, positions: Mapping[str, int]) -> None:
        """Follow every track up to here at once."""
        self._changed.update([api for api, at in positions.items() if at != self._followed[api]])
        self._followed.update(positions)

    def _is_next(self, official: Method, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        at = self._followed.get(official.api)
        if at is None or at >= len(self._tracks.meanings[official.api]):
            return False
        expected = self._tracks.meanings[official.api][at]
        return expected is not None and expected[0] == name and expected == meaning(official, name, args, kwargs)

    def _follow(self, api: str, at: int) -> str:
        self._followed[api] = at + 1
        self._changed.add(api)
        return self._tracks.results[api][at]

    def _catch_up(self, api: str) -> None:
        """Make the calls that the instance has missed so far."""
        start, end = self._caught_up.get(api, 0), self._followed.get(api, 0)
        if start >= end:
            return
        self._caught_up[api] = end
        self._prints.pop(api, None)
        for text in self._tracks.texts[api][start:end]:
            try:
                call = prepare(text, self._instance_name)
                args, kwargs = self._arguments(call)
                (self._bound.get(call.method) or self._bind(call.method))(*args, **kwargs)
            except Exception:
                continue  # its answer is the track's

    # --- making calls ---

    def _called(self, name: str, official: Method, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if not official.takes(args, kwargs):
            return official.function(None, *args, **kwargs)  # Python refuses it in the official words
        api, method = official.api, self._method(name)
        if api not in self._followed:
            return method(*args, **kwargs)
        before = self._prints.get(api) or fingerprint(self._instances[api])
        try:
            return method(*args, **kwargs)
        finally:
            self._prints[api] = fingerprint(self._instances[api])
            if self._prints[api] != before or official.default_lists or official.global_dicts:
                del self._followed[api]

    def _arguments(self, prepared: Prepared) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if prepared.kwargs is not None:
            return prepared.args, prepared.kwargs
        return arguments(prepared.node, self._resolve) if isinstance(prepared.node, ast.Call) else ((), {})

    def _instance_name(self, method: str) -> str | None:
        found = self._scenario.methods.get(method)
        return f"{self._name}_{found.api}_instance" if found else None

    def _resolve(self, function: ast.expr) -> Callable[..., Any]:
        """The method that a rewritten text names as `instance.method`."""
        match function:
            case ast.Attribute(value=ast.Name(id=instance), attr=method) if instance == self._instance_name(method):
                found = self._method(method)
                self._followed.pop(self._scenario.methods[method].api, None)
                return found
        root: ast.AST = function
        while isinstance(root, ast.Attribute | ast.Call):
            root = root.value if isinstance(root, ast.Attribute) else root.func
        if isinstance(root, ast.Name) and not root.id.startswith(f"{self._name}_"):
            raise NameError(f"name '{root.id}' is not defined")
        raise ValueError(f"only tools can be called, not {ast.unparse(function)[:80]}")

    def _official(self, name: str) -> Method:
        official = self._scenario.methods.get(name)
        if official is None:
            raise NameError(f"name '{name}' is not defined")
        return official

    def _method(self, name: str) -> Callable[..., Any]:
        api = self._official(name).api
        self._catch_up(api)
        self._changed.add(api)
        return self._bound.get(name) or self._bind(name)

    def _bind(self, name: str) -> Callable[..., Any]:
        official = self._official(name)
        function = official.function
        if official.default_lists or official.global_dicts:
            defaults = function.__defaults__ or ()
            if official.default_lists:
                defaults = self._default_lists.setdefault(name, copy.deepcopy(defaults))
            own = {name: copy.deepcopy(function.__globals__[name]) for name in official.global_dicts}
            function = function_like(function, own, defaults)
        method: Callable[..., Any] = MethodType(function, self._own(official.api))
        if official.api == STATELESS and name in MATH_GUARDS:
            method = partial(MATH_GUARDS[name], method)
        self._bound[name] = method
        return method

    def _own(self, api: str) -> Instance:
        if api not in self._instances:
            self._instances[api] = copy_instance(self._scenario.templates[api].instance)
            if self._twin and api == "TravelAPI":
                cards = self._twin._own(api).credit_card_list
                shared = self._scenario.templates[api].shared_cards
                self._instances[api].credit_card_list.update({card: cards[card] for card in shared})
        return self._instances[api]

    def _rendered(self, value: Any) -> str:
        if type(value) is str:
            return value
        if type(value) is not dict:
            return str(value)
        try:
            answer = _json(value, self._scenario.long_json) if self._scenario.long_json else _dumps(value)
        except Exception:
            return str(value)
        return _settled(answer) if "error" in value else answer


def meaning(official: Method, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Meaning | None:
    """What a plain call means; None for arguments that its method does not take."""
    if official.parameters is None or not official.takes(args, kwargs):
        return None
    named = {**dict(zip(official.parameters, args, strict=False)), **kwargs}
    return name, repr(sorted([(key, repr(value)) for key, value in named.items()]))


def _json(value: dict[Any, Any], long_json: Mapping[int, str]) -> str:
    """`json.dumps(value)`, with the JSON of the long constants taken from the table."""
    known = [id(item) in long_json for item in value.values()]
    if True not in known or not all(type(key) is str for key in value):
        return _dumps(value)
    items = [f"{_dumps(key)}: {long_json.get(id(item)) or _dumps(item)}" for key, item in value.items()]
    return f"{{{', '.join(items)}}}"


_dumps = json.JSONEncoder(check_circular=False).encode  # a circle ends in an error too, and becomes `str` all the same


def _settled(answer: str) -> str:
    """Two official messages list a set, in an order that differs from process to process; ours have one order."""
    if "Must be one of {" in answer and answer.endswith('}"}'):
        return answer.partition("Must be one of {")[0] + _TRAVEL_CLASSES + '"}'
    start = '{"error": "Invalid fields for update: '
    if answer.startswith(start):
        return start + ", ".join(sorted(answer[len(start) : -2].split(", "))) + '"}'
    return answer
