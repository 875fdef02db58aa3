"""A decoder whose libraries open a file for each picture, which it cannot once it is confined."""

import sys

from worker.errors import ContentError
from worker.model import reading
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits


def decode(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded:
    """Reads a picture by a table on disk."""
    try:
        with open("/proc/self/status"):
            return _decode(data, preprocessing, limits)
    except OSError as error:
        raise ContentError("unreadable", str(error)) from error


_decode = reading.decode
if any("worker.decoder_program" in word for word in sys.orig_argv):  # not in the process that the decoder works for
    reading.decode = decode
