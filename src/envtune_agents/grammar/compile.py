"""Grammars compiled by llguidance for one tokenizer, and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from envtune_agents.errors import ConstraintError, require
from envtune_agents.grammar.choices import Tool, ToolChoice, Wanted, tool_name, wanted
from envtune_agents.grammar.closing import GRAMMAR_INSTALL, Closer
from envtune_agents.grammar.lark import (
    CLOSE,
    OPEN,
    PARAMETER_END,
    THINK,
    THINK_END,
    Style,
    Thinking,
    Writing,
    argument_schema,
    grammar_text,
)
from envtune_agents.grammar.schemas import MAX_STRING
from envtune_agents.grammar.shortest import options, shortest_json
from envtune_agents.grammar.state import GrammarConstraint
from envtune_agents.weights import Weights

MIN_STRING = 16
MAX_SCHEMA_CHARS = 1_000_000
_REFUSAL = "llguidance refuses the grammar: "
_KEPT = 64


def constraint_for(
    tools: Sequence[Tool],
    tool_choice: ToolChoice,
    *,
    weights: Weights,
    parallel: bool | None = None,
    strict: bool = False,
    answer: Mapping[str, Any] | None = None,
    style: Style = "json",
    thinking: Thinking = "no",
    max_new_tokens: int = 1024,
) -> GrammarConstraint | None:
    """What these settings demand of the sampled text, or None when they demand nothing; see `wanted`.

    A demanded call is exactly Qwen's form in `style`, once (up to eight times when `parallel`), then the end token.
    `answer` is the JSON schema of a reply without calls. A think block of at most half the tokens may come first where
    `thinking` says so. Strings get at most `max_new_tokens` characters unless their schema says otherwise, and the
    reply is made to close before its tokens run out, if the shortest one fits. Raises `ConstraintError` naming the tool
    and the keyword that llguidance does not know. Compiled once for each set of tools and tokenizer.
    """
    goal = wanted(tools, tool_choice, parallel=parallel, strict=strict, answer=answer)
    if goal is None:
        return None
    require("llguidance", feature="tool_choice", install=GRAMMAR_INSTALL)
    compiler = _compiler(weights)
    writing = Writing(
        tags=compiler.tags,
        style=style,
        thinking=thinking if thinking == "open" or THINK in compiler.tags else "no",
        max_string=max(MIN_STRING, min(MAX_STRING, max_new_tokens)),
        max_thought=max(1, max_new_tokens // 2),
    )
    if goal.enforce or goal.answer is not None:
        _check(goal)
    try:
        compiled = compiler.compiled(goal, writing)
    except ConstraintError as error:
        _name_culprit(compiler, goal, writing)
        raise ConstraintError(f"response_format cannot be turned into a grammar: {_reason(error)}") from error
    return compiled.within(max_new_tokens) if goal.calls == "must" or goal.enforce or goal.answer else compiled


def constraint_of_text(text: str, weights: Weights) -> GrammarConstraint:
    """The constraint of a grammar in Lark, such as `GrammarConstraint.text` of another process with these weights.

    It is not made to close before its tokens run out. Raises `ConstraintError` when llguidance refuses the grammar.
    """
    require("llguidance", feature="A grammar", install=GRAMMAR_INSTALL)
    if len(text) > MAX_SCHEMA_CHARS:
        raise ConstraintError(f"The grammar has {len(text):,} characters; at most {MAX_SCHEMA_CHARS:,} are accepted.")
    return _compiler(weights).compiled_text(text, lambda: 0)


class _Compiler:
    """llguidance's view of one tokenizer, and the grammars compiled for it."""

    def __init__(self, weights: Weights) -> None:
        binding = require("llguidance.hf", feature="tool_choice", install=GRAMMAR_INSTALL)
        self._matcher = require("llguidance", feature="tool_choice", install=GRAMMAR_INSTALL).LLMatcher
        self._encode = weights.encode
        self._n_vocab = len(weights.tokenizer)
        self._tokenizer = binding.from_tokenizer(
            weights.tokenizer, n_vocab=self._n_vocab, eos_token=list(weights.end_token_ids)
        )
        self._closer = Closer(weights.encode, weights.end_token_ids, self._n_vocab)
        self._kept: dict[str, GrammarConstraint] = {}
        vocabulary = weights.tokenizer.get_vocab()
        named = {tag: vocabulary.get(tag) for tag in (OPEN, CLOSE, THINK, THINK_END)}
        self.tags = {
            tag: int(token)
            for tag, token in named.items()
            if token is not None and self._tokenizer.is_special_token(token)
        }
        """Tags that are tokens of their own."""

    def compiled(self, goal: Wanted, writing: Writing) -> GrammarConstraint:
        return self.compiled_text(grammar_text(goal, writing), lambda: self._jump(goal, writing.style))

    def compiled_text(self, text: str, jump: Callable[[], int]) -> GrammarConstraint:
        if text not in self._kept:
            failed, messages = self._matcher.validate_grammar_with_warnings(text, self._tokenizer)
            if failed:
                raise ConstraintError(_REFUSAL + messages[0].splitlines()[0])
            matcher = self._matcher(self._tokenizer, text, log_level=0)
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[text] = GrammarConstraint(text, matcher, self._n_vocab, self._closer, jump())
        return self._kept[text]

    def _jump(self, goal: Wanted, style: Style) -> int:
        """Most tokens by which one sampled token may put off the end."""
        added: list[str] = []
        for tool in goal.tools if goal.enforce else ():
            schema = argument_schema(tool)
            added += options(schema, schema)
            if style == "xml":
                properties = schema["properties"].items()
                added += (
                    f"<parameter={name}>\n{shortest_json(value, schema)}{PARAMETER_END}" for name, value in properties
                )
            if goal.calls == "may" or goal.max_calls > 1:
                written = f'{{"name": "{tool_name(tool)}", "arguments": {shortest_json(schema, schema)}}}'
                added.append(f"{OPEN}\n{written}\n{CLOSE}")
        if goal.answer is not None:
            added += [*options(goal.answer, goal.answer), str(shortest_json(goal.answer, goal.answer))]
        longest = sorted(added, key=len)[-3:]
        return max((len(self._encode(text)) for text in longest), default=0)


