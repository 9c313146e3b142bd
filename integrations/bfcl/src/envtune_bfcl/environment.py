"""One BFCL task as a live environment: LangChain tools, official answers, the facts of every turn.

In: a task of `load_tasks`. Out: user messages, tools and `TurnEvidence`. Turns are judged by the same code as in
`replay`, so live scores and official verdicts cannot disagree. No step limit is kept here; the agent loop has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from envtune_agents.errors import EnvironmentStateError, TaskError
from envtune_agents.types import CallOutcome, FailureKind, JsonValue, Task, ToolCall, ToolFailure, TurnEvidence
from envtune_bfcl.calls import call_text, called_name, parse_call
from envtune_bfcl.data import API_FILES, Entry, function_docs, load_tasks
from envtune_bfcl.explain import changes, explained, looked_at
from envtune_bfcl.failures import detect_failure
from envtune_bfcl.play import Play

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from envtune_agents.task_source import TaskSource

_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


class BfclEnvironment:
    """The world of one episode. Satisfies `Environment`, `Forkable`, `DetectsFailures` and `RunsCalls`.

    env = BfclEnvironment(load_task("multi_turn_base_0"))
    message = env.open_turn()
    answer = env.run_call(ToolCall("cd", {"folder": "document"}))
    evidence = env.close_turn()

    Single-use. Two environments share nothing that changes. Raises EnvironmentStateError when used out of order.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._play = Play(task)
        self._open = False
        self._before: Mapping[str, Mapping[str, Any]] = {}
        self._tools: tuple[frozenset[str], list[BaseTool]] | None = None

    @property
    def task(self) -> Task:
        """The task being played."""
        return self._task

    @property
    def bounded(self) -> bool:
        """True but for tasks with MathAPI, whose arithmetic takes as long as the numbers are large."""
        return "MathAPI" not in self._task.data["involved_classes"]

    def open_turn(self) -> str | None:
        """The next user message, or None when every turn was played."""
        if self._open:
            raise EnvironmentStateError(f"Turn {self._turn} is still open: call close_turn() before open_turn().")
        if self._turn + 1 >= len(self._task.turns):
            return None
        self._play.open_turn()
        self._open = True
        self._before = looked_at(self._play, copy=True)
        return self._task.turns[self._turn]

    def close_turn(self) -> TurnEvidence:
        """The facts of the open turn: one state check for each API class, one response check for each needed result.

        `differences` and `changes` say for people what failed and what the turn changed.
        """
        self._require_open("close_turn()")
        self._open = False
        evidence = explained(self._play, self._play.close_turn())
        return replace(evidence, changes=changes(self._before, looked_at(self._play)))

    def tools(self) -> Sequence[BaseTool]:
        """The tools visible in this turn, in the official order; before the first turn those of the first turn.

        `args_schema` is a JSON Schema object made from the official docs, so LangChain passes arguments on as they
        are; `metadata` holds "response", the schema of the answer, and "api", the class name.
        """
        visible = visible_functions(self._task, max(self._turn, 0))
        names = frozenset(doc["name"] for _, doc in visible)
        if self._tools is None or self._tools[0] != names:
            self._tools = (names, [_tool(self, api, doc) for api, doc in visible])
        return self._tools[1]

    def run_call(self, call: ToolCall) -> str:
        """The official executor's answer to one call, also of a method that is not visible now. Never raises for it."""
        return self.run_text(call_text(call))

    def run_text(self, text: str) -> str:
        """The official executor's answer to one call text, such as "cd(folder='docs')"."""
        self._require_open("a call")
        return self._play.run(text)

    def detect_failure(self, call: ToolCall, raw_content: str) -> ToolFailure | None:
        """The failure hidden in an answer that looks like success; see `failures`."""
        return detect_failure(call, raw_content)

    def snapshot(self) -> JsonValue:
        """This point as `{"open": bool, "turns": [[call text, …], …]}`: the calls of each turn opened so far."""
        return {"open": self._open, "turns": [list(texts) for texts in self._play.turns]}

    def fork(self, snapshot: JsonValue = None) -> BfclEnvironment:
        """An independent environment at `snapshot`, reached by making its calls again; at this point when None.

        Raises EnvironmentStateError for a value that is no snapshot of this task.
        """
        turns, is_open = _read_snapshot(self.snapshot() if snapshot is None else snapshot, len(self._task.turns))
        new = BfclEnvironment(self._task)
        for index, texts in enumerate(turns):
            new.open_turn()
            for text in texts:
                new.run_text(text)
            if index + 1 < len(turns) or not is_open:
                new.close_turn()
        return new

    @property
    def _turn(self) -> int:
        return len(self._play.turns) - 1

    def _require_open(self, what: str) -> None:
        if not self._open:
            raise EnvironmentStateError(f"No turn is open: {what} needs open_turn() first.")


