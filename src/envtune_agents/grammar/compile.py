"""Lark grammars for Qwen tool calls, compiled by llguidance for one tokenizer."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from envtune_agents.errors import ConstraintError, require
from envtune_agents.grammar.tools import MAX_STRING, ToolChoice, bounded_schema, chosen_tools, tool_name
from envtune_agents.weights import Weights

GRAMMAR_INSTALL = "pip install 'envtune-agents[grammar]'"
MAX_CALLS = 8
"""Most calls in one constrained reply when parallel calls are allowed."""
MIN_STRING = 16
OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"
NO_CALL = f"start: TEXT\nTEXT: /(?s:.*)/ & ~/(?s:.*){OPEN_TAG}(?s:.*)/"
"""Lark for any text in which no tool call opens. Where the tag is a token of its own, text never contains it."""
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Qwen's own JSON spelling, which is `json.dumps`'s: one space after a comma and a colon, none elsewhere."""


def constraint_for(
    tools: Sequence[Mapping[str, Any]],
    tool_choice: ToolChoice,
    *,
    weights: Weights,
    parallel: bool = False,
    max_new_tokens: int = 1024,
) -> GrammarConstraint | None:
    """What `tool_choice` demands of the sampled text, or None when it demands nothing.

    A demanded call is exactly Qwen's JSON form, once (up to eight times when `parallel`), then the end token. Choice
    "none" admits any text without a tool call. Strings get at most `min(256, max_new_tokens / 4)` characters unless
    their schema says otherwise, so that even an untuned model closes its JSON within the budget. `tools` are
    OpenAI-style. Raises `ConstraintError` naming the tool whose schema uses something llguidance does not know.
    Compiled once for each set of tools and tokenizer.
    """
    if tool_choice in ("none", False):
        return _compiled(weights, NO_CALL) if tools else None
    chosen = chosen_tools(tools, tool_choice)
    if not chosen:
        return None
    max_string = max(MIN_STRING, min(MAX_STRING, max_new_tokens // 4))
    grammar = _call_grammar(weights, chosen, max_string, MAX_CALLS if parallel else 1)
    try:
        return _compiled(weights, grammar)
    except ConstraintError:
        for tool in chosen:
            _name_culprit(weights, tool, max_string)
        raise


class GrammarConstraint:
    """A grammar compiled for one tokenizer; `start` gives the state of one reply."""

    def __init__(self, grammar: str, tokenizer: Any, n_vocab: int) -> None:
        """`tokenizer`: an `llguidance.LLTokenizer`; `n_vocab`: its number of tokens."""
        self._llguidance = require("llguidance", feature="tool_choice", install=GRAMMAR_INSTALL)
        self._n_vocab = n_vocab
        failed, messages = self._llguidance.LLMatcher.validate_grammar_with_warnings(grammar, tokenizer)
        if failed:
            raise ConstraintError(f"llguidance refuses the grammar: {messages[0].splitlines()[0]}")
        self._matcher = self._llguidance.LLMatcher(tokenizer, grammar, log_level=0)

    def start(self) -> GrammarState:
        """A fresh state for one reply."""
        return GrammarState(self._matcher.deep_copy(), self._n_vocab)


class GrammarState:
    """Where one reply stands in a grammar."""

    def __init__(self, matcher: Any, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._bitmask = require("llguidance.numpy", feature="tool_choice", install=GRAMMAR_INSTALL)
        self._words = self._bitmask.allocate_token_bitmask(1, n_vocab)

    def restrict(self, logits: Any) -> None:
        """Set refused tokens of `logits` (float tensor, [vocab]) to minus infinity, in place."""
        numpy = require("numpy", feature="tool_choice", install=GRAMMAR_INSTALL)
        torch = require("torch", feature="tool_choice", install=GRAMMAR_INSTALL)
        self._bitmask.fill_next_token_bitmask(self._matcher, self._words, 0)
        bits = numpy.unpackbits(self._words.view(numpy.uint8)[0], bitorder="little")[: self._n_vocab]
        refused = torch.ones(logits.shape[-1], dtype=torch.bool)
        refused[: self._n_vocab] = torch.from_numpy(bits == 0)
        logits.masked_fill_(refused.to(logits.device), float("-inf"))

    def advance(self, token_id: int) -> Sequence[int]:
        """Take a sampled token; the tokens the grammar leaves no choice about, taken too."""
        if self._matcher.is_stopped():
            return []
        forced: list[int] = self._matcher.compute_ff_tokens() if self._matcher.consume_token(token_id) else []
        if self._matcher.is_error() or not self._matcher.consume_tokens(forced):
            raise ConstraintError(f"llguidance stopped in the middle of a reply: {self._matcher.get_error()}")
        return forced


class _Compiler:
    """llguidance's view of one tokenizer, and the grammars compiled for it."""

    def __init__(self, weights: Weights) -> None:
        binding = require("llguidance.hf", feature="tool_choice", install=GRAMMAR_INSTALL)
        self.n_vocab = len(weights.tokenizer)
        self.tokenizer = binding.from_tokenizer(
            weights.tokenizer, n_vocab=self.n_vocab, eos_token=list(weights.end_token_ids)
        )
        self.constraints: dict[str, GrammarConstraint] = {}
        vocabulary = weights.tokenizer.get_vocab()
        self.tags = {tag: self._lark(tag, vocabulary.get(tag)) for tag in (OPEN_TAG, CLOSE_TAG)}
        """Each tag in Lark: its token when the tokenizer has one, else its text."""

    def _lark(self, tag: str, token: int | None) -> str:
        """llguidance keeps added tokens out of text, whatever their `special` flag says, so they are named by id."""
        return f"<[{token}]>" if token is not None and self.tokenizer.is_special_token(token) else json.dumps(tag)


_compilers: WeakKeyDictionary[Any, _Compiler] = WeakKeyDictionary()
_lock = threading.Lock()
_KEPT = 64


def _compiler(weights: Weights) -> _Compiler:
    with _lock:
        if weights.tokenizer not in _compilers:
            _compilers[weights.tokenizer] = _Compiler(weights)
        return _compilers[weights.tokenizer]


def _compiled(weights: Weights, grammar: str) -> GrammarConstraint:
    compiler = _compiler(weights)
    if grammar not in compiler.constraints:
        constraint = GrammarConstraint(grammar, compiler.tokenizer, compiler.n_vocab)
        while len(compiler.constraints) >= _KEPT:
            compiler.constraints.pop(next(iter(compiler.constraints)), None)
        compiler.constraints[grammar] = constraint
    return compiler.constraints[grammar]


def _call_grammar(weights: Weights, tools: Sequence[Mapping[str, Any]], max_string: int, max_calls: int) -> str:
    """Lark for one to `max_calls` calls of `tools`, one a line as the Qwen template writes them."""
    tags = _compiler(weights).tags
    lines = [f'call: {tags[OPEN_TAG]} "\\n" body "\\n" {tags[CLOSE_TAG]}']
    more = f' ("\\n" call){{0,{max_calls - 1}}}' if max_calls > 1 else ""
    lines.insert(0, f"start: call{more}")
    lines.append("body: " + " | ".join(f"body_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        head = json.dumps('{"name": ' + json.dumps(tool_name(tool), ensure_ascii=False) + ', "arguments": ')
        lines.append(f'body_{i}: {head} args_{i} "}}"')
        lines.append(f"args_{i}: %json {json.dumps(_argument_schema(tool, max_string))}")
    return "\n".join(lines)


def _argument_schema(tool: Mapping[str, Any], max_string: int) -> dict[str, Any]:
    declared = tool["function"].get("parameters") or {}
    schema = {"properties": {}, **declared, "type": "object"}
    if not schema["properties"]:
        schema["additionalProperties"] = declared.get("additionalProperties", False)
    return {**bounded_schema(schema, max_string=max_string), "x-guidance": _COMPACT}


def _name_culprit(weights: Weights, tool: Mapping[str, Any], max_string: int) -> None:
    try:
        _compiled(weights, _call_grammar(weights, [tool], max_string, 1))
    except ConstraintError as error:
        reason = str(error).removeprefix("llguidance refuses the grammar: ")
        raise ConstraintError(
            f"The arguments of tool '{tool_name(tool)}' cannot be turned into a grammar: {reason}. Simplify its "
            "schema, or call with tool_choice='auto'."
        ) from error