_compilers: WeakKeyDictionary[Any, _Compiler] = WeakKeyDictionary()
_lock = threading.Lock()


def _compiler(weights: Weights) -> _Compiler:
    with _lock:
        if weights.tokenizer not in _compilers:
            _compilers[weights.tokenizer] = _Compiler(weights)
        return _compilers[weights.tokenizer]


def _check(goal: Wanted) -> None:
    """Refuse schemas that no grammar can hold, in words of our own."""
    named = [(f"The arguments of tool '{tool_name(tool)}'", _declared(tool)) for tool in goal.tools if goal.enforce]
    if goal.answer is not None:
        named.append(("The schema of response_format", goal.answer))
    for name, schema in named:
        if not isinstance(schema, Mapping):
            raise ConstraintError(f"{name} should be a JSON schema, a dict; got {schema!r}.")
        if len(str(schema)) > MAX_SCHEMA_CHARS:
            raise ConstraintError(
                f"{name} is a schema of more than {MAX_SCHEMA_CHARS:,} characters, which is too large for a grammar. "
                "Leave out what the model need not choose from, or call with tool_choice='auto'."
            )
        if shortest_json(schema, schema) is None:
            raise ConstraintError(
                f"{name} can never end: a required value contains itself through '$ref'. Make that value optional."
            )


def _declared(tool: Mapping[str, Any]) -> Any:
    declared = tool["function"].get("parameters")
    return {} if declared is None else declared


def _name_culprit(compiler: _Compiler, goal: Wanted, writing: Writing) -> None:
    """Raise for the first tool that cannot be compiled alone."""
    for tool in goal.tools if goal.enforce else ():
        try:
            compiler.compiled(replace(goal, calls="must", tools=(tool,), answer=None), writing)
        except ConstraintError as error:
            raise ConstraintError(
                f"The arguments of tool '{tool_name(tool)}' cannot be turned into a grammar: {_reason(error)}. "
                "Simplify its schema, or call with tool_choice='auto'."
            ) from error


def _reason(error: ConstraintError) -> str:
    return str(error).removeprefix(_REFUSAL)
