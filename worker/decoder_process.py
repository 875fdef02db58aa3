"""One decoder process, seen from the worker: its start, the socket to it, time limits, and its end.

A picture's bytes go in, its frames or the reason why there are none come out, whatever a process that a picture has
taken over may answer. What runs in it is `decoder_program`. Knows nothing of other processes, of trying again, or of
whose fault a death is; `decode` does.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from worker.decoder_program import LONGEST_DETAIL, READY, SIZE, UNABLE, UNCONFINED, Decode
from worker.errors import UNDECIDED_REASONS, ContentError
from worker.model.preprocessing import Preprocessing
from worker.model.reading import FORMATS, Decoded, DecodeLimits

# A process that has not said that it is ready for so long is given up; its imports take a second at most.
START_TIMEOUT_S = 60.0
# A process that closed its socket is ending: its own exit code is there within so long, or it is killed.
EXIT_TIMEOUT_S = 2.0
# What Python, its libraries and the dynamic linker need to start. Nothing else of the parent's environment, which
# holds passwords, is handed on: a picture may take a decoder over.
ENVIRONMENT = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
_LONGEST_HEADER = 65536
_FORMATS = (*FORMATS, "HEIF")

_REFUSALS = {
    UNABLE: "confined, it cannot even read pictures of its own",
    UNCONFINED: "it could not give up all that this system offers to forbid it",
}

_PROGRAM = "from worker.decoder_program import main; main()"

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
        self._most_frames = parameters.most_views
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
        said = bytearray(len(READY))
        _fill(self._link, memoryview(said), _Deadline(START_TIMEOUT_S))
        if said != READY:
            refusal = _REFUSALS.get(bytes(said), "it says nothing known")
            raise OSError(f"{refusal}: see *A decoder that is taken over* in SECURITY.md")

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
            _empty(self._link, memoryview(SIZE.pack(len(data)) + data), deadline)
            header = self._header(deadline)
            return _content_error(header) if "reason" in header else self._decoded(header, deadline)
        except TimeoutError:
            raise
        except Exception as error:  # a picture may have taken it over, and answers in whatever way it likes
            raise DecoderDiedError(f"{type(error).__name__}: {error}"[:LONGEST_DETAIL]) from error

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
        prefix = bytearray(SIZE.size)
        _fill(self._link, memoryview(prefix), deadline)
        (size,) = SIZE.unpack(prefix)
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
        if header["format"] not in _FORMATS:
            raise ValueError("a format that is none")
        frames = np.empty((count, *self._frame_shape), np.uint8)
        _fill(self._link, frames.data.cast("B"), deadline)
        return Decoded(frames, header["format"], width, height)


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

    def waits_for(self, link: socket.socket, moves: Callable[[memoryview], int], view: memoryview) -> int:
        """How many bytes of the view the link has moved, some at least. Raises TimeoutError, EOFError, OSError."""
        if time.monotonic() > self._at_s + LATE_S:  # it may send a byte now and then for ever
            raise TimeoutError
        while True:
            # Never nothing: an answer that lies there is taken, however late this thread looked.
            slice_s = min(SLICE_S, max(0.01, self._at_s - time.monotonic()))
            link.settimeout(slice_s)
            began_s = time.monotonic()
            try:
                moved = moves(view)
            except TimeoutError:
                self._forgive(began_s, slice_s)
                if time.monotonic() >= self._at_s:
                    raise
                continue
            self._forgive(began_s, slice_s)  # this process alone may have stood still, and the answer lain there
            if moved == 0:
                raise EOFError("the process closed its socket")
            return moved

    def _forgive(self, began_s: float, slice_s: float) -> None:
        late_s = time.monotonic() - began_s - slice_s
        self._at_s += late_s if late_s > SLICE_S else 0.0


def _fill(link: socket.socket, view: memoryview, deadline: _Deadline) -> None:
    """Receives until the view is full. Raises TimeoutError, EOFError, OSError."""
    while view:
        view = view[deadline.waits_for(link, link.recv_into, view) :]


def _empty(link: socket.socket, view: memoryview, deadline: _Deadline) -> None:
    """Sends all of the view. Raises TimeoutError, OSError."""
    while view:
        view = view[deadline.waits_for(link, link.send, view) :]
