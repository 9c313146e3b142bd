"""One reply of a Qwen model -> content, reasoning, calls to run and calls that must not be run.

In: text, whole or in chunks, and the declared tools. Out: a `ParsedReply`, and events on the way. It runs nothing,
validates no argument against its schema, and knows no tokens.

- Text outside calls and think is content, in front of, between and behind them; a tag that prose mentions is prose.
- Think opens at the start of a reply or by the prompt's end, and nothing inside it is run.
- A call that may have been cut is never run. A complete one whose closing tag is missing is.
- A malformed block is invalid, never content, and spoils no neighbour.
- What an argument quotes is data: a tag inside a JSON string, or inside an XML value that has its end.
- The first end-of-turn token ends the reply, and so does a tool response that the model invents behind a call.
- However the text is cut into chunks, the result is the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from envtune_agents.errors import EnvironmentStateError, TaskError, unknown
from envtune_agents.qwen.bare import may_be_call
from envtune_agents.qwen.blocks import (
    CLOSE,
    END_TOKENS,
    FUNCTION,
    FUNCTION_END,
    OPEN,
    PARAMETER,
    RESPONSE,
    json_body,
    other_body,
)
from envtune_agents.qwen.cursor import SPACE, Cursor, Steps, TagSet
from envtune_agents.qwen.judge import Judge
from envtune_agents.qwen.openings import Opening, is_quoted, opening
from envtune_agents.qwen.output import Event, Output
from envtune_agents.qwen.reply import ParsedCall, ParsedReply
from envtune_agents.qwen.think import THINK, THINK_END, opens_think, read_think
from envtune_agents.qwen.xml_blocks import head, xml_body

MODES: Final = ("strict", "repair")
"""Parse modes: `strict` for scoring and training, `repair` for deployment."""

_START: Final = "<|im_start|>"
_TEXT_TAGS: Final = TagSet((OPEN, CLOSE, FUNCTION, RESPONSE, _START, *END_TOKENS))
_THINK: Final = TagSet((THINK,))
_THINK_TAGS: Final = TagSet((THINK, THINK_END))
_FUNCTION_BODY: Final = TagSet((PARAMETER, FUNCTION_END))
_CALL_LINE: Final = re.compile(rf"^[ \t]*{OPEN}", re.MULTILINE)


def parse_reply(
    text: str, *, tools: Iterable[Mapping[str, Any]] | None = None, prefix: str = "", mode: str = "strict"
) -> ParsedReply:
    """The parts of one whole reply: what `ReplyParser` gives for any way of cutting `text` into chunks."""
    parser = ReplyParser(tools=tools, prefix=prefix, mode=mode)
    parser.feed(text)
    return parser.close()[1]


class ReplyParser:
    """Takes one reply apart while it arrives; single use.

    `tools` are OpenAI-style dicts or bare `{"name", "parameters"}`; `prefix` is the end of the rendered prompt, which
    may have opened think. An unknown `mode` raises `TaskError`.

    Events: `("content", text)`, `("reasoning", text)`, `("name", index, name)` once for each call and before its
    `("args", index, json_fragment)`. A call is announced when it is known to be complete, not letter by letter:
    consumers (LangChain among them) complete half an argument object on their own, and would run a call that was cut.

        parser = ReplyParser(tools=tools)
        for chunk in stream:
            show(parser.feed(chunk))
        events, reply = parser.close()
    """

    def __init__(
        self, tools: Iterable[Mapping[str, Any]] | None = None, prefix: str = "", mode: str = "strict"
    ) -> None:
        if mode not in MODES:
            raise TaskError(unknown("parse mode", mode, MODES))
        self._cursor = Cursor()
        self._out = Output()
        self._tools = list(tools or ())
        self._judge = Judge(self._tools, repairs=mode == "repair")
        self._steps = self._reply(prefix)
        self._running = True
        self._bare_settled = False
        self._result: ParsedReply | None = None

    def feed(self, chunk: str) -> list[Event]:
        """The events that `chunk` settles; what may still become a tag is held back."""
        if self._result is not None:
            raise EnvironmentStateError("A reply parser was fed after close(). Make one ReplyParser for each reply.")
        if self._running:
            self._cursor.push(chunk)
            self._advance()
        return self._out.drain()

    def close(self) -> tuple[list[Event], ParsedReply]:
        """The last events and the whole reply; a second call gives no events and the same reply."""
        if self._result is not None:
            return [], self._result
        self._cursor.final = True
        self._advance()
        self._lift_bare_call()
        self._result = self._out.finish()
        return self._out.drain(), self._result

    def _advance(self) -> None:
        try:
            if self._running:
                next(self._steps)
        except StopIteration:
            self._running = False

    def _reply(self, prefix: str) -> Steps[None]:
        cursor, out = self._cursor, self._out
        lift = self._lift if self._judge.repairs else None
        opened, thinks = opens_think(prefix), 0
        while True:
            cursor.mark()
            yield from cursor.space()
            tag = yield from cursor.starts_with(_THINK_TAGS if thinks else _THINK)
            if not tag and not opened:
                cursor.rewind(0)
                break
            cursor.take(len(tag or ""))
            if tag == THINK_END:
                continue  # a doubled closing tag
            out.reasoning("\n")
            if (yield from read_think(cursor, out, lift, nested=not thinks)):
                return
            opened, thinks = False, thinks + 1
        if self._judge.repairs and self._tools:
            self._out.held = []
        yield from self._text()

    def _text(self) -> Steps[None]:
        cursor, out = self._cursor, self._out
        while True:
            text, tag = cursor.scan(_TEXT_TAGS)
            if text:
                out.content(text)
            if tag is None and cursor.final:
                return
            if tag is None:
                self._watch_bare_call()
                yield
            elif self._ends_reply(tag):
                return
            elif tag == OPEN:
                yield from self._opened()
            elif tag == FUNCTION:
                yield from self._bare_function()
            elif tag == CLOSE and out.after_block:
                cursor.take(len(tag))  # a doubled closing tag
            else:
                out.content(cursor.take(len(tag)))

    def _ends_reply(self, tag: str) -> bool:
        """Whether everything from `tag` on is not the model's to say: a turn ends, or it invents a tool's answer."""
        out = self._out
        if tag == RESPONSE:
            return out.lone and out.blocks > 0
        if tag == _START:
            return out.lone and (out.blocks > 0 or bool(out.text()))
        return tag in END_TOKENS

    def _opened(self) -> Steps[None]:
        cursor, out = self._cursor, self._out
        cursor.mark()
        cursor.take(len(OPEN))
        kind = yield from opening(cursor, out.last, lone=out.lone)
        if kind is Opening.PROSE:
            cursor.rewind(len(OPEN))
            out.content(OPEN)
            return
        out.border()
        if kind is Opening.AGAIN:
            return
        cursor.mark()
        if kind is Opening.XML:
            block = yield from xml_body(cursor, wrapped=True)
        else:
            block = yield from (json_body(cursor) if kind is Opening.JSON else other_body(cursor))
        out.verdicts(self._judge.calls(block))

    def _bare_function(self) -> Steps[None]:
        """`<function=` without `<tool_call>`: a call where the inside of one follows, else prose."""
        cursor, out = self._cursor, self._out
        cursor.mark()
        yield from head(cursor, FUNCTION)
        yield from cursor.space()
        inside = yield from cursor.starts_with(_FUNCTION_BODY)
        cut = inside is None and cursor.at_cut_tag(_FUNCTION_BODY)
        cursor.rewind(0)
        if is_quoted(out.last, "") or not (inside or (cut and out.lone)):
            out.content(cursor.take(len(FUNCTION)))
            return
        block = yield from xml_body(cursor, wrapped=False)
        out.verdicts(self._judge.calls(block))

    def _lift(self, text: str) -> tuple[str, list[ParsedCall]]:
        """Take complete calls off the end of an unclosed think."""
        end = len(text)
        calls: list[ParsedCall] = []
        for found in reversed(list(_CALL_LINE.finditer(text))):
            part = text[found.start() : end].strip(SPACE)
            reply = parse_reply(part, tools=self._tools, mode="repair") if part.endswith(CLOSE) else ParsedReply()
            if not reply.tool_calls or reply.content or reply.invalid:
                break
            end, calls = found.start(), [*reply.tool_calls, *calls]
        return text[:end], calls

    def _watch_bare_call(self) -> None:
        out = self._out
        if out.held and not self._bare_settled:
            answer = may_be_call("".join(out.held), self._judge.declares)
            self._bare_settled = answer is not None
            if answer is False:
                out.release()

    def _lift_bare_call(self) -> None:
        """In repair mode, a whole reply that is one call without its tags."""
        out = self._out
        if out.held is None:
            return
        calls = self._judge.bare_calls(out.text()) if out.held else []
        if calls:
            out.drop_held()
            out.verdicts(calls)
        out.release()
