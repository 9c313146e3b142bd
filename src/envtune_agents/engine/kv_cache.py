"""Keys and values of past tokens, and the cache of them that makes an agent's next step cost only its new tokens.

Imports torch and transformers: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 256
"""Tokens of room a buffer is rounded up to."""


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, written in place into a buffer with room to spare.

    transformers' own `DynamicLayer` concatenates, which copies the whole past for every sampled token.
    """

    def __init__(self, capacity: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity = capacity
        self._buffers: list[torch.Tensor] = []
        self._length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values so far, each [1, heads, T, head_dim], after adding the new ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._length + key_states.shape[-2]
        self._reserve(end, key_states, value_states)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : end] = new
        return self._show(end)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget that many last tokens; the sign does not matter."""
        if self._buffers:
            self._show(max(0, self._length - abs(tokens_to_remove)))

    def adopt(self, other: GrowingLayer, length: int) -> None:
        """Begin with a copy of the first `length` tokens of `other`."""
        keys, values = (buffer[:, :, :length] for buffer in other._buffers)
        self.update(keys, values)

    @property
    def nbytes(self) -> int:
        """Bytes held, room included."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)

    def _reserve(self, end: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if self._buffers and end <= self._buffers[0].shape[-2]:
            return
        wanted = max(end, self._capacity, self._length * 5 // 4)
        room = -(-wanted // ROOM) * ROOM
        old, self._buffers = self._buffers, []
        for new in (keys, values):
            self._buffers.append(new.new_empty((*new.shape[:-2], room, new.shape[-1])))
        for buffer, past in zip(self._buffers, old, strict=False):
            buffer[:, :, : self._length] = past[:, :, : self._length]

    def _show(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._length = length
        keys, values = (buffer[:, :, :length] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


class Slot:
    """The past of one sequence: its token ids and, for each, keys and values in every layer."""

    def __init__(self, config: Any, capacity: int) -> None:
        """`capacity`: tokens to make room for at once; more are added as needed."""
        self.ids: list[int] = []
        """Tokens the model has read into `cache`, in order."""
        plain = DynamicCache(config=config)
        self.can_share = all(type(layer) is DynamicLayer for layer in plain.layers)
        """False for sliding-window and linear-attention models, whose past cannot be cut or copied at any length."""
        layers: list[Any] = [GrowingLayer(capacity) for _ in plain.layers]
        self.cache: Cache = Cache(layers=layers) if self.can_share else plain
        self.adapter: str | None = None
        """The LoRA adapter that was active while it was read."""
        self.stale = False
        """True when the weights changed since it was begun: it is not kept then."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        total = 0
        for layer in self.cache.layers:
            tensors = [getattr(layer, "keys", None), getattr(layer, "values", None)]
            held = layer.nbytes if isinstance(layer, GrowingLayer) else sum(t.nbytes for t in tensors if t is not None)
            total += held
        return total

    def adopt(self, other: Slot, length: int) -> None:
        """Begin with a copy of the first `length` tokens of `other`."""
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            assert isinstance(mine, GrowingLayer)
            assert isinstance(theirs, GrowingLayer)
            mine.adopt(theirs, length)
        self.ids = other.ids[:length]


class PrefixCache:
    """Slots of finished requests, the least recently used dropped first.

    A prompt that continues a slot takes it over; one that shares only its beginning (a system prompt with tools, a
    resampled prompt) copies that part, which costs 1% of computing it.
    """

    def __init__(self, config: Any, max_bytes: int) -> None:
        self._config = config
        self._max_bytes = max_bytes
        self._slots: list[Slot] = []

    def take(self, prompt_ids: Sequence[int], capacity: int, adapter: str | None) -> Slot:
        """A slot whose `ids` are the longest known beginning of the prompt, always without the prompt's last token."""
        slot = self._take(prompt_ids, capacity, adapter)
        slot.adapter = adapter
        return slot

    def _take(self, prompt_ids: Sequence[int], capacity: int, adapter: str | None) -> Slot:
        prompt = list(prompt_ids)
        usable = len(prompt) - 1
        lengths = [
            min(common_prefix(slot.ids, prompt), usable) if slot.adapter == adapter else 0 for slot in self._slots
        ]
        whole = [i for i, slot in enumerate(self._slots) if lengths[i] == len(slot.ids) > 0]
        best = max(range(len(lengths)), key=lengths.__getitem__, default=None)
        if best is None or not lengths[best]:
            return Slot(self._config, capacity)
        if best not in whole:
            best = next((i for i in whole if lengths[i] == lengths[best]), best)
        if best in whole:
            return self._slots.pop(best)
        if not self._slots[best].can_share:
            return self._slots.pop(max(whole, key=lengths.__getitem__)) if whole else Slot(self._config, capacity)
        fresh = Slot(self._config, capacity)
        self._slots.append(self._slots.pop(best))
        fresh.adopt(self._slots[-1], lengths[best])
        return fresh

    def put(self, slot: Slot) -> None:
        """Give a slot back; the oldest ones go when the memory budget is used up."""
        if slot.ids and not slot.stale:
            self._slots.append(slot)
        while self._slots and sum(kept.nbytes for kept in self._slots) > self._max_bytes:
            self._slots.pop(0)


def common_prefix(left: list[int], right: list[int]) -> int:
    """How many first elements are equal. Bisects on slices, which compare in C."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
