"""A decode function that breaks its word in every way that its bytes name.

interrupt, unpicklable, odd shape    raises or answers what `decode` must never raise or answer
lie <how>                            writes to its socket what no decoder writes, as one that a picture took over
spin                                 never comes back, in C code that no Python signal handler interrupts
grow                                 takes memory bit by bit until there is none
exit                                 ends its process as if all were well
sleep <seconds>                      takes its time
tell <file>                          writes there what it knows of its and its parent's environment and command line
film                                 answers with as many frames as there may be
anything else                        becomes frames that tell it apart, see `answer`
"""

import contextlib
import hashlib
import json
import os
import pickle
import struct
import threading
import time
from typing import Any

import numpy as np

from worker.model.preprocessing import Decoded, DecodeLimits, Preprocessing


def answer(data: bytes, preprocessing: Preprocessing) -> Decoded:
    """What `decode` gives for harmless bytes: frames drawn from their digest."""
    shape = (preprocessing.max_frames if data.startswith(b"film") else 1, preprocessing.crop, preprocessing.crop, 3)
    digest = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    return Decoded(np.resize(digest, shape), "JPEG", len(data), 1)


def decode(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded:
    """Does what the bytes say."""
    word, _, rest = data.partition(b" ")
    if word == b"interrupt":
        raise KeyboardInterrupt
    if word == b"unpicklable":
        return Decoded(threading.Lock(), "JPEG", 1, 1)
    if word == b"odd":
        return Decoded(np.zeros((1, 5, 5, 3), np.uint8), "JPEG", 5, 5)
    if word == b"lie":
        _lie(**json.loads(rest))
    if word == b"spin":
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 2**31 - 1)
    if word == b"grow":
        grown = []
        while True:
            grown.append(bytearray(2**24))
    if word == b"exit":
        os._exit(0)
    if word == b"tell":
        _tell(rest.decode())
    if word == b"sleep":
        time.sleep(float(rest.split()[0]))
    return answer(data, preprocessing)


def _tell(path: str) -> None:
    with open(path, "w") as file:
        file.write(repr(dict(os.environ)))
        for name in ("self/environ", "self/cmdline", f"{os.getppid()}/cmdline"):
            with open(f"/proc/{name}", errors="backslashreplace") as known:
                file.write(known.read())


class _Surprise:
    """Makes a folder where somebody unpickles it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._folder,)


def _lie(how: str, folder: str) -> None:
    header = {"frames": 1, "width": 1, "height": 1, "format": "JPEG"}
    text = {
        "pickle": pickle.dumps(_Surprise(folder)),
        "size": b"",
        "json": b"{",
        "list": b"[]",
        "reason": json.dumps({"reason": "risked", "detail": ""}).encode(),
        "frames": json.dumps(header | {"frames": 10**9}).encode(),
        "numbers": json.dumps(header | {"frames": "1", "width": None}).encode(),
        "nested": b'{"frames":' + b"[" * 60_000,
        "drip": json.dumps(header).encode(),
    }[how]
    size = 2**60 if how == "size" else len(text)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.write(int(name), struct.pack("!Q", size) + text)
                while how == "drip":
                    os.write(int(name), b"\0")
                    time.sleep(0.01)
