"""Classes of phrases: looking for plain words first never loses one."""

from __future__ import annotations

import pytest

from envtune_agents.hint_rules import phrases
from envtune_agents.hint_rules.phrases import Phrases

SAID = {
    "ASKS_LOGIN": """not logged in|not signedin|log in first|login required|please sign in|user not authenticated
        |unauthenticated|not be authenticated|please authenticate|authentication is required|unauthorised|not authorized
        |no user is currently logged in|no one is logged in|must be logged in
        |nobody is signed in|sign in first|you must be signed in|session has expired|invalid access token
        |expired auth token|missing session token|wrong token|token is not initialized|token expired|error 401""",
    "ABSENT": """not found|no such|does not exist|doesn't exist|unknown|invalid|not registered|not available
        |no available|not recognised|cannot find|could not find|no match""",
    "ALREADY": "already done|it exists|duplicate|conflict|cannot go back|not empty",
    "LIMIT": """insufficient|not enough|exceeds|above the|over the limit|too large|too long|too many|too high|too small
        |too low|capacity|less than the minimum limit|limit reached|quota|out of stock|out of range|maximum|minimum""",
    "BAD_VALUE": """invalid syntax|malformed|cannot parse|error while parsing|could not convert|division by zero
        |must be positive|must not be|expected a list|unsupported operand|not a valid date|bad value|valueerror""",
    "NO_FILE": """no such file|no such directory|no such folder|file a not found|directory does not exist
        |folder doesn't exist|path a/b not found|cannot find the file|can't open file|could not find path
        |filenotfounderror|enoent""",
    "FORBIDDEN": """access denied|access is denied|permission denied|not permitted|not allowed|forbidden|no permission
        |insufficient privileges|insufficient scope|status 403|outside of the allowed folders|outside permitted""",
    "DOWN": """connection refused|connection reset|connection timed out|failed to connect|cannot connect
        |could not connect|network error|network is unreachable|name resolution|nameresolution|failed to resolve
        |max retries exceeded|temporarily unavailable|service unavailable|bad gateway|gateway timeout
        |internal server error|request timed out|read timed out|operation timed out|status code: 503|http 500
        |error: 502""",
    "TOO_FAST": "rate limit|too many requests|429|quota exceeded|throttled|throttling",
}


@pytest.mark.parametrize("name", SAID)
def test_every_phrase_of_a_class_is_found(name: str) -> None:
    known: Phrases = getattr(phrases, name)
    for said in SAID[name].split("|"):
        assert known.pattern.search(said.strip()), said
        assert known.occur_in(f"sorry: {said.strip()}."), said


def test_every_class_has_its_phrases_here_and_ordinary_words_are_none() -> None:
    classes = {name: value for name, value in vars(phrases).items() if isinstance(value, Phrases)}
    assert set(classes) == set(SAID)
    assert not any(known.occur_in("the office is closed on tuesdays.") for known in classes.values())
