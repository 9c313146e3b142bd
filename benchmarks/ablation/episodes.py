"""Episodes played in worker processes, which ask the one process with the model for every reply."""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from worker import Job, Played, Subject, work


def play_all(workers: Workers, jobs: Sequence[Job], decoder: Any, slots: int) -> list[Played]:
    """Plays all jobs, at most `slots` at the same time; slot k is given to the k-th job that is open."""
    from decoder import Ask

    free, waiting = list(range(slots))[::-1], list(jobs)[::-1]
    slot_of: dict[int, int] = {}
    done: list[Played] = []
    preset = {job.key: index for index, job in enumerate(jobs)} if len(jobs) <= slots else None
    while waiting and free:
        _start(workers, waiting.pop(), free, slot_of, preset)
    while len(done) < len(jobs):
        for worker, message in workers.receive(0.0 if decoder.busy else 5.0):
            kind, body = message
            if kind == "done":
                done.append(body)
                free.append(slot_of.pop(body.key))
                if waiting:
                    _start(workers, waiting.pop(), free, slot_of, preset)
            elif kind == "failed":
                raise RuntimeError(f"worker {worker}: {body}")
            else:
                for number, key, prompt, max_new, temperature in body:
                    decoder.ask(Ask((worker, number), slot_of[key], prompt, max_new, temperature))
        answers: dict[int, list[Any]] = {}
        for reply in decoder.step():
            worker, number = reply.key
            answers.setdefault(worker, []).append((number, reply.ids, reply.logprobs, reply.ended))
        for worker, replies in answers.items():
            workers.send(worker, ("tokens", replies))
    return done


def _start(workers: Workers, job: Job, free: list[int], slot_of: dict[int, int], preset: dict[int, int] | None) -> None:
    slot = preset[job.key] if preset else free.pop()
    if preset:
        free.remove(slot)
    slot_of[job.key] = slot
    workers.send(job.key % workers.count, ("play", job))


class Workers:
    """The worker processes."""

    def __init__(self, count: int) -> None:
        context = mp.get_context("spawn")
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.count = count
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def use(self, subject: Subject) -> None:
        """From now on episodes are played with this model's tokenizer."""
        for worker in range(self.count):
            self.send(worker, ("subject", subject))

    def send(self, worker: int, message: Any) -> None:
        self._pipes[worker].send(message)

    def receive(self, timeout_s: float) -> list[tuple[int, Any]]:
        """All messages that have come; waits for one at most `timeout_s`. A dead worker raises."""
        found = []
        for pipe in wait(self._pipes, timeout_s):
            worker = self._pipes.index(pipe)  # type: ignore[arg-type]
            while self._pipes[worker].poll():
                try:
                    found.append((worker, self._pipes[worker].recv()))
                except EOFError:
                    raise RuntimeError(f"worker {worker} died") from None
        return found

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(("quit", None))
        for process in self._processes:
            process.join(5)
