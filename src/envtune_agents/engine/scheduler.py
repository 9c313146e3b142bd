"""Continuous batching: every forward pass holds the next token of all running requests and a piece of new prompts.

Imports torch: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from envtune_agents.engine.batch import Batch, Piece, readable
from envtune_agents.engine.job import Job, check_adapter, token_budget, use_adapter
from envtune_agents.engine.packed_model import PackedModel
from envtune_agents.engine.prefix_tree import Node, PrefixTree
from envtune_agents.engine.reply import Reply
from envtune_agents.engine.request import GenerationResult
from envtune_agents.engine.sampling import Tokens, choose
from envtune_agents.engine.turns import Waiting, deal
from envtune_agents.errors import EngineError
from envtune_agents.weights import Weights

MAX_ROWS = 64
"""Most requests that run at once; the others wait for their turn."""
NEWCOMERS = 8
"""How many more may run, each of a caller of whom nothing runs."""
CPU_CHUNK, GPU_CHUNK = 512, 4096
"""Most prompt tokens read in one pass; a quarter while other requests are sampling, which wait for it."""
FULL_PASS = 16
"""Rows up to which guessed tokens join a decoding pass on a CPU: so many cost little more than a few."""
MIN_SHARE = 32
"""Prompt tokens a request gets of a pass at least, while there are any."""


@dataclass(slots=True, eq=False)
class Row:
    """A request that runs."""

    job: Job
    reply: Reply
    leaf: Node
    read: int = 0
    """Prompt tokens that were read for this request, not found in the tree."""
    served: int = 0
    """The step that last read some of them, or the one before it joined."""

    @property
    def caller(self) -> str:
        """Who asked."""
        return self.job.request.caller


class Scheduler:
    """Serves jobs in packed passes.

    A request joins when there is memory for its prompt and its whole token budget, so that none is ever thrown out
    again. Callers have turns and equal shares, as in `turns`.
    """

    batches: ClassVar[bool] = True

    def __init__(self, weights: Weights, packed: PackedModel, *, keep: bool) -> None:
        """`keep=False`: no text outlives its request."""
        self._weights, self._packed = weights, packed
        self._tree = PrefixTree(packed.arena, keep=keep)
        self._waiting = Waiting()
        self._rows: list[Row] = []
        """The first one's adapter is the next pass's."""
        self._steps = 0
        self._dealt: dict[str, int] = {}
        """The step that last read prompt tokens for each running caller, or the one before it came."""
        self._adapter: tuple[str | None, ...] = ()
        """The adapter that is active, in a tuple; empty when that is not known."""
        on_cpu = packed.model.device.type == "cpu"
        self._chunk = CPU_CHUNK if on_cpu else GPU_CHUNK
        self._full_pass = FULL_PASS if on_cpu else 0

    def add(self, job: Job) -> None:
        """Take a job into the queue."""
        self._waiting.add(job)

    @property
    def busy(self) -> bool:
        """Whether a job waits or runs."""
        return bool(self._waiting or self._rows)

    def clear_cache(self) -> None:
        """Forget the keys and values of finished requests, and of the running ones when they end."""
        self._tree.clear()

    def model_touched(self) -> None:
        """A caller's function had the model: its active adapter may be another."""
        self._adapter = ()
        if self._packed.graphs:
            self._packed.graphs.forget()

    def fail(self, error: Exception) -> None:
        """Tell every caller that `error` ended their request."""
        for row in list(self._rows):
            self._end(row, error)
        for job in self._waiting.leave():
            job.emit(error)

    def step(self) -> None:
        """Drop and admit requests, then one forward pass for those of one adapter."""
        for row in [row for row in self._rows if row.job.cancelled.is_set()]:
            self._end(row, None)
        self._steps += 1
        self._admit_waiting()
        if self._rows:
            first = self._rows[0]
            adapter = first.reply.request.adapter
            self._pass([row for row in self._rows if row.reply.request.adapter == adapter])
            self._rows.sort(key=lambda row: (row.caller == first.caller) + (row is first))

    def _admit_waiting(self) -> None:
        """Start requests while there is room. Whose turn it is waits for memory, so that a large one gets it, too."""
        running = Counter(row.caller for row in self._rows)
        self._dealt = {caller: step for caller, step in self._dealt.items() if caller in running}
        while self._waiting:
            job = self._waiting.next(running)
            room = MAX_ROWS if running[job.request.caller] else MAX_ROWS + NEWCOMERS
            rows = len(self._rows)
            if rows >= room or not self._admit(job):
                return
            self._waiting.take(running)
            running[job.request.caller] += len(self._rows) - rows

    def _admit(self, job: Job) -> bool:
        """Whether the job left the queue: it runs now, or its caller was told why not, or went away."""
        if job.cancelled.is_set():
            return True
        leaf = None
        try:
            request = job.request
            check_adapter(self._packed.model, request.adapter)
            budget = token_budget(self._weights, request, self._packed.room)
            leaf = self._tree.lease(request.prompt_ids, budget, request.adapter)
            if leaf is None and not self._rows:
                self._tree.clear()  # room enough, but in pieces
                leaf = self._tree.lease(request.prompt_ids, budget, request.adapter)
                if leaf is None:
                    raise EngineError("The engine lost memory for keys and values. Make a new one, and report this.")
            if leaf is not None:
                self._rows.append(Row(job, job.reply(self._weights, budget), leaf, served=self._steps - 1))
                self._dealt.setdefault(request.caller, self._steps - 1)
        except Exception as error:  # the caller's request is at fault; the engine goes on
            if leaf is not None:
                self._tree.release(leaf, job)
            job.emit(error)
            return True
        return leaf is not None

    def _end(self, row: Row, outcome: GenerationResult | Exception | None) -> None:
        """The request is over; None when nobody waits for it."""
        self._rows.remove(row)
        self._tree.release(row.leaf, row)
        if outcome is not None:
            row.job.emit(outcome)

    def _pass(self, rows: Sequence[Row]) -> None:
        """One forward pass for some of the rows. If it fails, each has one of its own, and who fails alone is ended."""
        batch = Batch()
        read = {row: row.read for row in rows}
        asking = self._fill(batch, rows)
        ready: list[Row] = []
        chosen: list[Tokens | Exception] = []
        try:
            self._use_adapter(rows[0].reply.request.adapter)
            if batch:
                logits, pieces = batch.forward(self._packed)
                ready = [asking[piece] for piece in pieces]
                chosen = choose(logits, [row.reply for row in ready]) if ready else []
        except Exception as error:  # something in the model failed: find out whose request does it
            batch.undo()
            for row in rows:
                row.read = read[row]
            if len(rows) == 1:
                self._end(rows[0], error)
                return
            for row in rows:
                self._pass([row])
            return
        for row, tokens in zip(ready, chosen, strict=True):
            right = 0 if isinstance(tokens, Exception) else len(tokens) - len(row.reply.forced) - 1
            row.leaf.forget_last(len(row.reply.guessed) - right)
            row.reply.confirm(right)
            self._take(row, tokens)

    def _fill(self, batch: Batch, rows: Sequence[Row]) -> dict[Piece, Row]:
        """Put the rows' next tokens into the batch; the pieces whose logits are wanted, each with its row."""
        sampling = [row for row in rows if row.reply.unread]
        for row in sampling:
            row.reply.guess(max(0, self._full_pass - len(sampling)) // len(sampling))
        asking = {batch.add_sampled(row.leaf, [*row.reply.unread, *row.reply.guessed]): row for row in sampling}
        reading = [row for row in rows if not row.reply.unread]
        reading.sort(key=lambda row: (self._dealt[row.caller], row.served))
        left = self._chunk // 4 if asking else self._chunk
        wanted = [(row.caller, row.job.request.conversation, readable(row.leaf, row)) for row in reading]
        shares = deal(left, wanted, MIN_SHARE)
        for row, share in (*zip(reading, shares, strict=True), *((row, left) for row in reading)):
            taken, last = batch.add_prompt(row.leaf, row, min(share, left))
            if taken:
                row.read += taken
                row.served = self._dealt[row.caller] = self._steps
            left -= taken
            if last is not None:
                asking[last] = row
        return asking

    def _take(self, row: Row, tokens: Tokens | Exception) -> None:
        """Add what was chosen to the row's reply, and end the row when that is over."""
        reply = row.reply
        outcome: GenerationResult | Exception | None = None
        try:
            if isinstance(tokens, Exception):
                raise tokens
            *forced, sampled = tokens
            if any(reply.accept(*token) for token in forced) or reply.take(*sampled):
                outcome = reply.result(len(reply.request.prompt_ids) - row.read)
        except Exception as error:  # its grammar or its caller's sink failed; the others' replies go on
            outcome = error
        if outcome is not None:
            self._end(row, outcome)

    def _use_adapter(self, name: str | None) -> None:
        if self._adapter != (name,):
            self.model_touched()
            use_adapter(self._packed.model, name)
            self._adapter = (name,)
