"""The live environment, kept in step with the checkpointed state.

LangGraph checkpoints values, not objects. So the state holds the environment's snapshot, and a node that finds the live
environment elsewhere (after a resume, a time travel, or an interrupted node that runs again) works on a fork at the
snapshot. An environment without snapshots is used as it is: its graph cannot be resumed.
"""

from __future__ import annotations

from typing import Any

from envtune_agents.types import Environment, Forkable, JsonValue


class World:
    """One episode's environment, shared by the nodes of one graph."""

    def __init__(self, environment: Environment) -> None:
        self._live = environment
        self._start = self.snapshot()

    @classmethod
    def of(cls, environment: Environment | World) -> World:
        """A world around `environment`, or the world itself."""
        return environment if isinstance(environment, World) else cls(environment)

    @property
    def live(self) -> Environment:
        """The environment as it is now."""
        return self._live

    @property
    def bounded(self) -> bool:
        """Whether the environment says of itself that it always answers at once; see `Environment`."""
        return bool(getattr(self._live, "bounded", False))

    def at(self, snapshot: JsonValue) -> Environment:
        """The environment at `snapshot`, or at its start for None: the live one if it is there, otherwise a fork."""
        if isinstance(self._live, Forkable):
            wanted = self._start if snapshot is None else snapshot
            if self._live.snapshot() != wanted:
                self._live = self._live.fork(wanted)
        return self._live

    def rewind(self, snapshot: JsonValue) -> None:
        """Goes on with a fork at `snapshot`, leaving the live environment to a call that hangs in it."""
        if isinstance(self._live, Forkable) and snapshot is not None:
            self._live = self._live.fork(snapshot)

    def snapshot(self) -> JsonValue:
        """Where the live environment is now; None when it cannot tell."""
        return self._live.snapshot() if isinstance(self._live, Forkable) else None

    def update(self) -> dict[str, Any]:
        """What a node adds to its state update so that a checkpoint knows the world."""
        snapshot = self.snapshot()
        return {} if snapshot is None else {"world": snapshot}
