"""The eight official API classes -> scenarios: freshly loaded instances that worlds copy.

The official source files are run under private module names, so a process may use them beside the real `bfcl_eval`
without either seeing the other. The copies own everything their calls can change. Nothing here runs a call.
"""

from __future__ import annotations

import builtins
import decimal
import inspect
import json
import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.machinery import SourceFileLoader
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from envtune_agents.errors import require
from envtune_bfcl.copies import Instance, SleepingRandom
from envtune_bfcl.data import API_FILES, INSTALL, package_folder

_SOURCE_PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
STATELESS = "MathAPI"
_MAX_DIGITS = 100_000
"""Largest precision that MathAPI may compute with; the official executor tries any."""

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
    defaults, code = function.__defaults__ or (), function.__code__
    parameters = code.co_varnames[1 : code.co_argcount]
    flexible = code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    return Method(
        api,
        function,
        None if flexible else parameters,
        required=frozenset(parameters[: len(parameters) - len(defaults)]),
        default_lists=any(isinstance(default, list | dict | set) for default in defaults),
        global_dicts=tuple(name for name in code.co_names if isinstance(function.__globals__.get(name), dict)),
    )


class _Source(SourceFileLoader):
    """Reads the compiled form beside an installed file where there is one, and never writes it."""

    def set_data(self, *_: Any, **__: Any) -> None:
        """Leave the folder as it is."""


@cache
def _source_module(stem: str) -> ModuleType:
    path = package_folder() / "eval_checker" / "multi_turn_eval" / "func_source_code" / f"{stem}.py"
    module = ModuleType(f"{__name__}.{stem}")
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
    code = _Source(stem, str(path)).get_code(stem)
    if code is None:
        raise ImportError(f"{path} has no code")
    exec(code, module.__dict__)
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
    parameters: tuple[str, ...] | None
    """Names in order, without `self`; None for a method with `*`, `**` or keyword-only ones."""
    required: frozenset[str]
    """The parameters without a default."""
    default_lists: bool
    """Has defaults that can change. Python makes those once for a process; a world has its own."""
    global_dicts: tuple[str, ...]
    """Module-level dictionaries it uses. `get_outside_temperature_from_google` writes to one; a world has its own."""

    def takes(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """False when Python refuses these arguments before the first line of the method."""
        if self.parameters is None:
            return True
        given, free = self.parameters[: len(args)], self.parameters[len(args) :]
        fits = len(args) <= len(self.parameters) and all(name in free for name in kwargs)
        return fits and self.required.issubset((*given, *kwargs))


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A freshly loaded instance of one API class, which worlds copy and nobody changes. Equal to itself only."""

    api: str
    instance: Instance
    shared_cards: Mapping[str, Mapping[str, Any]]
    """Long-context credit cards that official instances of one process share, in their first state."""
    long_context: bool


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a task starts from."""

    templates: Mapping[str, Template]
    """Template by class name, in the task's order."""
    methods: Mapping[str, Method]
    """The callable methods by name; of two APIs with one method name the later wins, as in BFCL."""
    long_json: Mapping[int, str] = field(default_factory=dict)
    """JSON of the long-context lists and texts by id: up to 2,000 numbers that many answers repeat."""


def load_scenario(initial_config: Mapping[str, Any], apis: Sequence[str], *, long_context: bool) -> Scenario:
    """The starting point of a task."""
    return scenario_of([_loaded(api, json.dumps(initial_config.get(api, {})), long_context) for api in apis])


def scenario_of(templates: Sequence[Template]) -> Scenario:
    """The scenario that starts from these templates."""
    methods = {name: method for template in templates for name, method in api_methods(template.api).items()}
    long_json = _long_json() if any(template.long_context for template in templates) else {}
    return Scenario({template.api: template for template in templates}, methods, long_json)


@lru_cache(maxsize=1024)
def _loaded(api: str, config_json: str, long_context: bool) -> Template:
    """A template. Three of the four entries of a number begin alike, and loading costs more than all their calls."""
    instance: Instance = api_class(api)()
    if api != STATELESS:
        instance._load_scenario(json.loads(config_json), long_context=long_context)
    for name, value in vars(instance).items():
        if type(value) is random.Random:
            setattr(instance, name, SleepingRandom(value))
    cards = _shared_cards(instance) if api == "TravelAPI" and long_context else {}
    return Template(api, instance, cards, long_context)


def _shared_cards(travel: Instance) -> dict[str, dict[str, Any]]:
    cards, extension = travel.credit_card_list, _source_module("long_context").CREDIT_CARD_EXTENSION
    return {card: dict(info) for card, info in extension.items() if cards[card] is info}


@lru_cache(maxsize=1)
def _long_json() -> dict[int, str]:
    constants = [value for value in vars(_source_module("long_context")).values() if isinstance(value, list | str)]
    plain = [value for value in constants if all(isinstance(item, str | float) for item in value)]  # one holds `...`
    return {id(value): json.dumps(value) for value in plain if len(value) > 100}


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
