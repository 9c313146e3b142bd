"""Continuous batching over the slots: replies are asked for at any time and sampled together, one token a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from packed import Adapters, Base, RowAdapters, Slots

PATIENCE = 4
"""Decode steps that a waiting prompt is collected with others for: reading two prompts costs little more than one."""
WORTH_COPYING = 16
"""Tokens that another conversation must have in common with a prompt, beyond what its own slot holds, to be copied."""


@dataclass(slots=True)
class Ask:
    """One reply to sample."""

    key: object
    """Given back with the answer."""
    slot: int
    prompt: list[int]
    max_new: int
    temperature: float


@dataclass(slots=True)
class Answer:
    """One sampled reply."""

    key: object
    ids: list[int]
    logprobs: list[float]
    ended: bool
    """True when an end token was sampled; otherwise the budget was used up."""


@dataclass(slots=True)
class _Row:
    ask: Ask
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Decoder:
    """Decodes for many conversations. `runs[slot]` says whose adapter a slot uses."""

    def __init__(self, base: Base, slots: int, length: int, end_ids: tuple[int, ...], prefill_tokens: int) -> None:
        self.base, self.end_ids, self.length = base, set(end_ids), length
        self._slots = Slots(base, slots, length)
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._rows: dict[int, _Row] = {}
        self._waiting: list[Ask] = []
        self._prefill_tokens = prefill_tokens
        self._lora: RowAdapters | None = None
        self._adapters: Adapters | None = None
        self._runs = torch.zeros(slots, dtype=torch.long, device=base.device)
        self._run_of: list[int] = [0] * slots
        self._members: dict[int, list[int]] = {}
        self._since = 0
        self.decoded = 0
        self.iterations = 0

    def begin(self, adapters: Adapters | None, runs: list[int]) -> None:
        """A new phase: the weights have changed, so nothing that was read is kept. `runs`: the run of each slot."""
        count = len(self._held)
        self._held = [[] for _ in range(count)]
        self._run_of = [*runs, *[0] * (count - len(runs))]
        self._members = {run: [i for i, mine in enumerate(self._run_of) if mine == run] for run in set(self._run_of)}
        self._runs = torch.tensor(self._run_of, device=self.base.device)
        self._adapters = adapters
        with torch.no_grad():
            self._lora = adapters.for_rows(self._runs, self.base.dtype) if adapters else None

    def ask(self, ask: Ask) -> None:
        self._waiting.append(ask)

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._waiting)

    @torch.no_grad()
    def step(self) -> list[Answer]:
        """Reads waiting prompts, or samples one token for every open reply; gives the replies that ended."""
        self._since += 1
        if self._waiting and (not self._rows or self._since >= PATIENCE or len(self._waiting) >= len(self._held) // 8):
            self._since = 0
            return self._prefill()
        return self._decode() if self._rows else []

    def _prefill(self) -> list[Answer]:
        """Reads the waiting prompts; what one of them shares with another of the same run is read once and copied."""
        answers: list[Answer] = []
        while self._waiting:
            now: list[tuple[list[int], Ask]] = []
            later: list[Ask] = []
            for ask in self._waiting:
                keep = self._kept(ask)
                if any(self._twins(ask, other, keep) for _, other in now):
                    later.append(ask)
                else:
                    del self._held[ask.slot][keep:]
                    now.append((ask.prompt[keep:], ask))
            self._waiting = later
            answers += self._read_all(now)
        return answers

    def _kept(self, ask: Ask) -> int:
        """How many tokens of the prompt the slot holds, after copying from a slot of the same run that holds more."""
        most = len(ask.prompt) - 1
        keep = min(_common(self._held[ask.slot], ask.prompt), most)
        shared, donor = max(
            ((min(_common(self._held[slot], ask.prompt), most), slot) for slot in self._slots_of(ask)),
            default=(0, ask.slot),
        )
        if shared < keep + WORTH_COPYING:
            return keep
        self._slots.copy(donor, ask.slot, shared)
        self._held[ask.slot] = self._held[donor][:shared]
        return shared

    def _slots_of(self, ask: Ask) -> list[int]:
        """The other slots of the run."""
        return [slot for slot in self._members[self._run_of[ask.slot]] if slot != ask.slot]

    def _twins(self, ask: Ask, other: Ask, keep: int) -> bool:
        """Whether `other`, which is about to be read, will hold more of the prompt."""
        same = self._run_of[ask.slot] == self._run_of[other.slot]
        return same and min(_common(other.prompt, ask.prompt), len(ask.prompt) - 1) >= keep + WORTH_COPYING

    def _read_all(self, jobs: list[tuple[list[int], Ask]]) -> list[Answer]:
        """Reads new tokens for each of `jobs`, those of like number together."""
        jobs.sort(key=lambda job: len(job[0]))
        answers: list[Answer] = []
        while jobs:
            width, batch = 0, []
            while jobs and (not batch or max(width, len(jobs[0][0])) * (len(batch) + 1) <= self._prefill_tokens):
                width = max(width, len(jobs[0][0]))
                batch.append(jobs.pop(0))
            answers += self._read([ask for _, ask in batch], [new for new, _ in batch], width)
        return answers

    def _read(self, asks: list[Ask], new: list[list[int]], width: int) -> list[Answer]:
        device = self.base.device
        slots = [ask.slot for ask in asks]
        rows = torch.tensor(slots, device=device)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in new], device=device)
        start = torch.tensor([len(self._held[slot]) for slot in slots], device=device)
        counts = torch.tensor([len(ids) for ids in new], device=device)
        lora = self._adapters.for_rows(self._runs[rows], self.base.dtype) if self._adapters else None
        seen = max(len(self._held[slot]) + len(ids) for slot, ids in zip(slots, new, strict=True))
        logits = self._slots.read(rows, ids, start, counts, seen, lora)
        for ask, ids_of_row in zip(asks, new, strict=True):
            self._held[ask.slot] += ids_of_row
            self._rows[ask.slot] = _Row(ask)
        return self._sample(slots, logits)

    def _decode(self) -> list[Answer]:
        device, count = self.base.device, len(self._held)
        self.iterations += 1
        open_slots = list(self._rows)
        if len(open_slots) * 4 <= count:  # few are left: read only them
            chosen = open_slots
            rows = torch.tensor(chosen, device=device)
            lora = self._adapters.for_rows(self._runs[rows], self.base.dtype) if self._adapters else None
        else:
            chosen, rows, lora = list(range(count)), torch.arange(count, device=device), self._lora
        last = [self._rows[slot].ids[-1] if slot in self._rows else 0 for slot in chosen]
        start = [len(self._held[slot]) if slot in self._rows else 0 for slot in chosen]
        counts = [1 if slot in self._rows else 0 for slot in chosen]
        logits = self._slots.read(
            rows,
            torch.tensor(last, device=device)[:, None],
            torch.tensor(start, device=device),
            torch.tensor(counts, device=device),
            max(start) + 1,
            lora,
        )
        for slot in open_slots:
            self._held[slot].append(self._rows[slot].ids[-1])
        return self._sample(chosen, logits)

    def _sample(self, slots: list[int], logits: torch.Tensor) -> list[Answer]:
        """Samples for each open slot among `slots`; `logits`: [len(slots), vocab]."""
        temperatures = [self._rows[slot].ask.temperature if slot in self._rows else 0.0 for slot in slots]
        scale = torch.tensor([t or 1.0 for t in temperatures], device=logits.device)
        logprobs = (logits / scale[:, None]).log_softmax(-1)
        tokens = logits.argmax(-1)
        if any(temperatures):
            drawn = torch.multinomial(logprobs.exp(), 1)[:, 0]
            tokens = torch.where(torch.tensor([t > 0 for t in temperatures], device=logits.device), drawn, tokens)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0]
        answers = []
        for slot, token, logprob in zip(slots, tokens.tolist(), chosen.tolist(), strict=True):
            row = self._rows.get(slot)
            if row is None:
                continue
            row.ids.append(token)
            row.logprobs.append(logprob)
            self.decoded += 1
            room = self.length - len(self._held[slot]) - 1
            if token in self.end_ids or len(row.ids) >= row.ask.max_new or room <= 0:
                del self._rows[slot]
                answers.append(Answer(row.ask.key, row.ids, row.logprobs, token in self.end_ids))
        return answers

    def run(self, asks: list[Ask], done: Callable[[Answer], None]) -> None:
        """Answers all of `asks`."""
        for ask in asks:
            self.ask(ask)
        while self.busy:
            for answer in self.step():
                done(answer)


def _common(left: list[int], right: list[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
