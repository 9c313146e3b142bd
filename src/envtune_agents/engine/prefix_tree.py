"""Which tokens the model has read, as a tree: what prompts share is computed and stored once.

A node is a run of tokens with a stretch of the arena; the way from the root to a node is a text. A request gets a leaf.
Nodes in use and their ancestors stay; the others go when room is needed, least recently used first.

Imports torch: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from envtune_agents.engine.arena import Arena
from envtune_agents.engine.kv_cache import common_prefix

MIN_SHARED = 16
"""A shorter common part is computed again: each node costs a call of the attention kernel in every layer."""
MAX_DROPPED = 64
"""A cached text that a prompt leaves only here before its end is shortened instead of split: a reply tokenised anew."""
MAX_DEPTH = 6
"""A leaf that would lie deeper copies its text instead, for the same reason."""
MAX_COPY = 4096
"""Most tokens that are copied to keep a text in one piece."""

_serials = count()


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens that follows its parent's."""

    parent: Node | None
    ids: list[int]
    """Its tokens; a leaf in use grows."""
    start: int
    """Its first token's place in the arena."""
    capacity: int
    """Length of its stretch."""
    offset: int
    """Tokens before it in the text."""
    filled: int = 0
    """How many of its tokens the model has read (or will have, once the forward pass under way is done)."""
    filler: object | None = None
    """The request that reads its prompt tokens, while that is unfinished."""
    users: int = 0
    """Requests whose leaf it is: 0 or 1."""
    last_used: int = 0
    children: list[Node] = field(default_factory=list)
    serial: int = field(default_factory=lambda: next(_serials))

    @property
    def end(self) -> int:
        """Tokens of the text up to here, these included."""
        return self.offset + len(self.ids)

    def forget_last(self, count: int) -> None:
        """The last tokens, all of which were read, are not part of the text after all."""
        del self.ids[len(self.ids) - count :]
        self.filled -= count

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class PrefixTree:
    """The tokens held in one arena."""

    def __init__(self, arena: Arena, *, keep: bool = True) -> None:
        """`keep=False` forgets every text when its request ends."""
        self._arena = arena
        self._keep = keep
        self._roots: dict[str | None, Node] = {}
        """The empty text of each LoRA adapter, whose keys and values are its own."""
        self._retired: list[Node] = []
        self._clock = count(1)

    def lease(self, prompt: Sequence[int], room: int, adapter: str | None) -> Node | None:
        """A leaf that ends with the prompt and has `room` tokens to spare; None when memory is held by other requests.

        What other texts share with it is not stored again, except the prompt's last token, whose logits are wanted.
        """
        ids = list(prompt)
        node = self._longest_match(ids, adapter)
        leaf = self._continued(node, ids, room) or self._new_leaf(node, ids, room)
        if leaf is not None:
            leaf.users += 1
            self._touch(leaf)
        return leaf

    def release(self, leaf: Node, owner: object) -> None:
        """The request is over: keep what was read, give back the rest."""
        leaf.users -= 1
        for node in leaf.path():
            if node.filler is owner:
                node.filler = None
        self._touch(leaf)
        self._trim(leaf)
        self._purge()

    def clear(self) -> None:
        """Forget every text; requests under way keep theirs until they end."""
        self._retired += self._roots.values()
        self._roots = {}
        self._purge()

    def _purge(self) -> None:
        """Drop what nobody uses of the texts that are not to be kept."""
        if not self._keep:
            self._retired += self._roots.values()
            self._roots = {}
        while self._retired and self._evict_one(self._retired):
            pass
        self._retired = [root for root in self._retired if root.children]

    def _touch(self, leaf: Node) -> None:
        now = next(self._clock)
        for node in leaf.path():
            node.last_used = now

    def _longest_match(self, ids: list[int], adapter: str | None) -> Node:
        """The deepest node whose text begins the prompt; a node that only shares its first part is split."""
        node = self._roots.setdefault(adapter, Node(None, [], 0, 0, 0))
        while True:
            rest = ids[node.end : -1]
            lengths = [common_prefix(child.ids, rest) for child in node.children]
            length = max(lengths, default=0)
            if not length:
                return node
            child = node.children[lengths.index(length)]
            left = len(child.ids) - length
            if left and left <= min(length, MAX_DROPPED) and not child.users and not child.children:
                self._shorten(child, length)
            elif left and length < MIN_SHARED:
                return node
            elif left or child.users:
                return self._split(child, length)
            node = child

    def _split(self, child: Node, length: int) -> Node:
        """The first `length` tokens of `child` as a node of their own, above it."""
        assert child.parent is not None
        top = Node(child.parent, child.ids[:length], child.start, length, child.offset, min(child.filled, length))
        top.filler, top.last_used, top.children = child.filler, child.last_used, [child]
        siblings = child.parent.children
        siblings[siblings.index(child)] = top
        child.parent, child.ids = top, child.ids[length:]
        child.start, child.capacity, child.offset = child.start + length, child.capacity - length, top.end
        child.filled -= top.filled
        return top

    def _shorten(self, leaf: Node, length: int) -> None:
        """Forget all but the first `length` tokens of a leaf that nobody uses."""
        del leaf.ids[length:]
        leaf.filled = min(leaf.filled, length)
        self._arena.give(leaf.start + length, leaf.capacity - length)
        leaf.capacity = length

    def _continued(self, node: Node, ids: list[int], room: int) -> Node | None:
        """`node` itself with the prompt appended, if it is nobody's and the arena has room behind it."""
        if node.parent is None or node.users or node.children or node.filled < len(node.ids):
            return None
        missing = len(ids) - node.offset + room - node.capacity
        if missing > 0:
            if not self._arena.extend(node.start + node.capacity, missing):
                return None
            node.capacity += missing
        node.ids += ids[node.end :]
        return node

    def _new_leaf(self, node: Node, ids: list[int], room: int) -> Node | None:
        """A fresh leaf for the part of the prompt that `node`'s text lacks."""
        for base in dict.fromkeys((self._base(node), node)):
            node.users += 1  # not to be evicted
            start = self._take(len(ids) - base.end + room)
            node.users -= 1
            if start is not None:
                break
        else:
            return None
        leaf = Node(base, ids[base.end :], start, len(ids) - base.end + room, base.end)
        for source in node.path():
            if source.offset >= base.end:
                self._arena.copy(source.start, start + leaf.filled, len(source.ids))
                leaf.filled += len(source.ids)
        base.children.append(leaf)
        if base is not node and not node.users and not node.children:
            self._drop(node)
        return leaf

    def _base(self, node: Node) -> Node:
        """The node a new leaf hangs from; what lies between it and `node` is copied into the leaf."""
        path = node.path()
        if not path or any(part.filled < len(part.ids) for part in path):
            return node
        outgrown = not node.users and not node.children
        base = path[MAX_DEPTH // 2] if len(path) > MAX_DEPTH else node.parent if outgrown else node
        assert base is not None
        return base if node.end - base.end <= MAX_COPY else node

    def _take(self, size: int) -> int | None:
        if size > self._arena.free_tokens + sum(_idle_tokens(root) for root in self._roots.values()):
            return None  # evicting would not help
        while (start := self._arena.take(size)) is None:
            if not self._evict_one(self._roots.values()):
                return None
        return start

    def _evict_one(self, roots: Iterable[Node]) -> bool:
        """Drop the least recently used leaf that nobody uses; False when there is none."""
        nodes = (node for root in roots for node in _below(root))
        idle = [node for node in nodes if not node.users and not node.children]
        if idle:
            self._drop(min(idle, key=lambda node: node.last_used))
        return bool(idle)

    def _drop(self, node: Node) -> None:
        assert node.parent is not None
        node.parent.children.remove(node)
        self._arena.give(node.start, node.capacity)

    def _trim(self, leaf: Node) -> None:
        """Give back what a leaf that is no longer in use does not hold."""
        if not leaf.users and not leaf.children:
            self._shorten(leaf, leaf.filled)
            if not leaf.filled:
                self._drop(leaf)


def _below(root: Node) -> Iterator[Node]:
    """Every node under `root`."""
    for child in root.children:
        yield child
        yield from _below(child)


def _idle_tokens(node: Node) -> int:
    """Tokens under `node` that evicting can free."""
    return sum(child.capacity for child in _below(node) if not any(below.users for below in (child, *_below(child))))
