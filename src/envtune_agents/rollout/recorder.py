"""Every reply that a graph's chat models give, also those that its final state does not show."""

from __future__ import annotations

from threading import Lock
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from envtune_agents.tape import Tape, tape_of_messages


class TapeRecorder(BaseCallbackHandler):
    """A callback that gathers the replies of one run of any graph: parallel branches, sub-agents, edited histories.

        recorder = TapeRecorder()
        graph.invoke({"messages": [...]}, {"callbacks": [recorder]})
        recorder.tape.branches

    The tokens come from the replies themselves (`TOKEN_TRACE_KEY`), the callback only finds the replies. Use one for
    each run.
    """

    run_inline = True

    def __init__(self) -> None:
        self.replies: list[AIMessage] = []
        """In the order in which they were finished."""
        self._lock = Lock()

    @property
    def tape(self) -> Tape:
        """The branches of everything said so far."""
        with self._lock:
            return tape_of_messages(list(self.replies))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """Keeps the replies of one finished model call."""
        found = [
            generation.message
            for generations in response.generations
            for generation in generations
            if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage)
        ]
        with self._lock:
            self.replies.extend(found)
