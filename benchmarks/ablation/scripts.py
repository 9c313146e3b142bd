"""Scripted players whose rollouts teach the subject: an expert, and a clumsy one for the warm-up that all arms share.

The clumsy one calls tools in the right form and knows what the user wants, but it forgets preconditions (sign in, open
the folder, look the id up) more often than not. When a failure carries a hint it mostly does what the hint says; when
it does not, it mostly gives up. So the warmed-up model can read hints, as a strong instruct model could, and has
something left to learn.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from envtune_agents.playground.renaming import OTHER_NAMES

PREPARATION = frozenset(
    {
        *("open_folder", "make_folder", "sign_in", "find_contact", "list_messages"),
        *("search_trip", "add_card", "unlock_room", "list_items"),
    }
)
ID_OF = {
    "find_contact": "contact_id",
    "list_messages": "message_id",
    "search_trip": "trip_id",
    "list_items": "item_id",
}
"""The argument whose value a tool tells: who leaves the tool out guesses it."""

FORGETS, FOLLOWS_HINT, RECOVERS, TRIES_ANYWAY = 0.6, 0.85, 0.15, 0.4
"""Chances of the clumsy player: leaving out one preparing call; doing what a hint says; recovering without one; calling
a wrong tool when nothing can be done yet."""


def script_of(job: Any) -> Callable[[list[Any]], str]:
    """A player for one episode: from the conversation to the text of the next reply."""
    random = Random(f"{job.script}/{job.task.task_id}/{job.seed}")
    return _Player(job.task, random, clumsy=job.script == "clumsy").reply


@dataclass(slots=True)
class _Player:
    task: Any
    random: Random
    clumsy: bool
    turn: int = -1
    plan: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    forgotten: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    last: tuple[str, dict[str, Any]] | None = None

    def reply(self, messages: list[Any]) -> str:
        turn = sum(message.type == "human" for message in messages) - 1
        if turn != self.turn:
            self.turn, self.last = turn, None
            self._make_plan(list(self.task.data["solution"][turn]))
        elif messages[-1].type == "tool" and not self._take(str(messages[-1].content)):
            self.plan = []
            return "Sorry, that did not work."
        if not self.plan:
            return "Done." if self.last else "I cannot do that yet. Please tell me more."
        self.last = self.plan.pop(0)
        name, args = self.last
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': self._shown(name, args)})}\n</tool_call>"

    def _make_plan(self, calls: list[tuple[str, dict[str, Any]]]) -> None:
        self.forgotten = []
        if not calls and self.clumsy and self.random.random() < TRIES_ANYWAY:
            tool = self.random.choice(["list_files", "list_messages", "list_bookings"])
            self.plan = [(self.task.data["names"].get(tool, tool), {})]
            return
        last = calls[-1] if calls else None
        self.plan = []
        for call in calls:
            prepares = call is not last and self._own(call[0]) in PREPARATION
            forgets = self.clumsy and prepares and self.random.random() < FORGETS
            (self.forgotten if forgets else self.plan).append(call)

    def _shown(self, name: str, args: dict[str, Any]) -> dict[str, Any]:
        """The arguments as the player writes them: an id it did not look up is guessed from what the user said."""
        if not self.clumsy:
            return args
        said = self.task.turns[self.turn].rstrip(".").split()
        guessed = {ID_OF[tool] for tool in (self._own(call) for call, _ in self.forgotten) if tool in ID_OF}
        keys = OTHER_NAMES[self._own(name)].args if self.task.data["names"] else {}
        guessed |= {keys.get(key, key) for key in guessed}
        return {key: said[-1] if key in guessed else value for key, value in args.items()}

    def _own(self, name: str) -> str:
        """The tool's own name, where the task gives it another."""
        return next((own for own, shown in self.task.data["names"].items() if shown == name), name)

    def _take(self, content: str) -> bool:
        """Reads a tool's answer; False when the player gives up."""
        if '"error"' not in content or self.last is None:
            return True
        if not self.forgotten:
            return False
        chance = FOLLOWS_HINT if '"hint"' in content else RECOVERS
        if self.random.random() >= chance:
            return False
        self.plan = [self.forgotten.pop(0), self.last, *self.plan]
        return True
