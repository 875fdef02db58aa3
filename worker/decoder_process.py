"""One decoder process: its life, its limits, and the socket to it. Both ends are in this module.

A picture's bytes go one way, its frames or the reason why there are none come back. Knows nothing of other
processes, of trying again, or of whose fault a death is; `decode` does.

    to the process    size (8 bytes), the picture
    back              size (8 bytes), a header in JSON, and the pixels where the header tells of frames

Never a pickle on the way back: a process that a picture has taken over can lie about pictures, that one and those it
reads after it until it is replaced, and nothing more.
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import Any, Protocol

import numpy as np

from worker.errors import UNDECIDED_REASONS, ContentError
from worker.model.preprocessing import Decoded, DecodeLimits, Preprocessing

# A process that has not said that it is ready for so long is given up; its imports take a second at most.
START_TIMEOUT_S = 60.0
# A process that closed its socket is ending: its own exit code is there within so long, or it is killed.
EXIT_TIMEOUT_S = 2.0
# Lower than the process that it works for: a network on the same cores waits for its slowest thread, so that a decoder
# which takes turns with one of them costs all. Much lower, and pictures come one by one where a batch was possible.
NICER_BY = 5

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
# What Python, its libraries and the dynamic linker need to start. Nothing else of the parent's environment, which
# holds passwords, is handed on: a picture may take a decoder over.
ENVIRONMENT = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
_READY = b"\x01"
_SIZE = struct.Struct("!Q")
_LONGEST_HEADER = 65536
_LONGEST_DETAIL = 500

_PROGRAM = "from worker.decoder_process import main; main()"


class Decode(Protocol):
    """Untrusted bytes to frames; raises ContentError. A module's own function, found again by its name."""

    @property
    def __name__(self) -> str: ...

    def __call__(self, data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded: ...


SLICE_S = 1.0
"""How long one wait for an answer lasts; one that lasts twice as long says that this process stood still."""

LATE_S = 1.0
"""After its deadline an answer may still be under way for so long."""


class DecoderDiedError(Exception):
    """The process ended, or answered with what no decoder answers: end it."""


class DecoderProcess:
    """This side of one process. For one thread; only `kill` may come from another.

    A program of its own, not a fork: a fork would copy the worker's locks and CUDA context, and what
    `multiprocessing` starts imports the parent's main module first, torch with it where that is the trainer's.

    Args:
        decode: a module's function that reads the bytes, called in the process.
        memory_bytes: address space it may use beyond what it has after start.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, decode: Decode, parameters: Preprocessing, limits: DecodeLimits, memory_bytes: int) -> None:
        self.pictures = 0
        self._most_frames = parameters.max_frames
        self._frame_shape = (parameters.crop, parameters.crop, 3)
        self._link, theirs = socket.socketpair()
        job = {
            "parent": os.getpid(),
            "link": theirs.fileno(),
            "module": decode.__module__,
            "function": decode.__name__,
            "preprocessing": parameters.to_json(),
            "max_pixels": limits.max_pixels,
            "memory_bytes": memory_bytes,
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, json.dumps(job)],
                env={
                    **{name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    "OPENBLAS_NUM_THREADS": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what a library says there would be taken for the command's own words
                pass_fds=[theirs.fileno()],
            )

    def wait_ready(self) -> None:
        """Returns once it can take pictures. Raises OSError or EOFError where it does not come to that."""
        _fill(self._link, memoryview(bytearray(len(_READY))), _Deadline(START_TIMEOUT_S))

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def read(self, data: bytes, timeout_s: float) -> Decoded | ContentError:
        """What the process makes of one picture.

        Raises:
            TimeoutError: it had no answer after `timeout_s`; end it.
            DecoderDiedError: end it.
        """
        deadline = _Deadline(timeout_s)
        self.pictures += 1
        try:
            self._link.settimeout(timeout_s)
            self._link.sendall(_SIZE.pack(len(data)) + data)
            header = self._header(deadline)
            return _content_error(header) if "reason" in header else self._decoded(header, deadline)
        except TimeoutError:
            raise
        except Exception as error:  # a picture may have taken it over, and answers in whatever way it likes
            raise DecoderDiedError(f"{type(error).__name__}: {error}"[:_LONGEST_DETAIL]) from error

    def kill(self) -> None:
        """Ends it now; `read` in another thread raises DecoderDiedError."""
        self._process.kill()

    def end(self, *, at_once: bool) -> int | None:
        """Sees to it that it has ended; returns its exit code, negative for the signal that killed it.

        None where it outlives even SIGKILL for now (it waits for a disk).

        Args:
            at_once: do not wait for an exit code of its own.
        """
        self._link.close()
        try:
            return self._process.wait(0 if at_once else EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        try:
            return self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None

    def _header(self, deadline: "_Deadline") -> dict[str, Any]:
        prefix = bytearray(_SIZE.size)
        _fill(self._link, memoryview(prefix), deadline)
        (size,) = _SIZE.unpack(prefix)
        if size > _LONGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        text = bytearray(size)
        _fill(self._link, memoryview(text), deadline)
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("a header that is no object")
        return header

    def _decoded(self, header: dict[str, Any], deadline: "_Deadline") -> Decoded:
        count, width, height = header["frames"], header["width"], header["height"]
        if not all(type(number) is int and number >= 1 for number in (count, width, height)):
            raise ValueError("a header with odd numbers")
        if count > self._most_frames:
            raise ValueError(f"{count} frames")
        frames = np.empty((count, *self._frame_shape), np.uint8)
        _fill(self._link, frames.data.cast("B"), deadline)
        return Decoded(frames, str(header["format"]), width, height)


def _content_error(header: dict[str, Any]) -> ContentError:
    if header["reason"] not in UNDECIDED_REASONS:
        raise ValueError("a reason that is none")
    return ContentError(header["reason"], str(header["detail"]))


class _Deadline:
    """When an answer must be there, by a clock that stands still while this process does.

    A container that is paused, or a machine that is saved and restored, is no picture's fault: waiting goes on in
    slices, and what a slice took too long is not counted.
    """

    def __init__(self, seconds: float) -> None:
        self._at_s = time.monotonic() + seconds

    def receive(self, link: socket.socket, view: memoryview) -> int:
        """Some bytes at least. Raises TimeoutError, EOFError, OSError."""
        if time.monotonic() > self._at_s + LATE_S:  # it may send a byte now and then for ever
            raise TimeoutError
        while True:
            # Never nothing: an answer that lies there is taken, however late this thread looked.
            slice_s = min(SLICE_S, max(0.01, self._at_s - time.monotonic()))
            link.settimeout(slice_s)
            began_s = time.monotonic()
            try:
                received = link.recv_into(view)
            except TimeoutError:
                late_s = time.monotonic() - began_s - slice_s
                self._at_s += late_s if late_s > SLICE_S else 0.0
                if time.monotonic() >= self._at_s:
                    raise
                continue
            if received == 0:
                raise EOFError("the process closed its socket")
            return received


def _fill(link: socket.socket, view: memoryview, deadline: _Deadline) -> None:
    """Receives until the view is full. Raises TimeoutError, EOFError, OSError."""
    while view:
        view = view[deadline.receive(link, view) :]


def keep_to_itself() -> None:
    """Closes this process's memory and environment to others of the same user, decoders among them (Linux).

    It leaves no core dump either, and a debugger needs root. Root's own processes are not kept out.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


# -- the other end


def main() -> None:
    """The life of a decoder process: it ends when the other end of its socket is closed."""
    job = json.loads(sys.argv[1])
    link = socket.socket(fileno=job["link"])
    parameters = Preprocessing.from_json(job["preprocessing"])
    limits = DecodeLimits(job["max_pixels"])
    decode: Decode = getattr(importlib.import_module(job["module"]), job["function"])
    _confine(job["memory_bytes"])
    if os.getppid() != job["parent"]:
        return  # it died before the line above could bind us to it
    stream = link.makefile("rb")
    try:
        link.sendall(_READY)
        while len(prefix := stream.read(_SIZE.size)) == _SIZE.size:
            header, pixels = _answer(decode, stream.read(*_SIZE.unpack(prefix)), parameters, limits)
            text = json.dumps(header).encode()
            link.sendall(_SIZE.pack(len(text)) + text)
            link.sendall(pixels)
    except OSError:
        return


def _confine(memory_bytes: int) -> None:
    os.nice(NICER_BY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the worker, which drains
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not leave a picture on disk
    if sys.platform == "linux":
        # A worker that is killed cannot end its decoders. The thread that started this one lives as long as it does.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # no setuid program makes it root
        keep_to_itself()  # from the decoders beside it, and their pictures
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))


def _answer(
    decode: Decode, data: bytes, parameters: Preprocessing, limits: DecodeLimits
) -> tuple[dict[str, Any], memoryview]:
    """The header and the pixels to send back."""
    try:
        decoded = decode(data, parameters, limits)
        frames = np.ascontiguousarray(decoded.frames)
        if frames.dtype != np.uint8 or frames.shape[1:] != (parameters.crop, parameters.crop, 3):
            raise ValueError(f"frames {frames.dtype}{frames.shape}")
        header = {"frames": len(frames), "width": decoded.width, "height": decoded.height, "format": decoded.format}
        return header, frames.data.cast("B")
    except ContentError as error:
        return {"reason": error.reason, "detail": error.detail[:_LONGEST_DETAIL]}, memoryview(b"")
    except MemoryError:
        return {"reason": "too_large", "detail": "It does not fit into a decoder's memory."}, memoryview(b"")
    except BaseException as error:  # whatever a picture makes the decoder raise, it is that picture's alone
        return {"reason": "decoder_crashed", "detail": f"The decoder failed: {type(error).__name__}."}, memoryview(b"")
