"""How this process asks the C library for memory. Knows nothing of what it is for."""

import ctypes
import logging
from typing import Final

logger = logging.getLogger(__name__)

# malloc.h
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8
# The most that glibc lets it be: what one heap may hold is twice that.
LARGE_BYTES: Final = 32 * 2**20
KEPT_BYTES: Final = 2**30


def keep_what_was_used() -> None:
    """One heap for all threads, whose blocks are used again and not given back (glibc; elsewhere nothing is changed).

    Left alone, glibc asks the system for each large block and gives it back when it is freed: the system fills it with
    zeros, page by page, at each use. For VGG-11 that is 80 MB an image in a forward pass, a sixth of its time. And it
    makes a heap for each thread, where frames, freed by other threads, leave holes: a worker that judged 20,000
    pictures grew from 785 to 916 MiB. Call it before there are threads. See mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    wanted = ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, LARGE_BYTES), (M_TRIM_THRESHOLD, KEPT_BYTES))
    if not all(mallopt(name, value) == 1 for name, value in wanted):
        logger.warning("the C library manages memory in its own way; memory may grow, and forward passes take longer")
