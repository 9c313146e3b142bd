"""The eight official API classes -> scenarios: freshly loaded instances that worlds copy.

The official source files are run under private module names, so a process may use them beside the real `bfcl_eval`
without either seeing the other. The copies own everything their calls can change. Nothing here runs a call.
"""

from __future__ import annotations

import builtins
import copy
import decimal
import inspect
import json
import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from envtune_agents.errors import require
from envtune_bfcl.data import API_FILES, INSTALL, package_folder

_SOURCE_PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
STATELESS = "MathAPI"
_MAX_DIGITS = 100_000
"""Largest precision that MathAPI may compute with; the official executor tries any."""

Instance = Any
"""An object of one of the official classes, which have no type of their own to name here."""


# --- the official classes ---


@lru_cache(maxsize=len(API_FILES))
def api_class(api: str) -> type:
    """The official class of this name, private to this package."""
    if api == STATELESS:
        require("mpmath", feature="MathAPI", install=INSTALL)
    found: type = getattr(_source_module(API_FILES[api]), api)
    return found


@lru_cache(maxsize=len(API_FILES))
def api_methods(api: str) -> dict[str, Method]:
    """Public methods of an API class by name, documented or not: what the executor can call."""
    functions = inspect.getmembers(api_class(api), inspect.isfunction)
    return {name: _method(api, function) for name, function in functions if not name.startswith("_")}


def _method(api: str, function: FunctionType) -> Method:
    lists = any(isinstance(default, list | dict | set) for default in function.__defaults__ or ())
    names = function.__code__.co_names
    return Method(api, function, lists, tuple(n for n in names if isinstance(function.__globals__.get(n), dict)))


@cache
def _source_module(stem: str) -> ModuleType:
    path = package_folder() / "eval_checker" / "multi_turn_eval" / "func_source_code" / f"{stem}.py"
    module = ModuleType(f"{__name__}.{stem}")
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
    # Compiled here and not by importlib, which would look up and write __pycache__ beside the installed file.
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def _import(name: str, *context: Any) -> Any:
    """`__import__` of the official sources: their siblings are private modules too."""
    if name.startswith(f"{_SOURCE_PACKAGE}."):
        return _source_module(name.rpartition(".")[2])
    return builtins.__import__(name, *context)


# --- scenarios: what a world starts from ---


@dataclass(frozen=True, slots=True)
class Method:
    """One official method."""

    api: str
    function: FunctionType
    default_lists: bool
    """Has defaults that can change. Python makes those once for a process; a world has its own."""
    global_dicts: tuple[str, ...]
    """Module-level dictionaries it uses. `get_outside_temperature_from_google` writes to one; a world has its own."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Freshly loaded instances of a task's APIs, which worlds copy and nobody changes."""

    templates: Mapping[str, Instance]
    """Instance by class name, in the task's order."""
    methods: Mapping[str, Method]
    """The callable methods by name; of two APIs with one method name the later wins, as in BFCL."""
    shared_cards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Long-context credit cards that official instances of one process share, in their first state."""
    long_json: Mapping[int, str] = field(default_factory=dict)
    """JSON of the long-context lists and texts by id: up to 2,000 numbers that many answers repeat."""


def load_scenario(initial_config: Mapping[str, Any], apis: Sequence[str], *, long_context: bool) -> Scenario:
    """The starting point of a task."""
    templates = {api: _loaded(api, json.dumps(initial_config.get(api, {})), long_context) for api in apis}
    methods = {name: method for api in apis for name, method in api_methods(api).items()}
    if not long_context:
        return Scenario(templates, methods)
    return Scenario(templates, methods, _shared_cards(templates), _long_json())


@lru_cache(maxsize=1024)
def _loaded(api: str, config_json: str, long_context: bool) -> Instance:
    """A template. Three of the four entries of a number begin alike, and loading costs more than all their calls."""
    instance: Instance = api_class(api)()
    if api != STATELESS:
        instance._load_scenario(json.loads(config_json), long_context=long_context)
    for name, value in vars(instance).items():
        if type(value) is random.Random:
            setattr(instance, name, _SleepingRandom(value.getstate()))
    return instance


def _shared_cards(templates: Mapping[str, Instance]) -> dict[str, dict[str, Any]]:
    if "TravelAPI" not in templates:
        return {}
    cards, extension = templates["TravelAPI"].credit_card_list, _source_module("long_context").CREDIT_CARD_EXTENSION
    return {card: dict(info) for card, info in extension.items() if cards[card] is info}


@lru_cache(maxsize=1)
def _long_json() -> dict[int, str]:
    constants = [value for value in vars(_source_module("long_context")).values() if isinstance(value, list | str)]
    plain = [value for value in constants if all(isinstance(item, str | float) for item in value)]  # one holds `...`
    return {id(value): json.dumps(value) for value in plain if len(value) > 100}


# --- copies ---


def copy_instance(instance: Instance) -> Instance:
    """An independent copy of a loaded instance."""
    new = object.__new__(type(instance))
    vars(new).update(copied(instance))
    if "_current_dir" in vars(instance):
        new._current_dir = new.root  # a loaded file system starts at its root
    return new


def copied(instance: Instance) -> dict[str, Any]:
    """An independent copy of an instance's attributes."""
    attributes = vars(instance).copy()
    attributes.pop("_current_dir", None)
    for name, value in attributes.items():
        if type(value) not in _PLAIN:
            attributes[name] = copy_value(value)
    return attributes


