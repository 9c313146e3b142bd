"""Room for the keys and values of a fixed number of tokens, handed out in contiguous stretches.

Imports torch: import this module inside functions of the engine thread only.
"""

from __future__ import annotations

from bisect import insort

import torch


class Arena:
    """Keys and values of `capacity` tokens in every layer, each [kv heads, capacity, head size], written in place.

    A stretch of tokens is contiguous in every layer, so attention reads it as a view. A layer's memory is set aside
    when its first keys are written, in their type and on their device.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._free: list[tuple[int, int]] = [(0, capacity)] if capacity else []  # (start, end), ascending, apart

    def write(
        self, layer: int, positions: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's whole keys and values after the new ones, [kv heads, T, head size], went to `positions`."""
        stored = self._layers.get(layer)
        if stored is None:
            keep = [new.new_empty((new.shape[0], self.capacity, new.shape[2])) for new in (keys, values)]
            stored = self._layers[layer] = (keep[0], keep[1])
        for kept, new in zip(stored, (keys, values), strict=True):
            kept.index_copy_(1, positions.to(kept.device), new)
        return stored

    def reserve(self, like: Arena) -> None:
        """Set every layer's memory aside, with the shapes, types and devices of `like`, before anything is written."""
        for layer, pair in like._layers.items():
            keys, values = (stored.new_empty((stored.shape[0], self.capacity, stored.shape[2])) for stored in pair)
            self._layers[layer] = (keys, values)

    @property
    def bytes_per_token(self) -> int:
        """Bytes one token takes in all layers written so far."""
        held = sum(tensor.numel() * tensor.element_size() for pair in self._layers.values() for tensor in pair)
        return held // self.capacity if self.capacity else 0

    @property
    def free_tokens(self) -> int:
        """Tokens nobody holds."""
        return sum(end - start for start, end in self._free)

    def take(self, size: int) -> int | None:
        """First token of a stretch of `size`, the lowest there is; None when no stretch is that long."""
        for at, (start, end) in enumerate(self._free):
            if end - start >= size:
                self._free[at : at + 1] = [(start + size, end)] if end - start > size else []
                return start
        return None

    def extend(self, end: int, size: int) -> bool:
        """Whether the `size` tokens from `end` on were free; they are taken then."""
        for at, (start, stop) in enumerate(self._free):
            if start == end and stop - start >= size:
                self._free[at : at + 1] = [(start + size, stop)] if stop - start > size else []
                return True
        return False

    def give(self, start: int, size: int) -> None:
        """Take back a stretch, or a part of one."""
        if not size:
            return
        insort(self._free, (start, start + size))
        joined: list[tuple[int, int]] = []
        for first, last in self._free:
            if joined and joined[-1][1] == first:
                joined[-1] = (joined[-1][0], last)
            else:
                joined.append((first, last))
        self._free = joined

    def copy(self, source: int, target: int, size: int) -> None:
        """Copy `size` tokens; the two stretches do not overlap."""
        with torch.inference_mode():
            for tensor in (tensor for pair in self._layers.values() for tensor in pair):
                tensor[:, target : target + size] = tensor[:, source : source + size]
