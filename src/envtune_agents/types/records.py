"""Every noun that travels through the library, in travel order.

All records are frozen, slotted dataclasses of plain values: they can be compared, copied and written as JSON. Nothing
here imports a framework, and nothing here acts: behaviour lives in the stations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# --- what an episode starts from ---


@dataclass(frozen=True, slots=True)
class Task:
    """One conversation with a goal: who asks what in which order, and the data its environment needs."""

    task_id: str
    """Unique name, such as "multi_turn_base_7"."""
    category: str
    """The group it is reported under, such as "multi_turn_base"."""
    turns: tuple[str, ...]
    """The user messages in order; its length T is the fixed denominator of the episode reward."""
    data: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Whatever the task's environment needs; never shown to the model and never written to a rollout."""


# --- what happens inside a turn ---


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call as the model asked for it."""

    name: str
    """Tool name as written by the model; "" when it could not be read."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments by name, not validated."""
    call_id: str = ""
    """Id that the answering tool message repeats."""


class FailureKind(StrEnum):
    """Why a call did not do its job."""

    MALFORMED_CALL = "malformed_call"
    """The reply's tool-call text does not parse; nothing was run."""
    UNKNOWN_TOOL = "unknown_tool"
    """No tool of this name is visible now."""
    UNKNOWN_ARGUMENT = "unknown_argument"
    """An argument that the tool's schema does not declare."""
    MISSING_ARGUMENT = "missing_argument"
    """A required argument was left out."""
    WRONG_TYPE = "wrong_type"
    """An argument's JSON type differs from the schema's."""
    TOOL_ERROR = "tool_error"
    """The tool ran and answered with an error."""
    EMPTY_RESULT = "empty_result"
    """The tool ran and answered politely that it found or did nothing."""
    TIMEOUT = "timeout"
    """The tool did not answer within the time allowed for one call."""


@dataclass(frozen=True, slots=True)
class ToolFailure:
    """What went wrong with one call."""

    kind: FailureKind
    message: str
    """The tool's or framework's own words, without a traceback."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What a rule knows about one failure, in three parts that the dial reveals one by one.

    Each part is one or two plain sentences to the model. An empty part adds nothing at its level.
    """

    problem: str
    """Level 1: what went wrong, precisely."""
    constraint: str = ""
    """Level 2: the constraint that was broken or the precondition that is missing."""
    pointer: str = ""
    """Level 3: which tool or argument to look at. Never a value that the episode has not shown."""


@dataclass(frozen=True, slots=True)
class Hint:
    """Text added to one failure."""

    rule: str
    """Name of the rule that gave it."""
    level: int
    """Level of the dial at that moment, 1 to 3."""
    text: str
    """Exactly the words the model saw."""


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What one call returned: the tool's own bytes, and what the model was shown."""

    name: str
    args: Mapping[str, Any]
    content: str
    """What the model sees. Equal to `raw_content` unless a hint was added."""
    raw_content: str
    """The tool's own answer; scoring and evaluation read only this."""
    failure: ToolFailure | None = None
    hint: Hint | None = None
    call_id: str = ""
    duration_s: float = 0.0
    """Wall seconds inside the tool."""
    hint_error: str | None = None
    """What went wrong while a hint was looked for: which rule or detector, and how. It never touches the answer."""

    @property
    def call(self) -> ToolCall:
        """The call this is the outcome of."""
        return ToolCall(self.name, self.args, self.call_id)


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a hint rule may look at: the failed call, the tools visible now, and what this episode has shown.

    There is no way from here to the ground truth, to hidden state or to a tool that is held back, so a rule cannot
    leak them.
    """

    call: ToolCall
    failure: ToolFailure
    raw_content: str
    tools: Mapping[str, Mapping[str, Any]]
    """Visible tools by name, each `{"name", "description", "parameters"}` with `parameters` a JSON Schema object."""
    history: Sequence[CallOutcome] = ()
    """Outcomes of this episode so far, oldest first, without the failed call."""
    notes: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What a rule has worked out about this failure and the next one can use; gone with the scene."""


# --- what a turn leaves behind ---


@dataclass(frozen=True, slots=True)
class TurnEvidence:
    """Facts about one finished turn, before anyone turns them into a number."""

    turn: int
    """0-based index of the turn."""
    state_checks: Mapping[str, bool] = field(default_factory=dict)
    """Named checks on the world, such as one for each API object: does it look as it should?"""
    response_checks: Mapping[str, bool] = field(default_factory=dict)
    """Named checks on what the calls returned: was this needed result obtained so far?"""
    answered: bool = True
    """False when calls were needed in this turn and none was made."""
    judged: bool = True
    """False when the task asks for nothing in this turn; such a turn scores 1."""
    differences: Mapping[str, str] = field(default_factory=dict)
    """For people, where the environment can tell: name of a failed check -> what was wanted and what was found. May
    hold ground truth; it is recorded and never shown to the model."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """For people, where the environment can tell: part of the world -> how this turn changed it."""


@dataclass(frozen=True, slots=True)
class TurnScore:
    """The score of one turn."""

    state: float
    """Share of the world that is right, in [0, 1]; 0 or 1 under the paper's scorer (r_state, paper section 3.4)."""
    response: float
    """Share of the needed results that were obtained, in [0, 1] (r_exec)."""
    value: float
    """The turn's score, in [0, 1]."""


