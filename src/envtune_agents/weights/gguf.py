"""GGUF loading made quick and quiet. Transformers does the conversion; this only spares it repeated and slow work.

transformers 5.23 reads a GGUF file three times (config, tokenizer, weights), and gguf 0.19 makes a numpy array of every
single item of its vocabulary, which transformers then takes apart byte by byte; weights are dequantised 16 rows at a
time in one thread. For SmolLM2-135M that is most of half a minute.

Imports gguf and transformers: import this module inside functions only.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import gguf
import numpy
from gguf import GGUFValueType, quants
from transformers import modeling_gguf_pytorch_utils as loading

_CHUNK_BYTES = 1 << 16
"""Quantised bytes dequantised at once: small enough for the processor's cache."""
_parse_value: Callable[[Any, Any], Any] = vars(loading)["_gguf_parse_value"]


class QuickReader(gguf.GGUFReader):
    """A GGUF reader over a plain view of the mapped file, which takes arrays as a whole, as plain items."""

    data: Any

    def _get(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.data, numpy.memmap):
            self.data = self.data.view(numpy.ndarray)
        return super()._get(*args, **kwargs)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type != GGUFValueType.ARRAY or self.byte_order == "S":
            return super()._get_field_parts(orig_offs, raw_type)
        item = self._get(orig_offs, numpy.uint32)
        count = self._get(orig_offs + 4, numpy.uint64)
        kind, length, start = GGUFValueType(int(item[0])), int(count[0]), orig_offs + 12
        if kind == GGUFValueType.STRING:
            parts, end = self._strings(start, length)
        elif (plain := self.gguf_scalar_to_np.get(kind)) is not None:
            values = self._get(start, plain, length)
            parts, end = values.tolist(), start + values.nbytes
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [GGUFValueType.ARRAY, *([kind] if length else [])]
        return end - orig_offs, [item, count, *parts], list(range(2, 2 + length)), types

    def _strings(self, offset: int, count: int) -> tuple[list[Any], int]:
        """`count` strings from `offset` on, and the offset behind them."""
        found: list[str] = []
        view = memoryview(self.data)
        for _ in range(count):
            (size,) = struct.unpack_from("<Q", view, offset)
            end = offset + 8 + size
            if end > len(view):
                raise ValueError(f"a string of {size} bytes at {offset} reaches beyond the end of the file")
            found.append(str(view[offset + 8 : end], "utf-8"))
            offset = end
        return found, offset


def _quick_value(value: Any, kinds: Any) -> Any:
    return _parse_value(value, kinds) if isinstance(value, numpy.ndarray) else value


def _in_chunks(func: Callable[[Any], Any], arr: Any, otype: Any, oshape: tuple[int, ...]) -> Any:
    """`func` of the rows of `arr`, a cache-sized chunk at a time, in as many threads as there are cores."""
    rows = arr.reshape((-1, arr.shape[-1]))
    out = numpy.empty(oshape, dtype=otype).reshape(len(rows), -1)
    step = max(1, _CHUNK_BYTES // max(1, rows.shape[-1]))

    def fill(start: int) -> None:
        chunk = rows[start : start + step]
        out[start : start + step] = func(chunk).reshape(len(chunk), -1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(0, len(rows), step)))
    return out.reshape(oshape)


@contextmanager
def quick_gguf() -> Iterator[None]:
    """While open, GGUF files are parsed once each, and without progress bars."""
    kept_map = functools.lru_cache(gguf.get_tensor_name_map)
    silent = functools.partial(vars(loading)["tqdm"], disable=True)
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(gguf, "GGUFReader", functools.lru_cache(QuickReader)))
        patches.enter_context(mock.patch.object(gguf, "get_tensor_name_map", kept_map))
        patches.enter_context(mock.patch.object(quants, "_apply_over_grouped_rows", _in_chunks))
        patches.enter_context(mock.patch.object(loading, "_gguf_parse_value", _quick_value))
        patches.enter_context(mock.patch.object(loading, "tqdm", silent))
        yield
