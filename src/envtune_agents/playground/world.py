"""What every world of the playground is: plain values, and methods that answer a tool call with a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar, Self

Answer = dict[str, Any]


class World:
    """A small world. A subclass names its tools; each is a method with a docstring and answers with a dictionary.

    Errors are answered as `{"error": …}`, curtly, as real tools do: what to do about them is for a hint to say.
    """

    TOOLS: ClassVar[tuple[str, ...]] = ()
    """Names of the methods that are tools."""
    READS: ClassVar[frozenset[str]] = frozenset()
    """Tools whose answer is what the user asked for; the verdict looks for it."""
    UNCHECKED: ClassVar[frozenset[str]] = frozenset()
    """Parts of the state that the verdict ignores, as BFCL ignores private attributes."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, deepcopy(value))

    def state(self) -> dict[str, Any]:
        """The whole world as one JSON value."""
        return deepcopy(vars(self))

    @classmethod
    def at(cls, state: Mapping[str, Any]) -> Self:
        """A world in the given state."""
        return cls(state)