def copy_value(value: Any) -> Any:
    """An independent copy of plain data, of a random generator, or of a file system's tree."""
    kind = type(value)
    if kind is dict:
        return {key: item if type(item) in _PLAIN else copy_value(item) for key, item in value.items()}
    if kind is list:
        return [item if type(item) in _PLAIN else copy_value(item) for item in value]
    if kind is _SleepingRandom:
        return _SleepingRandom(value.state)
    if kind.__name__ == "Directory":
        return _copy_directory(value, None)
    return copy.deepcopy(value) if kind not in _PLAIN else value


_PLAIN = frozenset({str, int, float, bool, type(None)})


def _copy_directory(directory: Any, parent: Any) -> Any:
    new = object.__new__(type(directory))
    new.name, new.parent = directory.name, parent
    new.contents = contents = {}
    for name, item in directory.contents.items():
        if type(item) is type(directory):
            contents[name] = _copy_directory(item, new)
        else:
            contents[name] = file = object.__new__(type(item))
            file.__dict__ = item.__dict__.copy()
    return new


class _SleepingRandom:
    """A random generator that is made only when it is asked for a number; at rest it is its state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __getattr__(self, name: str) -> Any:
        """Called for a name that is not there yet, so once for each method of the generator."""
        if "awake" not in vars(self):
            self.awake = random.Random(0)
            self.awake.setstate(self.state)
        method = getattr(self.awake, name)
        setattr(self, name, method)
        return method


# --- arithmetic that could run for ever, or change this process ---


def function_like(function: FunctionType, names: dict[str, Any], defaults: tuple[Any, ...] | None) -> FunctionType:
    """The same function with other defaults, and with `names` in place of some of its module's."""
    new = FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, defaults, function.__closure__
    )
    new.__qualname__ = function.__qualname__  # part of the official error messages
    return new


def _bounded(digits: Any) -> None:
    if isinstance(digits, int | float) and digits > _MAX_DIGITS:
        raise ValueError(f"precision of {digits} digits is above {_MAX_DIGITS}")


_of_thread = threading.local()


def _private_mpmath() -> SimpleNamespace:
    """What `logarithm` uses of mpmath, with a precision that only this thread's calls of it set and read."""
    if not hasattr(_of_thread, "mpmath"):
        context = require("mpmath", feature="MathAPI", install=INSTALL).MPContext()
        _of_thread.mpmath = SimpleNamespace(mp=context, log=context.log)
    private: SimpleNamespace = _of_thread.mpmath
    return private


def _logarithm(method: MethodType, *args: Any, **kwargs: Any) -> Any:
    """`MathAPI.logarithm` with a precision of its own; the official one sets mpmath's for the whole process."""
    _bounded(kwargs.get("precision", args[2] if len(args) > 2 else 0))
    function: Any = method.__func__
    private = function_like(function, {"mpmath": _private_mpmath()}, function.__defaults__)
    return MethodType(private, method.__self__)(*args, **kwargs)


def _square_root(method: MethodType, *args: Any, **kwargs: Any) -> Any:
    """`MathAPI.square_root`; the official one sets the decimal precision for the whole thread."""
    _bounded(kwargs.get("precision", args[1] if len(args) > 1 else 0))
    with decimal.localcontext():
        return method(*args, **kwargs)


def _power(method: MethodType, *args: Any, **kwargs: Any) -> Any:
    """`MathAPI.power`; a result that Python could not print anyway is not worked out."""
    base, exponent = [*args, *(kwargs[name] for name in ("base", "exponent") if name in kwargs), None, None][:2]
    if isinstance(base, int) and isinstance(exponent, int):
        limit = sys.get_int_max_str_digits()
        if limit and (base.bit_length() - 1) * exponent > 3.33 * limit:
            raise ValueError(f"Exceeds the limit ({limit} digits) for integer string conversion")
    return method(*args, **kwargs)


def _round_number(method: MethodType, *args: Any, **kwargs: Any) -> Any:
    """`MathAPI.round_number`; rounding to more places than a number can have gives the same as to 5000 of them."""

    def places(value: Any) -> Any:
        return max(-5000, min(5000, value)) if type(value) is int else value

    rounded = {name: places(value) if name == "decimal_places" else value for name, value in kwargs.items()}
    return method(*args[:1], *map(places, args[1:]), **rounded)


MATH_GUARDS: dict[str, Callable[..., Any]] = {
    "logarithm": _logarithm,
    "power": _power,
    "round_number": _round_number,
    "square_root": _square_root,
}
