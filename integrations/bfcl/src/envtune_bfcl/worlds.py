"""Worlds: one set of API instances for one episode, and the official executor's answer to each call.

In: a scenario and call texts. Out: answer texts, byte for byte those of BFCL's `execute_multi_turn_func_call`. A world
owns everything its calls can change, and knows no ground truth.
"""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType
from typing import Any

from envtune_bfcl.apis import MATH_GUARDS, STATELESS, Instance, Scenario, copy_instance, function_like
from envtune_bfcl.calls import Prepared, arguments, evaluate, prepare

_TRAVEL_CLASSES = "Must be one of {'economy', 'business', 'first'}"


class World:
    """One set of API instances: give it call texts in order, it gives the official executor's answers.

    `name` prefixes the instance names, which BFCL writes into string arguments that look like calls. With `twin`, the
    few objects that all official instances of one process share (long-context credit cards, default lists) are the
    twin's; otherwise they are this world's own. Not thread-safe; two worlds never share anything that changes.
    """

    def __init__(self, scenario: Scenario, name: str, twin: World | None = None) -> None:
        self._scenario = scenario
        self._name = name
        self._twin = twin
        self._instances: dict[str, Instance] = {}
        self._bound: dict[str, Callable[..., Any]] = {}
        self._default_lists: dict[str, tuple[Any, ...]] = twin._default_lists if twin else {}
        self._called: set[str] = set()

    def run(self, text: str) -> str:
        """The official answer to one call text. Whatever goes wrong is part of the answer; nothing is raised."""
        try:
            prepared = prepare(text, self._instance_name)
            if prepared.kwargs is None:
                return self._rendered(self._evaluated(prepared))
            return self._rendered(self._method(prepared.method)(*prepared.args, **prepared.kwargs))
        except Exception as error:
            return f"Error during execution: {error}"

    def instance(self, api: str) -> Instance:
        """The instance of this class to read; the untouched template when no call has reached it yet."""
        return self._instances[api] if api in self._instances else self._scenario.templates[api]

    def take_changed(self) -> set[str]:
        """The class names whose methods ran since this was last asked."""
        changed = {self._scenario.methods[name].api for name in self._called}
        self._called.clear()
        return changed

    def sharing_matters(self) -> bool:
        """Was an object changed that official instances of one process would share?"""
        for defaults in self._default_lists.values():
            if any(value for value in defaults if isinstance(value, list)):
                return True
        cards = self._scenario.shared_cards
        if not cards or "TravelAPI" not in self._instances:
            return False
        found = self._instances["TravelAPI"].credit_card_list
        return any(found[card] != info for card, info in cards.items())

    def _evaluated(self, prepared: Prepared) -> Any:
        if not isinstance(prepared.node, ast.Call) or not prepared.method:
            return evaluate(prepared.node, self._resolve)
        method = self._method(prepared.method)
        args, kwargs = arguments(prepared.node, self._resolve)
        return method(*args, **kwargs)

    def _instance_name(self, method: str) -> str | None:
        found = self._scenario.methods.get(method)
        return f"{self._name}_{found.api}_instance" if found else None

    def _resolve(self, function: ast.expr) -> Callable[..., Any]:
        """The method that a rewritten text names as `instance.method`."""
        match function:
            case ast.Attribute(value=ast.Name(id=instance), attr=method) if instance == self._instance_name(method):
                return self._method(method)
        root: ast.AST = function
        while isinstance(root, ast.Attribute | ast.Call):
            root = root.value if isinstance(root, ast.Attribute) else root.func
        if isinstance(root, ast.Name) and not root.id.startswith(f"{self._name}_"):
            raise NameError(f"name '{root.id}' is not defined")
        raise ValueError(f"only tools can be called, not {ast.unparse(function)[:80]}")

    def _method(self, name: str) -> Callable[..., Any]:
        method = self._bound.get(name) or self._bind(name)
        self._called.add(name)
        return method

    def _bind(self, name: str) -> Callable[..., Any]:
        official = self._scenario.methods.get(name)
        if official is None:
            raise NameError(f"name '{name}' is not defined")
        function = official.function
        defaults = function.__defaults__ or ()
        if official.default_lists:
            defaults = self._default_lists.setdefault(name, copy.deepcopy(defaults))
        if official.default_lists or official.global_dicts:
            own = {name: copy.deepcopy(function.__globals__[name]) for name in official.global_dicts}
            function = function_like(function, own, defaults)
        method: Callable[..., Any] = MethodType(function, self._own(official.api))
        if official.api == STATELESS and name in MATH_GUARDS:
            method = partial(MATH_GUARDS[name], method)
        self._bound[name] = method
        return method

    def _own(self, api: str) -> Instance:
        if api not in self._instances:
            self._instances[api] = copy_instance(self._scenario.templates[api])
            if self._twin and api == "TravelAPI":
                cards = self._twin._own(api).credit_card_list
                self._instances[api].credit_card_list.update({c: cards[c] for c in self._scenario.shared_cards})
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
