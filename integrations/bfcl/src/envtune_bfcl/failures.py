"""BFCL's private ways of saying no: answers that look like success and are failures.

In: one call and its raw answer. Out: a `ToolFailure` or None. The spellings that any tool may use, such as
`{"error": …}` and "Error during execution: …", are the core's (`envtune_agents.hints.classify_failure`). Read from the
sources of bfcl-eval 2026.3.23; a plain fact that happens to be negative, such as a login status that was asked for or
an own inbox that is empty, is not a failure.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from envtune_agents.types import FailureKind, ToolCall, ToolFailure

_REFUSED = {
    "authenticate_twitter": ("authentication_status", False),
    "follow_user": ("follow_status", False),
    "get_nearest_airport_by_city": ("nearest_airport", "Unknown"),
    "get_symbol_by_name": ("symbol", "Stock not found"),
    "get_zipcode_based_on_city": ("zipcode", "00000"),
    "logout": ("success", False),
    "message_login": ("login_status", False),
    "retweet": ("retweet_status", "Already retweeted"),
    "ticket_login": ("success", False),
    "trading_login": ("status", "Already logged in"),
    "trading_logout": ("status", "No user is currently logged in"),
    "unfollow_user": ("unfollow_status", False),
    "verify_traveler_information": ("verification_status", False),
}
"""The field and value by which a tool refuses."""

_FOUND_NOTHING = {
    "filter_stocks_by_price": "filtered_stocks",
    "find": "matches",
    "get_available_stocks": "stock_list",
    "get_user_tickets": "",
    "get_user_tweets": "",
    "grep": "matching_lines",
    "search_messages": "results",
    "search_tweets": "",
}
"""The field whose empty list means that a search found nothing; "" where the answer is the list."""

_WORDLESS = '{"error": ""}'
"""What `logarithm` answers when the exception that it caught has no text."""

_REASONS = ("message", "verification_failure")


def detect_failure(call: ToolCall, raw_content: str) -> ToolFailure | None:
    """The failure hidden in an answer of a BFCL tool, or None.

    A refusal is a TOOL_ERROR with the tool's own words; a search that found nothing, and an addition to the
    watch-list that changed nothing, is an EMPTY_RESULT.
    """
    if raw_content == _WORDLESS:
        return ToolFailure(FailureKind.TOOL_ERROR, raw_content)
    if call.name in _REFUSED:
        return _refusal(raw_content, *_REFUSED[call.name])
    if call.name == "get_user_tickets" and not call.args.get("status"):
        return None  # having no ticket at all is a fact; finding none by a status is a search
    if call.name in _FOUND_NOTHING:
        field = _FOUND_NOTHING[call.name]
        answer = _parsed(raw_content) if len(raw_content) < 200 else None
        empty = answer == [] if not field else isinstance(answer, Mapping) and answer.get(field) == []
        return ToolFailure(FailureKind.EMPTY_RESULT, raw_content) if empty else None
    return _not_added(call, raw_content) if call.name == "add_to_watchlist" else None


def _refusal(raw_content: str, field: str, value: Any) -> ToolFailure | None:
    answer = _parsed(raw_content)
    if not isinstance(answer, Mapping) or answer.get(field, ...) != value:
        return None
    reasons = [str(answer[key]) for key in _REASONS if answer.get(key)]
    return ToolFailure(FailureKind.TOOL_ERROR, reasons[0] if reasons else raw_content)


def _not_added(call: ToolCall, raw_content: str) -> ToolFailure | None:
    """`add_to_watchlist` answers an unknown symbol with the list as it was.

    A symbol that was in the list before is no failure: 27 of the 76 ground-truth calls add such a one.
    """
    answer, stock = _parsed(raw_content), call.args.get("stock")
    listed = answer.get("watchlist") if isinstance(answer, Mapping) else None
    if not isinstance(listed, list) or stock in listed:
        return None
    return ToolFailure(FailureKind.EMPTY_RESULT, raw_content)


def _parsed(raw_content: str) -> Any:
    try:
        return json.loads(raw_content)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(raw_content)  # an answer that JSON cannot hold is Python's `str` of it
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
