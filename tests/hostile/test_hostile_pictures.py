"""520 odd, truncated, broken, exploding and fuzz-found pictures: each ends as frames or as a reason."""

import resource
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from tests.support.pictures import picture
from worker.decode import DecoderPool
from worker.errors import ContentError, UndecidedReason
from worker.model.preprocessing import Preprocessing
from worker.model.reading import FORMATS, Decoded, DecodeLimits, decode

HOSTILE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "hostile"

WHOLE = ["hopper.jpg", "hopper.png", "hopper.gif", "hopper.bmp", "hopper.avif", "flower2.webp"]
"""One sound picture of each format."""

pytestmark = pytest.mark.skipif(
    not HOSTILE.is_dir(), reason="the hostile pictures are not there: they lie beside the repository, ../shared/data"
)


def test_every_hostile_picture_ends_as_frames_or_as_a_reason() -> None:
    """No other exception, no picture of more than most_views frames, and memory stays within bounds."""
    preprocessing, limits = Preprocessing(), DecodeLimits()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[str] = Counter()
    for path in sorted(HOSTILE.iterdir()):
        try:
            decoded = decode(path.read_bytes(), preprocessing, limits)
        except ContentError as error:
            assert error.reason in get_args(UndecidedReason), path.name
            assert error.detail, path.name
            outcomes[error.reason] += 1
        else:
            assert decoded.frames.dtype == np.uint8, path.name
            assert decoded.frames.shape[1:] == (224, 224, 3), path.name
            assert 1 <= len(decoded.frames) <= preprocessing.most_views, path.name
            assert decoded.format in (*FORMATS, "HEIF"), path.name
            outcomes["decoded"] += 1
    assert outcomes.total() > 500
    # One of each is there, so that the loop above proves something about each way out.
    assert {"decoded", "unsupported_format", "unreadable", "too_large"} <= outcomes.keys()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 500_000


def outcome(get: Callable[[], Decoded]) -> bytes | str:
    """The frames, or the reason why there are none."""
    try:
        return get().frames.tobytes()
    except ContentError as error:
        return error.reason


def test_a_confined_process_reads_every_picture_alike() -> None:
    """Hostile and sound ones, and large ones of the formats that are read by several threads."""
    pictures = {path.name: path.read_bytes() for path in HOSTILE.parent.rglob("*.*")}
    pictures |= {name: picture("risked", name, (1600, 1200)) for name in ("AVIF", "WEBP")}
    parameters, limits = Preprocessing(), DecodeLimits()
    with DecoderPool(parameters, limits, processes=1, timeout_s=60, memory_bytes=2**30) as pool:
        futures = {name: pool.submit(data) for name, data in pictures.items()}
        wanted = {name: outcome(partial(decode, data, parameters, limits)) for name, data in pictures.items()}
        assert [name for name, future in futures.items() if outcome(future.result) != wanted[name]] == []


@pytest.mark.parametrize(
    "name", ["hopper.jpg", "hopper.png", "hopper.gif", "hopper.bmp", "hopper.avif", "flower2.webp"]
)
def test_every_prefix_of_a_picture_ends_as_frames_or_as_a_reason(name: str) -> None:
    """A picture cut off anywhere is never an exception of another kind."""
    data = (HOSTILE / name).read_bytes()
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            decode(data[:length], Preprocessing(), DecodeLimits())
        except ContentError as error:
            assert error.reason in ("unreadable", "unsupported_format", "too_large")


@pytest.mark.parametrize(
    "name", ["hopper.jpg", "hopper.png", "hopper.gif", "hopper.bmp", "hopper.avif", "flower2.webp"]
)
def test_a_picture_with_damaged_bytes_ends_as_frames_or_as_a_reason(name: str) -> None:
    """Bytes changed anywhere, headers included, from a fixed seed."""
    data = (HOSTILE / name).read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        reach = len(damaged) if rng.random() < 0.5 else 200
        damaged[rng.integers(0, reach, 5)] = rng.integers(0, 256, 5)
        try:
            decode(damaged.tobytes(), Preprocessing(), DecodeLimits())
        except ContentError as error:
            assert error.reason in ("unreadable", "unsupported_format", "too_large")
