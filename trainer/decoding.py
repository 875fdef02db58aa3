"""Files in, uint8 frames out, decoded in the worker's own limited processes, ahead of whoever consumes them.

Knows no network and no cache.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from trainer.arrays import Frames
from trainer.dataset import Picture, Unreadable
from worker import cores
from worker.decode import DecoderPool
from worker.errors import ContentError
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits

IN_FLIGHT: Final = 64
"""Pictures being decoded or waiting decoded, so that decoding never waits for the forward pass nor it for decoding."""

CONTENT_MAX_BYTES: Final = 20 * 2**20
"""A larger file is left out, as the worker would leave it undecided (its default
`MODERATION_CONTENT_MAX_BYTES`)."""

DECODE_TIMEOUT_S: Final = 8.0
"""Seconds one picture may take to decode, as in the worker."""

DECODE_MEMORY_BYTES: Final = 1536 * 2**20
"""Memory one picture may take to decode, as in the worker."""

DECODERS_MAX: Final = 8

WAIT_S: Final = 1.0
"""How long to wait for a decoded picture before looking whether the decoders are still alive."""


def decoder_pool(preprocessing: Preprocessing) -> DecoderPool:
    """Decoders with the worker's limits, for half the cores that this process may use."""
    return DecoderPool(
        preprocessing,
        DecodeLimits(),
        processes=max(1, min(DECODERS_MAX, cores.usable() // 2)),
        timeout_s=DECODE_TIMEOUT_S,
        memory_bytes=DECODE_MEMORY_BYTES,
    )


def middle(frames: Frames) -> Frames:
    """The middle one of uint8 [frames, H, W, 3], as [1, H, W, 3]."""
    at = (len(frames) - 1) // 2
    return frames[at : at + 1]


def decode_all(pictures: Sequence[Picture], decoders: DecoderPool) -> Iterator[tuple[Picture, Decoded | Unreadable]]:
    """Decode in order, at most IN_FLIGHT ahead of the consumer; what cannot be read comes as Unreadable."""
    in_flight: deque[tuple[Picture, Callable[[], Decoded | Unreadable]]] = deque()
    for picture in pictures:
        in_flight.append((picture, _begin(picture, decoders)))
        if len(in_flight) >= IN_FLIGHT:
            first, finish = in_flight.popleft()
            yield first, finish()
    for first, finish in in_flight:
        yield first, finish()


def read_bounded(path: Path) -> bytes:
    """A file's bytes, at most CONTENT_MAX_BYTES of them. Raises ContentError: `fetch_failed`, `too_large`."""
    try:
        with path.open("rb") as file:
            data = file.read(CONTENT_MAX_BYTES + 1)
    except OSError as error:
        raise ContentError("fetch_failed", f"{error.strerror}.") from error
    if len(data) > CONTENT_MAX_BYTES:
        raise ContentError("too_large", f"The file is larger than {CONTENT_MAX_BYTES} bytes.")
    return data


def _begin(picture: Picture, decoders: DecoderPool) -> Callable[[], Decoded | Unreadable]:
    try:
        data = read_bounded(picture.path)
        if hashlib.sha256(data).hexdigest() != picture.sha256:  # what is kept of it would be kept under another's name
            raise ContentError("fetch_failed", "It was replaced while it was in use.")
    except ContentError as error:
        lost = Unreadable(picture.path, error.reason, error.detail)
        return lambda: lost
    future = decoders.submit(data)
    return lambda: _finish(picture, future, decoders)


def _finish(picture: Picture, future: "Future[Decoded]", decoders: DecoderPool) -> Decoded | Unreadable:
    try:
        return decoded(future, decoders)
    except ContentError as error:
        return Unreadable(picture.path, error.reason, error.detail)


def decoded(future: "Future[Decoded]", decoders: DecoderPool) -> Decoded:
    """What `decoders.submit` promised. Raises ContentError for the picture, UnavailableError for the decoders."""
    while True:
        try:
            return future.result(timeout=WAIT_S)
        except TimeoutError:
            decoders.check()
