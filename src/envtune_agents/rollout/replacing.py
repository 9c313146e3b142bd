"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to. When the block ends, what is there takes the place of `path`; after an error nothing does.

    What is no file, such as `/dev/stdout` or a pipe, is written to itself. A block that writes nothing leaves `path` as
    it was.
    """
    if _is_device(path):
        yield path
        return
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    draft = path.with_name(f"{path.name}.part")
    try:
        yield draft
        if draft.exists():
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _is_device(path: Path) -> bool:
    """Also a link to the file that stdout was sent to: replacing the link would end it for everybody."""
    absolute = path.absolute().parts
    return (path.exists() and not path.is_file() and not path.is_dir()) or absolute[1:2] in (("dev",), ("proc",))
