"""`lying_decoder` on a machine with 256 cores, as its process sees it."""

import os
import sys

from tests.support import lying_decoder
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits

if any("worker.decoder_program" in word for word in sys.orig_argv):  # not in the process that the decoder works for
    os.sched_getaffinity = lambda pid: set(range(256))
    os.cpu_count = lambda: 256


def decode(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded:
    """Does what the bytes say."""
    return lying_decoder.decode(data, preprocessing, limits)
