"""Whose turn it is: requests wait by caller and conversation, and none of them can keep the others waiting.

Comes in: jobs in the order they came. Goes out: which of them starts next, and how many tokens of a pass each gets.
Shares are by caller first, then by conversation, then by request, so that asking more often gets nobody more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from envtune_agents.engine.job import Job


class Waiting:
    """Jobs that have not started."""

    def __init__(self) -> None:
        self._callers: dict[str, dict[str, deque[Job]]] = {}
        """For each caller the jobs of each conversation; both in the order in which their turns come."""

    def __bool__(self) -> bool:
        return bool(self._callers)

    def add(self, job: Job) -> None:
        """A job comes."""
        conversations = self._callers.setdefault(job.request.caller, {})
        conversations.setdefault(job.request.conversation, deque()).append(job)

    def next(self, running: Mapping[str, int]) -> Job:
        """The job that starts next, of those that wait: `running` says how many of each caller run already.

        It is the caller's with the fewest, and among equals the one's whose last turn is longest ago.
        """
        caller = min(self._callers, key=lambda name: running.get(name, 0))
        return next(iter(self._callers[caller].values()))[0]

    def take(self, running: Mapping[str, int] | None = None) -> Job:
        """The job that is `next`, which leaves: its caller and its conversation have had their turn."""
        job = self.next(running or {})
        conversations = self._callers.pop(job.request.caller)
        jobs = conversations.pop(job.request.conversation)
        jobs.popleft()
        if jobs:
            conversations[job.request.conversation] = jobs
        if conversations:
            self._callers[job.request.caller] = conversations
        return job

    def leave(self) -> Iterator[Job]:
        """Every job, which leaves."""
        while self:
            yield self.take()


def deal(total: int, wanted: Sequence[tuple[str, str, int]], least: int) -> list[int]:
    """How many of `total` tokens each request gets, in the order of `wanted`: caller, conversation, tokens it can use.

    Equal shares for callers, within them for conversations, within those for requests; what one cannot use is dealt out
    among the others. Where there are not `least` tokens for each, the first ones get them.
    """
    shares = [0] * len(wanted)

    def split(total: int, members: Sequence[int], depth: int) -> None:
        groups: dict[object, list[int]] = {}
        for i in members:
            groups.setdefault(wanted[i][depth] if depth < 2 else i, []).append(i)
        sizes = [sum(wanted[i][2] for i in group) for group in groups.values()]
        for group, share in zip(groups.values(), _equally(total, sizes, least), strict=True):
            if depth < 2:
                split(share, group, depth + 1)
            else:
                shares[group[0]] = share

    split(total, range(len(wanted)), 0)
    return shares


def _equally(total: int, wanted: Sequence[int], least: int) -> list[int]:
    """Equal shares of `total`, none larger than what is wanted; only for the first ones where they would be tiny."""
    shares = [0] * len(wanted)
    asking = [i for i, tokens in enumerate(wanted) if tokens]
    served = sorted(asking[: max(1, total // least)], key=wanted.__getitem__)
    for rank, i in enumerate(served):
        shares[i] = min(wanted[i], total // (len(served) - rank))
        total -= shares[i]
    return shares
