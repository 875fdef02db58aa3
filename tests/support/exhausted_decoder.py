"""`lying_decoder` where the kernel offers a wall and has no more of it to give to this process.

filters    as many steps of filters stand before the decoder's own as the kernel takes on one way
layers     Landlock was asked as often as it lets itself be
"""

import ctypes
import struct
import sys

from tests.support import lying_decoder
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits

_libc = ctypes.CDLL(None)
_ALLOWED = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF_0000)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def filters(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded:
    """Does what the bytes say."""
    return lying_decoder.decode(data, preprocessing, limits)


def layers(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded:
    """Does what the bytes say."""
    return lying_decoder.decode(data, preprocessing, limits)


def _use_up_filters() -> None:
    for steps in (4096, 16):
        while _libc.prctl(22, 2, ctypes.byref(_Program(steps, _ALLOWED * steps)), 0, 0) == 0:
            pass


def _use_up_layers() -> None:
    never_made_here = struct.pack("=QQQ", 1 << 11, 0, 0)  # block devices
    while _libc.syscall(446, _libc.syscall(444, never_made_here, 8, 0), 0) == 0:
        pass


if any("worker.decoder_program" in word for word in sys.orig_argv):  # not in the process that the decoder works for
    _libc.prctl(38, 1, 0, 0, 0)
    _use_up_layers() if '"layers"' in sys.orig_argv[-1] else _use_up_filters()
