"""The colours that a picture's own tags ask for: an ICC profile, or the gamma of a PNG. Squares in, squares out.

Browsers follow them and a network sees plain numbers, so one picture can be blank in its numbers and show something
else by its tags. Knows no grounds, sizes or files.
"""

import functools
import io
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Square = npt.NDArray[np.uint8]

_MODES: Final = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for what a profile describes."""

_GREY: Final = frozenset("1LIF")
"""First bands of Pillow's grey modes."""

_KEPT_BYTES: Final = 65536
"""Of a profile that the next picture may well have, too: cameras' and editors' are far smaller, printers' larger. What
is kept must not add up to another picture's `too_large`."""

_SAME_LEVELS: Final = 8
"""Of 255: a profile that changes none by more is sRGB for whoever looks."""

_SCREEN_GAMMA: Final = 2.2
_SRGB: Final = ImageCms.createProfile("sRGB")


@dataclass(frozen=True)
class Colours:
    """Turns numbers into what is shown: uint8 of `mode`, [H, W, 3] for RGB and L, [H, W, 4] for CMYK, to sRGB."""

    mode: str
    show: Callable[[Square], Square]


def of(image: Image.Image) -> Colours | None:
    """What the tags of a loaded picture ask for; None where it has none, or such as nobody can follow."""
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and profile:
        made = _made if len(profile) <= _KEPT_BYTES else _made.__wrapped__
        colours = made(profile)
        return colours if colours is not None and _describes(colours.mode, image) else None
    gamma = image.info.get("gamma")
    if isinstance(gamma, float) and gamma > 0 and "srgb" not in image.info:
        return Colours("RGB", functools.partial(_brightened, exponent=1 / (_SCREEN_GAMMA * gamma)))
    return None


def _describes(mode: str, image: Image.Image) -> bool:
    """Whether a profile for `mode` can be meant for the picture; grey is told in RGB as well."""
    bands = image.getbands()
    grey = len(bands) <= 2 and bands[0] in _GREY
    return grey if mode == "L" else (mode == "CMYK") == (image.mode == "CMYK")


@functools.lru_cache(maxsize=8)
def _made(profile: bytes) -> Colours | None:
    try:
        read = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(read.profile.xcolor_space)
        if mode is None:
            return None
        transform = ImageCms.buildTransform(read, _SRGB, mode, "RGB")
    except (OSError, ValueError, ImageCms.PyCMSError):  # browsers show it as if it had none
        return None
    colours = Colours(mode, functools.partial(_transformed, transform=transform))
    return None if mode == "RGB" and _is_srgb(profile, colours) else colours


def _is_srgb(profile: bytes, colours: Colours) -> bool:
    """Whether the profile says what the numbers say, as most do, so that no picture need be turned to find out.

    Without tables it is three curves and a matrix: then all levels of each colour alone, and of grey, show the curves,
    what one colour adds to another, and what it takes away.
    """
    (tags,) = struct.unpack_from(">I", profile, 128)
    if any(profile[at : at + 3] in (b"A2B", b"D2B") for at in range(132, 132 + 12 * tags, 12)):
        return False
    levels = np.arange(256, dtype=np.uint8)[:, None]
    ramps = np.stack([levels * np.array(colour, np.uint8) for colour in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))])
    shown = colours.show(ramps)
    return bool((np.maximum(ramps, shown) - np.minimum(ramps, shown)).max() <= _SAME_LEVELS)


def _transformed(square: Square, transform: ImageCms.ImageCmsTransform) -> Square:
    mode = transform.input_mode
    image = (
        Image.fromarray(np.ascontiguousarray(square[..., 0]))
        if mode == "L"
        else Image.frombytes(mode, (square.shape[1], square.shape[0]), square.tobytes())
    )
    return np.asarray(ImageCms.applyTransform(image, transform))


def _brightened(square: Square, exponent: float) -> Square:
    levels = [round(255 * math.pow(level / 255, exponent)) for level in range(256)]
    shown: Square = np.array(levels, np.uint8)[square]
    return shown
