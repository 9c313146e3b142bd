"""What users implement: Protocols of one to four methods each. No base class to inherit, nothing to register."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from envtune_agents.types.records import Advice, Scene, Task, ToolCall, ToolFailure, TurnEvidence, TurnScore

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

JsonValue = Any
"""A value that `json.dumps` accepts. Python's type system has no exact name for it."""


@runtime_checkable
class Environment(Protocol):
    """A world for one episode of one task. Single-use: there is no reset, make a new one.

    The loop is `open_turn()`, any number of calls to the tools that `tools()` shows, `close_turn()`, and so on until
    `open_turn()` gives None:

        class Light:
            def __init__(self) -> None:
                self.task, self.on, self.turn = Task("light_1", "base", ("Switch the light on.",)), False, -1
            def open_turn(self) -> str | None:
                self.turn += 1
                return self.task.turns[self.turn] if self.turn < len(self.task.turns) else None
            def tools(self) -> list[BaseTool]:
                return [StructuredTool.from_function(self.switch)]
            def close_turn(self) -> TurnEvidence:
                return TurnEvidence(self.turn, state_checks={"on": self.on})
            def switch(self, on: bool) -> str:
                "Switch the light."
                self.on = on
                return "ok"

    One more attribute is read where an environment has it. `bounded = True` says that turns open and close, and
    `RunsCalls` answers, always within microseconds: that is then done without a deadline and without a thread of its
    own, which is most of what an episode costs beside the model.
    """

    @property
    def task(self) -> Task:
        """The task being played."""
        ...

    def open_turn(self) -> str | None:
        """The next user message, or None when the task has no further turn."""
        ...

    def tools(self) -> Sequence[BaseTool]:
        """The tools visible now; a tool held back until a later turn is not among them."""
        ...

    def close_turn(self) -> TurnEvidence:
        """The facts about the turn that just ended. Called once for each opened turn."""
        ...


@runtime_checkable
class Forkable(Protocol):
    """An environment whose world can be copied at any point: checkpointers, time travel and counterfactuals need it."""

    def snapshot(self) -> JsonValue:
        """The point the world is at now, as a small JSON value. Equal snapshots mean equal worlds."""
        ...

    def fork(self, snapshot: JsonValue = None) -> Environment:
        """An independent environment of the same task at `snapshot`, or at this very point when None."""
        ...


@runtime_checkable
class DetectsFailures(Protocol):
    """An environment that knows its tools' private ways of saying no, such as `{"zipcode": "00000"}`."""

    def detect_failure(self, call: ToolCall, raw_content: str) -> ToolFailure | None:
        """The failure hidden in an answer that looks like success, or None."""
        ...


@runtime_checkable
class ReadsReplies(Protocol):
    """An environment that needs the agent's words: a simulated user, or a task whose result is an answer in text."""

    def read_reply(self, text: str) -> None:
        """The reply that ends the open turn, "" for one without words. Called once a turn, before `close_turn`."""
        ...


@runtime_checkable
class RunsCalls(Protocol):
    """An environment that answers every call itself, also one to a tool that is not visible now.

    BFCL's official executor does that: a held-back tool works for a model that guesses its name.
    """

    def run_call(self, call: ToolCall) -> str:
        """The raw answer to one call. A failing call is answered in words, not raised."""
        ...


@runtime_checkable
class HintRule(Protocol):
    """From one failure to advice, or None when the rule has nothing to say.

    class SayPlease:
        name = "say_please"
        def __call__(self, scene: Scene) -> Advice | None:
            return Advice("The door heard no 'please'.") if "manners" in scene.raw_content else None

    Four more attributes are read where a rule has them. `training_only = True` keeps it out of production
    (`HintEngine.for_serving`). `bounded = True` says that it always answers within microseconds: the engine then asks
    it without a deadline. `kinds`, a set of `FailureKind`, says about which failures it is asked; without it, all.
    `words`, texts in lower case, spares it failures whose first 2,000 characters in lower case hold none of them.
    """

    @property
    def name(self) -> str:
        """Unique name; the ledger and the dial refer to it."""
        ...

    def __call__(self, scene: Scene) -> Advice | None:
        """Advice on this failure. Raising and hanging are recorded as `CallOutcome.hint_error` and fail no call."""
        ...


@runtime_checkable
class ProgressScorer(Protocol):
    """From the facts about one turn to its score: `progress.strict_score` is the paper's."""

    def __call__(self, evidence: TurnEvidence) -> TurnScore:
        """The score; every part in [0, 1]. More satisfied checks never score less."""
        ...
