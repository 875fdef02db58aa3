"""One run at a time on a folder: a lock that the system frees with its holder, however that ends.

Knows no folder's use.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.errors import LockedError
from worker.errors import ModerationError

LOCK_FILE: Final = ".trainer.lock"


@contextmanager
def one_run(folder: Path, what: str, option: str, unusable: type[ModerationError]) -> Iterator[None]:
    """Hold the run lock of `folder`, which is made where it is missing.

    `what` and `option` name the folder in messages ("weights store", "--weights"). Raises LockedError where another
    run holds the lock, `unusable` where the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise unusable(
            f"The {what} {str(folder)!r} cannot be written to ({error.strerror}): name another with {option}."
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise unusable(f"The {what} {str(folder)!r} cannot be locked: {error.strerror}.") from error
            raise LockedError(
                f"Another training run works on the {what} {str(folder)!r}: wait until it has ended."
            ) from error
        yield
    finally:
        os.close(lock)
