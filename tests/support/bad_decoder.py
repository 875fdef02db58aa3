"""A decode function that does what its bytes say, for tests of the processes around it."""

import ctypes
import os
import signal
import time

import numpy as np

from worker.errors import ContentError
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits


def decode(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded:
    """`segfault`, `abort`, `hang`, `eat`, `raise`, `refuse`, `kill`; else a picture of its first byte.

    `signal NAME` ends its process by that signal; `nap` takes its time.
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
        signal.raise_signal(signal.SIGKILL)
    if data == b"nap":
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, and what it starts, ignores it
        time.sleep(1)
    if data.startswith(b"signal "):
        signal.raise_signal(signal.Signals[f"SIG{data.split()[1].decode()}"])
    shape = (1, preprocessing.crop, preprocessing.crop, 3)
    return Decoded(np.full(shape, data[0], np.uint8), "PNG", 1, 1)
