"""A decode function that does what its bytes say, for tests of the processes around it."""

import ctypes
import os
import signal
import time

import numpy as np

from worker.errors import ContentError
from worker.model.preprocessing import Decoded, DecodeLimits, Preprocessing


def decode(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded:
    """`segfault`, `abort`, `hang`, `eat`, `raise`, `refuse`, `kill`; else a picture of its first byte.

    `signal NAME` ends its process by that signal; `once NAME FILE` only the first time, when the file is not there.
    """
    if data == b"segfault":
        ctypes.string_at(0)
    if data == b"abort":
        os.abort()
    if data == b"hang":
        time.sleep(600)
    if data == b"eat":
        bytearray(8 << 30)
    if data == b"raise":
        raise RuntimeError("nobody expects this")
    if data == b"refuse":
        raise ContentError("unreadable", "It is broken.")
    if data == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    word, *rest = data.split(b" ")
    if word == b"signal" or (word == b"once" and not os.path.exists(rest[1])):
        if word == b"once":
            open(rest[1], "x").close()
        number = signal.Signals[f"SIG{rest[0].decode()}"]
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)  # nohup, and what it starts, ignores HUP
        os.kill(os.getpid(), number)
    shape = (1, preprocessing.crop, preprocessing.crop, 3)
    return Decoded(np.full(shape, data[0], np.uint8), "TEST", 1, 1)
