"""What an error says, in classes of phrases: who asks for a login, what is absent, what is over a limit.

In: the beginning of an error in lower case. Out: whether it holds such a phrase. Every failure is held against every
class, so each has plain words of which every one of its phrases holds one; where none occurs the pattern is not asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrases:
    """One class of phrases."""

    words: tuple[str, ...]
    """Every phrase holds one of these; looking for them takes a twentieth of the pattern's time."""
    pattern: re.Pattern[str]
    """For text in lower case."""

    def occur_in(self, said: str) -> bool:
        """Whether one of the phrases is in a text in lower case."""
        return any(map(said.__contains__, self.words)) and self.pattern.search(said) is not None


ASKS_LOGIN = Phrases(
    ("log", "sign", "auth", "session", "token", "401"),
    re.compile(
        r"not (?:logged|signed) ?in|(?:log|\bsign) ?in (?:first|to|before|required)|please (?:log|sign) in"
        r"|login required|(?:not|un) ?(?:be )?authenticated|please authenticate|authentication (?:is )?required"
        r"|unauthori[sz]ed|not authori[sz]ed|no(?:body| user| one| account) is (?:currently )?(?:logged|signed) in"
        r"|must be (?:logged|signed) in"
        r"|session (?:has )?expired"
        r"|(?:invalid|expired|missing|wrong|no) (?:access |auth(?:entication)? |session )?token"
        r"|token (?:is )?(?:not initiali[sz]ed|expired|invalid|missing)|\b401\b"
    ),
)
ABSENT = Phrases(
    ("not ", "n't", "no ", "unknown", "invalid"),
    re.compile(
        r"not found|no such|does(?: not|n't) exist|unknown|invalid|not registered|not available|no available"
        r"|not recogni[sz]ed|cannot find|could not find|no match"
    ),
)
ALREADY = Phrases(
    ("already", "exists", "duplicate", "conflict", "go back", "not empty"),
    re.compile(r"already|\bexists\b|duplicate|conflict|cannot go back|not empty"),
)
LIMIT = Phrases(
    ("insufficient", "enough", "exceed", "above", "limit", "too ", "capacity", "quota", "out of", "mum"),
    re.compile(
        r"insufficient|not enough|exceed|above the|over the limit|too (?:large|long|many|high|small|low)|capacity"
        r"|less than .{0,40}limit|limit reached|quota|out of (?:stock|range)|maximum|minimum"
    ),
)
BAD_VALUE = Phrases(
    ("invalid", "syntax", "malformed", "pars", "convert", "zero", "must ", "expected", "unsupported", "valid", "value"),
    re.compile(
        r"invalid|syntax|malformed|\bpars(?:e|ing)|convert|by zero|must (?:not )?be|expected|unsupported"
        r"|not a valid|bad value|value ?error"
    ),
)
NO_FILE = Phrases(
    ("no such", "file", "director", "folder", "path", "enoent"),
    re.compile(
        r"no such (?:file|directory|folder)"
        r"|(?:file|directory|folder|path)\b.{0,200}?(?:not found|does not exist|doesn't exist)"
        r"|(?:cannot|can't|could not) (?:find|open) (?:the )?(?:file|directory|folder|path)|filenotfound|enoent",
        re.DOTALL,
    ),
)
FORBIDDEN = Phrases(
    ("denied", "permi", "allowed", "forbidden", "insufficient", "403"),
    re.compile(
        r"access (?:is )?denied|permission (?:is )?denied|not permitted|not allowed|forbidden|no permission"
        r"|insufficient (?:permission|privilege|right|scope)s?|\b403\b|outside (?:of )?(?:the )?(?:allowed|permitted)"
    ),
)
DOWN = Phrases(
    ("connect", "network", "resol", "max retries", "unavailable", "gateway", "server error", "timed out", "50"),
    re.compile(
        r"connection (?:refused|reset|aborted|error|timed out|failed)|failed to connect|cannot connect"
        r"|could not connect|network (?:is )?(?:error|unreachable)|name ?resolution|failed to resolve"
        r"|max retries exceeded|(?:temporarily|service|currently|server) unavailable"
        r"|bad gateway|gateway time-?out|internal server error|(?:request|read|connection|operation) timed out"
        r"|(?:status|code|http|error)\W{0,3}(?:code\W{0,3})?50[0234]\b"
    ),
)
TOO_FAST = Phrases(
    ("rate limit", "too many requests", "429", "quota exceeded", "throttl"),
    re.compile(r"rate limit|too many requests|\b429\b|quota exceeded|throttl"),
)
