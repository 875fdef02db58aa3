"""Large tables of float32: in memory while they are small, in an unnamed file on disk beyond that.

A table on disk is mapped: the system reads pages in as they are used and drops them where memory is short, so a set
larger than memory works, more slowly. Knows nothing of what stands in a table.
"""

import os
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from trainer.arrays import FloatArray
from trainer.errors import CacheError

IN_MEMORY_BYTES: Final = 256 * 2**20
"""A larger table goes to disk: 16,384 pictures at VGG-11's 4,096 numbers each."""

CHUNK_ROWS: Final = 1024
"""Rows worked on at a time wherever a table is walked through: 16 MB at VGG-11's width."""


class Tables:
    """Where tables are made. `folder` takes those of more than `in_memory_bytes`; None keeps all in memory."""

    def __init__(self, folder: Path | None = None, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        self._folder = folder
        self._in_memory_bytes = in_memory_bytes

    def new(self, rows: int, width: int) -> FloatArray:
        """float32 [rows, width] with undefined values. Raises CacheError where the disk has no room for it.

        A mapped table has no name, so it is gone with the process that made it, however that ends.
        """
        length = rows * width * np.dtype(np.float32).itemsize
        if self._folder is None or length <= max(self._in_memory_bytes, 0):
            return np.empty((rows, width), np.float32)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                # Room is taken now: a mapped page without room on disk would end the process with SIGBUS later.
                os.posix_fallocate(file.fileno(), 0, length)
                mapped = np.memmap(file, np.float32, "r+", shape=(rows, width))
        except OSError as error:
            raise CacheError(
                f"A table of {length // 2**20:,} MB does not fit beside the feature cache {str(self._folder)!r} "
                f"({error.strerror}): free space there, or name another folder with --cache."
            ) from error
        table: FloatArray = mapped.view(np.ndarray)
        return table


def chunks(rows: int) -> list[slice]:
    """Slices of at most CHUNK_ROWS that cover `rows`, in order."""
    return [slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS)]
