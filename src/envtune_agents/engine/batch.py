"""What one forward pass reads: runs of tokens of several requests, and who sees what.

Imports torch: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from envtune_agents.engine.attention import Span
from envtune_agents.engine.packed_model import PackedModel
from envtune_agents.engine.prefix_tree import Node


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Tokens of one node, to be read in one pass."""

    node: Node
    first: int
    last: int
    """The tokens, `first` to before `last`, counted within the node."""
    wanted: int
    """How many of the last ones logits are wanted of."""
    appended: int = 0
    """How many were added to the node for this pass: sampled tokens, which a pass that fails takes away again."""

    @property
    def branch(self) -> tuple[int, ...]:
        """Sorts pieces so that those of a node and all below it are neighbours, the node's own first."""
        return tuple(node.serial for node in self.node.path())


class Batch:
    """The pieces of one pass. A piece counts as read from the moment it is added; `undo` takes that back."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add_sampled(self, leaf: Node, tokens: Sequence[int]) -> Piece:
        """The next tokens of a reply; logits of each are wanted."""
        leaf.ids += tokens
        piece = Piece(leaf, leaf.filled, len(leaf.ids), len(tokens), len(tokens))
        leaf.filled = len(leaf.ids)
        self._pieces.append(piece)
        return piece

    def add_prompt(self, leaf: Node, owner: object, most: int) -> tuple[int, Piece | None]:
        """Up to `most` unread tokens of a prompt: how many, and the piece that ends it, if one does.

        Stops at a node that another request is reading.
        """
        taken = 0
        for node in leaf.path():
            size = min(len(node.ids) - node.filled, most - taken)
            if node.filled == len(node.ids):
                continue
            if not size or node.filler not in (None, owner):
                break
            last = node.filled + size
            ended = node is leaf and last == len(node.ids)
            self._pieces.append(Piece(node, node.filled, last, 1 if ended else 0))
            node.filled = last
            node.filler = owner if last < len(node.ids) else None
            taken += size
            if ended:
                return taken, self._pieces[-1]
        return taken, None

    def undo(self) -> None:
        """Nothing of this was read."""
        for piece in reversed(self._pieces):
            piece.node.filled = piece.first
            if piece.appended:
                del piece.node.ids[piece.first :]

    def forward(self, packed: PackedModel) -> tuple[torch.Tensor, list[Piece]]:
        """The logits that are wanted, [rows, vocab], and the pieces they belong to, in order."""
        pieces = sorted(self._pieces, key=lambda piece: piece.branch)
        ids: list[int] = []
        texts: list[int] = []
        positions: list[int] = []
        own: list[Span] = []
        wanted: list[int] = []
        for piece in pieces:
            node, at = piece.node, len(ids)
            ids += node.ids[piece.first : piece.last]
            texts += range(node.offset + piece.first, node.offset + piece.last)
            positions += range(node.start + piece.first, node.start + piece.last)
            own.append(Span(at, len(ids), node.start, piece.last))
            wanted += range(len(ids) - piece.wanted, len(ids))
        logits = packed.forward(ids, texts, positions, own, _shared(pieces, own), wanted)
        return logits, [piece for piece in pieces if piece.wanted]


def readable(leaf: Node, owner: object) -> int:
    """How many tokens of its prompt `owner` could read now: those before a node that another request is reading."""
    total = 0
    for node in leaf.path():
        left = len(node.ids) - node.filled
        if left and node.filler not in (None, owner):
            break
        total += left
    return total


def _shared(pieces: Sequence[Piece], own: Sequence[Span]) -> list[list[Span]]:
    """For each depth of the tree, the ancestors' keys with the queries of everything below them."""
    levels: list[dict[Node, Span]] = []
    for piece, span in zip(pieces, own, strict=True):
        for depth, node in enumerate(piece.node.path()[:-1]):
            if depth == len(levels):
                levels.append({})
            first = levels[depth][node].first if node in levels[depth] else span.first
            levels[depth][node] = Span(first, span.last, node.start, len(node.ids))
    return [list(level.values()) for level in levels]
