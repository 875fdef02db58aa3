"""`lying_decoder` on a processor whose system calls are not known: without the filter, behind the other walls."""

import platform
import sys

from tests.support import lying_decoder
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits

if any("worker.decoder_program" in word for word in sys.orig_argv):  # not in the process that the decoder works for
    platform.machine = lambda: "riscv64"


def decode(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded:
    """Does what the bytes say."""
    return lying_decoder.decode(data, preprocessing, limits)
