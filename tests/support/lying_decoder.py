"""A decode function that breaks its word in every way that its bytes name.

interrupt, unpicklable, odd shape    raises or answers what `decode` must never raise or answer
lie <how>                            writes to its socket what no decoder writes, as one that a picture took over
spin                                 never comes back, in C code that no Python signal handler interrupts
grow                                 takes memory bit by bit until there is none
exit                                 ends its process as if all were well
sleep <seconds>                      takes its time
tell                                 answers with what it knew at its start of its and its parent's environment and
                                     command line, see `said`
say <something>                      writes to stderr
stop                                 stops before its end, as one whose worker is its debugger
reach <folder> <port>                answers with whatever it got at by then, of all that it should not, see `said`
foreign                              answers with what the kernel says to a call by the number of 32-bit programs
film                                 answers with as many frames as there may be
anything else                        becomes frames that tell it apart, see `answer`
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import pickle
import platform
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits


def _known() -> str:
    if sys.platform != "linux":
        return ""
    files = ("self/environ", "self/cmdline", f"{os.getppid()}/cmdline")
    return repr(dict(os.environ)) + "".join(Path("/proc", name).read_text(errors="backslashreplace") for name in files)


# Before it is confined, as everything here that is no function: then it could not read it any more.
KNOWN = _known()


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
        return _saying(KNOWN, preprocessing)
    if word == b"say":
        with contextlib.suppress(OSError):
            os.write(2, rest)
    if word == b"stop":
        _libc("ptrace", 0, 0, 0, 0)
        signal.raise_signal(signal.SIGTERM)
    if word == b"reach":
        folder, port = rest.decode().split()
        return _saying(" ".join(_reach(Path(folder), int(port))), preprocessing)
    if word == b"foreign":
        return _saying(str(called_as_32_bit()), preprocessing)
    if word == b"sleep":
        time.sleep(float(rest.split()[0]))
    return answer(data, preprocessing)


def called_as_32_bit() -> int:
    """What getpid answers by its 32-bit number, on x86-64; a segmentation fault where the kernel has no such calls."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x53\xb8\x14\0\0\0\xcd\x80\x5b\xc3")  # push rbx; mov eax, 20; int 0x80; pop rbx; ret
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())


def said(decoded: Decoded) -> str:
    """What an answer to `tell` or `reach` says."""
    return decoded.frames.tobytes().rstrip(b"\0").decode()


def _saying(text: str, preprocessing: Preprocessing) -> Decoded:
    frames = np.zeros((preprocessing.max_frames, preprocessing.crop, preprocessing.crop, 3), np.uint8)
    written = text.encode()[: frames.size]
    frames.reshape(-1)[: len(written)] = np.frombuffer(written, np.uint8)
    return Decoded(frames, "JPEG", 1, 1)


def _reach(folder: Path, port: int) -> list[str]:
    """What it could do in `folder`, where there are files `secret` and `spoil`, and to others; their names."""
    worker = os.getppid()
    as_child = struct.pack("4Q", signal.SIGCHLD, 0, 0, 0)
    attempts: dict[str, Callable[[], object]] = {
        "read": lambda: (folder / "secret").read_text(),
        "list": lambda: os.listdir(folder),
        "write": lambda: (folder / "written").write_text("mine"),
        "tcp": lambda: socket.socket(socket.AF_INET).connect(("127.0.0.1", port)),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "run": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "truncate": lambda: os.truncate(folder / "spoil", 0),
        "rename": lambda: os.rename(folder / "spoil", folder / "secret"),
        "remove": lambda: os.unlink(folder / "spoil"),
        "folder": lambda: os.mkdir(folder / "made"),
        "signal": lambda: os.kill(worker, signal.SIGCONT),
        "tgkill": lambda: _libc("tgkill", worker, worker, signal.SIGCONT),
        "look": lambda: os.stat(folder / "secret"),
        "expose": lambda: os.chmod(folder / "secret", 0o666),
        "limits": lambda: resource.prlimit(worker, resource.RLIMIT_CORE),
        "cores": lambda: os.sched_setaffinity(worker, os.sched_getaffinity(0)),
        "priority": lambda: os.setpriority(os.PRIO_PROCESS, worker, os.getpriority(os.PRIO_PROCESS, worker)),
        "owner": lambda: fcntl.fcntl(1, fcntl.F_SETOWN, worker),
        "status": lambda: fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK),
        "outlive": lambda: _libc("prctl", 1, 0, 0, 0, 0),
        "fork": _fork,
        "clone3": lambda: _fork(lambda: _libc("syscall", 435, struct.pack("4Q", 0, 0, 0, 0) + as_child, 64)),
        "apart": _thread_apart,
        "group": os.setsid,
        "namespace": lambda: _libc("unshare", 0x10000000),
        "memory": lambda: _libc("process_vm_readv", os.getpid(), None, 0, None, 0, 0),
        "shared": lambda: _libc("shmctl", _libc("shmget", 0, 4096, 0o1600), 0, None),
        "semaphore": lambda: _libc("semctl", _libc("semget", 0, 1, 0o1600), 0, 0),
        "messages": lambda: _libc("msgctl", _libc("msgget", 0, 0o1600), 0, None),
        "locked": lambda: _libc("mlock", ctypes.create_string_buffer(8), 8),
        "odd": lambda: _libc("personality", 0xFFFFFFFF),
    }
    if os.getuid() != 0:  # who may raise what is forbidden, but is not to run this
        attempts = {"limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)), **attempts}
    reached = []
    for name, attempt in attempts.items():
        with contextlib.suppress(OSError, ValueError):
            attempt()
            reached.append(name)
    return reached


def _libc(name: str, *arguments: object) -> int:
    """Calls it; OSError where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if (result := int(libc[name](*arguments))) == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def _thread_apart() -> None:
    """Asks for a thread with a network of its own, wrongly, so that there is none: OSError where nobody is asked."""
    try:
        _libc("syscall", 56 if platform.machine() == "x86_64" else 220, 0x4001_0000, 0, 0, 0, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _fork(by: Callable[[], int] = os.fork) -> None:
    if by() == 0:
        os._exit(0)


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
        "format": json.dumps(header | {"format": "../x"}).encode(),
        "none": json.dumps(header | {"frames": 0}).encode(),
        "many": json.dumps(header | {"frames": 33}).encode(),
        "long": json.dumps(header).encode() + b" " * 70_000,
        "nested": b'{"frames":' + b"[" * 60_000,
        "drip": json.dumps(header).encode(),
    }[how]
    size = 2**60 if how == "size" else len(text)
    pixels = bytes(32 * 32 * 3 * {"format": 1, "long": 1, "many": 33}.get(how, 0))
    libc = ctypes.CDLL(None)
    for descriptor in range(256):
        written = struct.pack("!Q", size) + text + pixels
        while libc.send(descriptor, written, len(written), socket.MSG_NOSIGNAL) >= 0 and how == "drip":
            written = b"\0"
            time.sleep(0.01)
