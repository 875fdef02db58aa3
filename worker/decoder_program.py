"""The program in a decoder process: a picture's bytes in, its frames or the reason why there are none out, until the
other end of its socket is closed.

    in     size (8 bytes), the picture
    out    size (8 bytes), a header in JSON, and the pixels where the header tells of frames

It confines itself before it reads the first picture: it has what it needs by then, and from there on asks the kernel
for memory and threads only. That this is enough it sees from pictures of its own before it takes others'. It knows
nothing of the worker that reads its answers; `decoder_process` is that side. Never a pickle on the way back: a process
that a picture has taken over can lie about pictures, that one and those it reads after it until it is replaced, and
nothing more.
"""

import contextlib
import ctypes
import importlib
import io
import json
import os
import resource
import signal
import socket
import struct
import sys
from typing import Any, Final, Protocol

import numpy as np
from PIL import AvifImagePlugin, Image

from worker import cores, landlock, seccomp
from worker.errors import ContentError
from worker.model import reading
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits

# Lower than the process that it works for: a network on the same cores waits for its slowest thread, so that a decoder
# which takes turns with one of them costs all. Much lower, and pictures come one by one where a batch was possible.
NICER_BY = 5

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

READY: Final = b"\x01"
UNABLE: Final = b"\x00"
UNCONFINED: Final = b"\x02"
SIZE: Final = struct.Struct("!Q")
LONGEST_DETAIL: Final = 500

# Of an AVIF's reader, where there are so many cores. Pillow's own choice is one for each core of the machine, in each
# decoder and whatever a container is given: on hundreds of them they take all the memory, or all a container's tasks.
AVIF_THREADS: Final = 4

_OWN: Final = Preprocessing(resize=16, crop=16)


class Decode(Protocol):
    """Untrusted bytes to frames; raises ContentError. A module's own function, found again by its name."""

    @property
    def __name__(self) -> str: ...

    def __call__(self, data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded: ...


def keep_to_itself() -> None:
    """Closes this process's memory and environment to others of the same user, decoders among them (Linux).

    It leaves no core dump either, and a debugger needs root. Root's own processes are not kept out.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def main() -> None:
    """The life of a decoder process: it ends when the other end of its socket is closed."""
    job = json.loads(sys.argv[1])
    link = socket.socket(fileno=job["link"])
    parameters = Preprocessing.from_json(job["preprocessing"])
    limits = DecodeLimits(job["max_pixels"])
    decode: Decode = getattr(importlib.import_module(job["module"]), job["function"])
    reading.load_readers()
    AvifImagePlugin.DEFAULT_MAX_THREADS = min(AVIF_THREADS, cores.usable())
    own = _pictures()
    confined = _confined(job["memory_bytes"])
    if os.getppid() != job["parent"]:
        return  # it died before the line above could bind us to it
    stream = link.makefile("rb")
    try:
        link.sendall(UNCONFINED if not confined else READY if _reads(own) else UNABLE)
        while len(prefix := stream.read(SIZE.size)) == SIZE.size:
            header, pixels = _answer(decode, stream.read(*SIZE.unpack(prefix)), parameters, limits)
            text = json.dumps(header).encode()
            link.sendall(SIZE.pack(len(text)) + text)
            link.sendall(pixels)
    except OSError:
        return


def _pictures() -> list[bytes]:
    """One of each format that can be written here."""
    pictures = []
    for name in reading.FORMATS:
        data = io.BytesIO()
        with contextlib.suppress(OSError, KeyError):
            Image.new("RGB", (64, 64), "teal").save(data, name)
            pictures.append(data.getvalue())
    return pictures


def _reads(pictures: list[bytes]) -> bool:
    """Whether they can be read. If not, a library needs what was given up, and would call all there are unreadable."""
    try:
        return all(len(reading.decode(picture, _OWN, DecodeLimits()).frames) == 1 for picture in pictures)
    except ContentError:
        return False


def _confined(memory_bytes: int) -> bool:
    """Whether it has given up all that this system lets it, as the worker's log says."""
    try:
        _confine(memory_bytes)
    except OSError:
        return False
    return True


def _confine(memory_bytes: int) -> None:
    os.nice(NICER_BY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the worker, which drains
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not leave a picture on disk
    if sys.platform == "linux":
        # A worker that is killed cannot end its decoders. The thread that started this one lives as long as it does.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # no setuid program makes it root
        # Where memory runs short it goes before the worker, whose other pictures would go with it. It may be refused.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as first:
            first.write("1000")
        keep_to_itself()  # from the decoders beside it, and their pictures
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))
        landlock.give_up_everything()
    # stderr becomes stdout, which leads nowhere: it was the worker's log, or somebody's terminal.
    os.dup2(1, 2)
    # From here on no file, socket or pipe is opened any more. What is open, the link among it, stays open.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    seccomp.give_up_the_rest()  # last, for it needs none of what stands above


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
        return {"reason": error.reason, "detail": error.detail[:LONGEST_DETAIL]}, memoryview(b"")
    except MemoryError:
        return {"reason": "too_large", "detail": "It does not fit into a decoder's memory."}, memoryview(b"")
    except BaseException as error:  # whatever a picture makes the decoder raise, it is that picture's alone
        return {"reason": "decoder_crashed", "detail": f"The decoder failed: {type(error).__name__}."}, memoryview(b"")