def _read_snapshot(value: Any, n_turns: int) -> tuple[list[list[str]], bool]:
    turns, is_open = (value.get("turns"), value.get("open")) if isinstance(value, Mapping) else (None, None)
    good = isinstance(turns, list) and isinstance(is_open, bool) and len(turns) <= n_turns and (turns or not is_open)
    if not good or not all(isinstance(t, list) and all(isinstance(text, str) for text in t) for t in turns or ()):
        raise EnvironmentStateError(
            f"Not a snapshot of this task: expected {{'open': bool, 'turns': at most {n_turns} lists of call texts}}."
        )
    return turns or [], bool(is_open)


# --- tools ---


def visible_functions(task: Task, turn: int) -> list[tuple[str, Entry]]:
    """API class and official docs of each tool visible in a turn, in the order in which BFCL shows them.

    Tools held back until a later turn are left out; a revealed tool stands at the end (BFCL
    `populate_test_cases_with_predefined_functions` and `inference_multi_turn_FC`).
    """
    docs = {doc["name"]: (api, doc) for api in task.data["involved_classes"] for doc in function_docs(api)}
    held = task.data.get("missed_function", {})
    order = sorted(held, key=int)
    late = [docs.pop(name) for key in order for name in held[key] if int(key) <= turn]
    for key in order:
        for name in held[key]:
            docs.pop(name, None)
    return [*docs.values(), *late]


def parameters_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of a type in BFCL's own notation: dict, float and tuple renamed, "any" without a type."""
    new = {key: value for key, value in schema.items() if key not in ("type", "properties", "items")}
    name = schema.get("type", "any")
    if name != "any":
        new["type"] = _JSON_TYPES.get(name, name)
    if "properties" in schema:
        new["properties"] = {key: parameters_schema(value) for key, value in schema["properties"].items()}
    if "items" in schema:
        new["items"] = parameters_schema(schema["items"])
    return new


def _tool(env: BfclEnvironment, api: str, doc: Entry) -> BaseTool:
    name: str = doc["name"]
    parameters, response = _schemas(api)[name]
    tool: BaseTool = _tool_class()(
        name=name,
        description=doc["description"],
        args_schema=parameters,
        metadata={"response": response, "api": api},
        func=lambda args: env.run_call(ToolCall(name, args)),
    )
    return tool


@lru_cache(maxsize=len(API_FILES))
def _schemas(api: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """JSON Schemas of parameters and answer by tool name, made once: thousands of live environments share them."""
    docs = function_docs(api)
    return {doc["name"]: (parameters_schema(doc["parameters"]), parameters_schema(doc["response"])) for doc in docs}


@lru_cache(maxsize=1)
def _tool_class() -> Any:
    from langchain_core.tools import StructuredTool

    class ApiTool(StructuredTool):
        """Hands on every argument; `StructuredTool` itself keeps those called config, callbacks and run_manager."""

        def _run(self, /, **args: Any) -> Any:  # type: ignore[override]
            return self.func(args) if self.func else None

        async def _arun(self, /, **args: Any) -> Any:  # type: ignore[override]
            return self._run(**args)

    return ApiTool


# --- what an agent would be shown ---


def try_calls(task: Task, calls: Sequence[str], *, hint_level: int = 0) -> list[CallOutcome]:
    """Make call texts in order in the first turn of a fresh episode, and give what an agent would be shown.

    `hint_level` is the dial's level, 0 (the answers as they are) to 3. A text that does not parse is a
    MALFORMED_CALL; its answer is still the official executor's.
    """
    from envtune_agents.hints import HintDial, HintEngine, tool_schemas
    from envtune_bfcl.rules import hint_rules

    if isinstance(calls, str):
        raise TaskError(f"calls is a list of call texts, got one text {calls[:60]!r}")
    env = BfclEnvironment(task)
    env.open_turn()
    engine, schemas = HintEngine(hint_rules(), HintDial(hint_level)), tool_schemas(env.tools())
    outcomes: list[CallOutcome] = []
    for text in calls:
        call, failure = _read(text)
        raw = env.run_text(text)
        outcome = engine.outcome(
            call, raw, tools=schemas, history=tuple(outcomes), detect=env.detect_failure, failure=failure
        )
        outcomes.append(outcome)
    return outcomes


def _read(text: str) -> tuple[ToolCall, ToolFailure | None]:
    try:
        return parse_call(text), None
    except ValueError as error:
        return ToolCall(called_name(text)), ToolFailure(FailureKind.MALFORMED_CALL, str(error))


def task_source() -> TaskSource:
    """BFCL for the command line: what the entry point "bfcl" of `envtune_agents.task_sources` gives."""
    from envtune_agents.task_source import TaskSource
    from envtune_bfcl.data import fingerprint
    from envtune_bfcl.labels import unsolvable
    from envtune_bfcl.results import export_results, official_verdict
    from envtune_bfcl.rules import hint_rules
    from envtune_bfcl.truths import solution_of

    return TaskSource(
        load=load_tasks,
        environment=BfclEnvironment,
        rules=hint_rules,
        judge=official_verdict,
        malformed_ends_turn=True,
        flagged=unsolvable,
        fingerprint=fingerprint,
        export=export_results,
        solution=solution_of,
    )
