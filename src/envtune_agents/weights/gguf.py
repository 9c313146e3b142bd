"""GGUF loading made quick and quiet. Transformers does the conversion; this only spares it repeated work.

transformers 5.23 parses a GGUF file three times (config, tokenizer, weights), gguf 0.19 reads it through `np.memmap`,
whose indexing is ten times slower than a plain array's, and the tensor name map is rebuilt once for each module. For
SmolLM2-135M that is 35 s instead of 8 s.

Imports gguf and transformers: import this module inside functions only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import gguf
import numpy
from transformers import modeling_gguf_pytorch_utils as loading


class ArrayReader(gguf.GGUFReader):
    """A GGUF reader over a plain view of the mapped file."""

    data: Any

    def _get(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.data, numpy.memmap):
            self.data = self.data.view(numpy.ndarray)
        return super()._get(*args, **kwargs)


@contextmanager
def quick_gguf() -> Iterator[None]:
    """While open, GGUF files are parsed once each, and without progress bars."""
    kept_map = functools.lru_cache(gguf.get_tensor_name_map)
    silent = functools.partial(vars(loading)["tqdm"], disable=True)
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(gguf, "GGUFReader", functools.lru_cache(ArrayReader)))
        patches.enter_context(mock.patch.object(gguf, "get_tensor_name_map", kept_map))
        patches.enter_context(mock.patch.object(loading, "tqdm", silent))
        yield
