"""Bytes of a picture in, uint8 frames of a fixed size out: the one way of reading that trainer and worker share.

    bytes -> open (listed formats, size checked) -> frames spread over time
          -> squares cut out of each, RGB, upright (`views`) -> uint8 [frames, crop, crop, 3]

Pure code on untrusted bytes. Knows nothing of IDs, processes, time limits or networks, and never imports torch.
Whatever Pillow and its libraries raise ends in `decode` as a ContentError.
"""

import functools
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from worker.errors import ContentError, UndecidedReason, UsageError
from worker.model import pixels
from worker.model.preprocessing import Preprocessing
from worker.model.views import View, views

FORMATS: Final[tuple[str, ...]] = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP")
"""What is opened, by Pillow's names; HEIF is added where pillow-heif is installed."""

_ANIMATED: Final = frozenset({"PNG", "WEBP", "GIF", "AVIF"})
"""Formats whose frames are shown one after another. Further pictures in a JPEG or HEIF are previews, depth or
gain maps, which nobody is shown."""

_SHORTEST_MS: Final = 10.0
_REPLACED_MS: Final = 100.0
"""Browsers show a frame of at most 10 ms for 100 ms; so does the weighing of frames here."""

_MAX_PIXELS_BOUND: Final = 89_478_485
"""Pillow's own bomb warning, an error here, stands at this many pixels."""


@dataclass(frozen=True)
class DecodeLimits:
    """What a picture may cost: `max_pixels` is the width times height of one frame. UsageError out of range."""

    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= _MAX_PIXELS_BOUND:
            raise UsageError(f"max_pixels is {self.max_pixels}: choose from 1 to {_MAX_PIXELS_BOUND}")


@dataclass(frozen=True)
class Decoded:
    """A picture as the network's input: `frames` is uint8 [frames, crop, crop, 3], RGB, the middle one that of the
    picture, on white. `format` is Pillow's name ("JPEG"), `width` and `height` are pixels as shown, turned upright."""

    frames: npt.NDArray[np.uint8]
    format: str
    width: int
    height: int


def decode(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded:
    """The frames of the picture in `data`.

    Raises ContentError and nothing else: `unsupported_format` where the bytes are none of FORMATS; `too_large`
    where a frame has more than `max_pixels`, or memory does not suffice; `unreadable` for all that is empty,
    truncated or broken, in a later frame of an animation too.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(data, preprocessing, limits)
    except ContentError:
        raise
    except Exception as error:
        # Every Exception: what Pillow raises for broken files is neither documented nor one family, and a
        # picture must not be able to end more than its own verdict.
        # Pillow's own sentence names an object in memory.
        said = "no picture in it" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ContentError(_reason(error, data), f"{type(error).__name__}: {said}"[:500]) from error


def load_readers() -> None:
    """Imports what reading some picture would import later: a confined process can open no file for it then."""
    Image.init()
    _formats()


def frames_to_judge(durations_ms: Sequence[float], most: int) -> list[int]:
    """Which frames of an animation are judged, in order: at most `most`, the first always among them.

    The frames on show at `most` moments spread evenly over the whole time. Where some of those fall on the same
    frame, the longest shown of the others fill up: a single long frame must not hide the rest.
    """
    count = len(durations_ms)
    shown_ms = np.array([ms if ms > _SHORTEST_MS else _REPLACED_MS for ms in durations_ms])
    ends_ms = np.cumsum(shown_ms)
    moments_ms = ends_ms[-1] * np.arange(most) / most
    chosen = {min(int(index), count - 1) for index in np.searchsorted(ends_ms, moments_ms, side="right")}
    others = sorted(set(range(count)) - chosen, key=lambda index: (-shown_ms[index], index))
    return sorted(chosen | set(others[: most - len(chosen)]))


def _decode(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Decoded:
    if not data:
        raise ContentError("unreadable", "the file is empty: upload it again")
    with _open(data, limits) as image:
        image_format = "JPEG" if image.format == "MPO" else str(image.format)
        upright_swaps_sides = pixels.orientation(image) >= 5
        width, height = reversed(image.size) if upright_swaps_sides else image.size
        count = getattr(image, "n_frames", 1) if image_format in _ANIMATED else 1
        durations = [_duration_ms(frame) for frame in _each_frame(image, count, limits)] if count > 1 else [0.0]
    chosen = frames_to_judge(durations, preprocessing.max_frames)
    with _open(data, limits) as image:
        # Twice, because only the last frame tells how long it all takes and keeping all frames may not fit.
        divisor = _divisor(min(image.size), preprocessing) if image_format == "JPEG" else 1
        stored = image.size if divisor > 1 else None  # an animation's frames may have sizes of their own
        image.draft(None, (image.width // divisor, image.height // divisor))
        seen = [
            views(frame, preprocessing, still=count == 1, stored=stored, divisor=divisor)
            for index, frame in enumerate(_each_frame(image, chosen[-1] + 1, limits))
            if index in chosen
        ]
    return Decoded(np.stack(_in_order(seen)), image_format, width, height)


def _in_order(seen: Sequence[tuple[list[View], list[View]]]) -> list[View]:
    """All on white, and half of the others before them: the middle one stays the middle of the picture."""
    on_white, others = (list(chain.from_iterable(views)) for views in zip(*seen, strict=True))
    half = len(others) // 2
    return [*others[:half], *on_white, *others[half:]]


def _divisor(shorter: int, preprocessing: Preprocessing) -> int:
    """By how much a JPEG's sides are divided while it is decoded."""
    half, quarter = preprocessing.jpeg_margins
    margins = {8: quarter, 4: quarter, 2: half}
    return next((by for by, margin in margins.items() if shorter >= by * margin * preprocessing.resize), 1)


def _open(data: bytes, limits: DecodeLimits) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=_formats())
    _check_size(image, limits)
    return image


def _each_frame(image: Image.Image, count: int, limits: DecodeLimits) -> Iterator[Image.Image]:
    for index in range(count):
        if index:
            image.seek(index)
            _check_size(image, limits)
        image.load()
        yield image


def _check_size(image: Image.Image, limits: DecodeLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ContentError("too_large", f"{width} x {height} pixels are more than {limits.max_pixels}")


def _duration_ms(frame: Image.Image) -> float:
    duration = frame.info.get("duration", 0.0)
    return float(duration) if isinstance(duration, int | float) and math.isfinite(duration) else 0.0


@functools.cache
def _formats() -> tuple[str, ...]:
    try:
        import pillow_heif
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def _reason(error: Exception, data: bytes) -> UndecidedReason:
    if isinstance(error, MemoryError | Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too_large"
    if isinstance(error, UnidentifiedImageError) and not _claims_a_format(data):
        return "unsupported_format"
    return "unreadable"


def _claims_a_format(data: bytes) -> bool:
    """Whether the first bytes are those of one of the formats: then the file is broken, not of another kind."""
    accepts = [Image.OPEN[name][1] for name in _formats() if name in Image.OPEN]
    return any(accept is not None and accept(data[:16]) is True for accept in accepts)
