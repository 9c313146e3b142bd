"""Copies of official instances, and a value that tells whether one was changed.

In: an instance of one of the eight classes. Out: independent copies that own everything their calls can change.
"""

from __future__ import annotations

import copy
import marshal
import random
from typing import Any

Instance = Any
"""An object of one of the official classes, which have no type of their own to name here."""

_PLAIN = frozenset({str, int, float, bool, type(None)})


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
    if kind is SleepingRandom:
        return SleepingRandom(value.source)
    if kind.__name__ == "Directory":
        return _copy_directory(value, None)
    return copy.deepcopy(value) if kind not in _PLAIN else value


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


class SleepingRandom:
    """A random generator that is made only when it is asked for a number.

    `source` is the generator to start like. Nobody asks that one for anything but its state.
    """

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.draws = 0

    def __getattr__(self, name: str) -> Any:
        """A method of the generator. Asking for one counts as a draw."""
        if "awake" not in vars(self):
            self.awake = random.Random(0)
            self.awake.setstate(self.source.getstate())
        self.draws += 1
        return getattr(self.awake, name)


# --- was it changed? ---


def fingerprint(instance: Instance) -> Any:
    """A value that stays equal while an instance stays as it is: types, order, sharing and random state included."""
    plain = vars(instance).copy()
    parts: list[Any] = []
    try:
        for name, value in vars(instance).items():
            if type(value) is SleepingRandom:
                del plain[name]
                parts.append(value.draws)
            elif type(value).__name__ == "Directory":
                del plain[name]
                parts.append(_tree(value) if name == "root" or not _is_attached(value) else id(value))
        parts.append(marshal.dumps(plain))  # exact where `==` is not: 1 and 1.0, the order of keys, one list twice
    except (ValueError, RecursionError):
        parts.append(object())  # equal to nothing
    return parts


def _is_attached(directory: Any) -> bool:
    """Is this directory part of the tree of its topmost parent?"""
    for _ in range(1000):
        if directory.parent is None:
            return True
        if directory.parent.contents.get(directory.name) is not directory:
            return False
        directory = directory.parent
    return False


def _tree(directory: Any) -> Any:
    items = [
        _tree(item) if type(item) is type(directory) else (id(item), item.name, item.content)
        for item in directory.contents.values()
    ]
    return id(directory), directory.name, id(directory.parent), [*directory.contents], items