class StopReason(StrEnum):
    """Why an episode ended."""

    DONE = "done"
    """Every turn of the task was played."""
    STEP_LIMIT = "step_limit"
    """A turn took more steps than allowed; as in BFCL the whole episode ends."""
    CONTEXT = "context"
    """The next prompt would not fit the model's context."""
    TIMEOUT = "timeout"
    """The episode took longer than allowed."""
    ERROR = "error"
    """The model, environment or scorer raised; `Rollout.error` says what."""


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """The exact tokens of one model call, as sampled; never re-tokenised from text."""

    prompt_token_ids: tuple[int, ...]
    """Length T_prompt."""
    completion_token_ids: tuple[int, ...]
    """Length T_completion, the end token included when it was sampled."""
    logprobs: tuple[float, ...]
    """Length T_completion: natural-log probability of each sampled token under softmax(logits / temperature), with
    temperature 1 for greedy decoding, before truncation (top-p, top-k) and before any grammar."""
    text: str = ""
    """The completion decoded with special tokens kept, end token cut."""
    template_hash: str = ""
    """Which chat template rendered the prompt."""
    constrained: bool = False
    """True when a grammar limited what could be sampled: such tokens are not on-policy."""

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any]) -> TokenTrace:
        """The trace from its plain JSON form, as a reply carries it under `TOKEN_TRACE_KEY`."""
        return cls(
            prompt_token_ids=tuple(fields["prompt_token_ids"]),
            completion_token_ids=tuple(fields["completion_token_ids"]),
            logprobs=tuple(fields["logprobs"]),
            text=fields.get("text", ""),
            template_hash=fields.get("template_hash", ""),
            constrained=bool(fields.get("constrained", False)),
        )

    def as_plain(self) -> dict[str, Any]:
        """The plain JSON form, with lists: what `from_plain` reads. `asdict` would copy every number by itself."""
        return {
            "prompt_token_ids": list(self.prompt_token_ids),
            "completion_token_ids": list(self.completion_token_ids),
            "logprobs": list(self.logprobs),
            "text": self.text,
            "template_hash": self.template_hash,
            "constrained": self.constrained,
        }


TOKEN_TRACE_KEY = "token_trace"
"""Key of an AI message's `response_metadata` under which a `TokenTrace` travels, as plain JSON."""


# --- the record of one episode ---

SCHEMA_VERSION = 2
"""2 added `RolloutTurn.evidence`, `Rollout.tape`, `Rollout.template_hash` and `CallOutcome.hint_error`; records of
version 1 are read as they are."""


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """One model call and the outcomes of the tool calls in its reply."""

    reply: str
    """What the model said, in its own text form."""
    prompt_token_ids: tuple[int, ...] = ()
    """Length T_prompt; empty when the model does not report tokens."""
    completion_token_ids: tuple[int, ...] = ()
    """Length T_completion."""
    logprobs: tuple[float, ...] = ()
    """Length T_completion; see `TokenTrace.logprobs`."""
    constrained: bool = False
    """True when a grammar limited this step's tokens."""
    finish_reason: str = ""
    """"stop", "length" or "tool_calls" where the model reports it."""
    outcomes: tuple[CallOutcome, ...] = ()
    duration_s: float = 0.0
    """Wall seconds of the model call."""


@dataclass(frozen=True, slots=True)
class RolloutTurn:
    """One user message, the steps that answered it, and the score."""

    user: str
    steps: tuple[RolloutStep, ...] = ()
    score: TurnScore | None = None
    """None when the turn was cut off before it could be scored."""
    evidence: TurnEvidence | None = None
    """The facts the score was made from; None when the turn was cut off, and in records of version 1."""


@dataclass(frozen=True, slots=True)
class TapeFacts:
    """What a check of the token tape found when the record was written; see `envtune_agents.tape`."""

    branches: int = 0
    """Unbroken runs of tokens: training rows."""
    drifted: int = 0
    """Model calls whose prompt did not go on exactly from the tokens sampled before."""
    untraced: int = 0
    """Model calls without token ids: good for SFT on text only."""
    sampled_tokens: int = 0
    """Tokens with loss mask 1."""
    on_policy_tokens: int = 0
    """Share of `sampled_tokens` that no grammar limited."""
    broken: bool = False
    """True when an invariant does not hold; such a record is not for training."""
    note: str = ""
    """Which invariant, or why there is no token to train on; "" when all is well."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one episode."""

    input_tokens: int = 0
    """Sum over steps of the whole prompt."""
    output_tokens: int = 0
    cached_tokens: int = 0
    """Share of `input_tokens` that was read from a prefix cache."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall seconds of one episode."""

    total_s: float = 0.0
    model_s: float = 0.0
    tools_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """The record of one episode: one line of `rollouts.jsonl`."""

    rollout_id: str
    """`<task_id>/<seed>/<sample>`: the same call of `collect` gives the same id, which is what resuming relies on."""
    task_id: str
    category: str
    seed: int
    sample: int
    """0-based index among the rollouts of this task."""
    model: str
    stage: str
    """Curriculum stage this was collected for, or "" outside training."""
    hint_level: int
    """Level of the dial at the start of the episode, 0 to 3."""
    turns: tuple[RolloutTurn, ...]
    n_turns: int
    """Number of turns T of the task, played or not: the denominator of `reward`."""
    reward: float | None
    """Episode reward in [0, 1]; None when the episode has an error."""
    stop_reason: StopReason
    error: str | None = None
    """What went wrong, in one line; None when nothing did."""
    usage: Usage = Usage()
    timings: Timings = Timings()
    tape: TapeFacts | None = None
    """None when nobody has checked the tokens yet, and in records of version 1."""
    template_hash: str = ""
    """Which chat template rendered the prompts; "" when the model does not say, and in records of version 1."""
    schema_version: int = SCHEMA_VERSION
    """The form the record was written in; `SCHEMA_VERSION` is the newest."""

    @property
    def solved(self) -> bool:
        """True when every turn of the task was played and scored 1: BFCL's verdict "valid"."""
        scores = [turn.score for turn in self.turns]
        return self.stop_reason is StopReason.DONE and all(score is not None and score.value == 1.0 for score in scores)
