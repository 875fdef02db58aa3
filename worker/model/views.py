"""What is judged of one loaded frame: squares of a fixed size, upright, uint8 RGB.

    frame ─► RGB on white; on black and in the colours its tags ask for, where those show something else
          ─► shorter side scaled to `resize`, `crop` by `crop` cut out: of the centre, or along the length of a long one

Knows no formats, files or animations.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from worker.model import colours, pixels
from worker.model.preprocessing import Preprocessing

View = npt.NDArray[np.uint8]

_VISIBLE_LEVELS: Final = 16
"""Of 255: hardly seen beside others."""

_CHANGED_LEVELS: Final = 32
"""Of 255: what a profile changes less was to be seen without it, too. The wide gamuts of cameras stay below, mostly."""

_VISIBLE_SHARE: Final = 1 / 16
"""Of a square: what is smaller is too small for a network to tell what it is."""


def views(
    frame: Image.Image,
    preprocessing: Preprocessing,
    *,
    still: bool,
    stored: tuple[int, int] | None = None,
    divisor: int = 1,
) -> tuple[list[View], list[View]]:
    """Of `frame` on white, at least one, and otherwise seen; of one that is not `still` only the centre.

    `stored` are the sides of a picture that was decoded at a `divisor`-th of them, for those it has are rounded up, and
    the crop would lie up to a pixel beside.
    """
    orientation = pixels.orientation(frame)
    image = pixels.straight(frame)
    sides, reverses = stored or image.size, pixels.reverses(orientation)
    count = _count(sides, preprocessing) if still else 1
    boxes = [tuple(at / divisor for at in box) for box in _boxes(sides, reverses, preprocessing, count)]

    def on(ground: str) -> list[View]:  # one ground at a time: a large picture takes 200 MB on each
        flat = pixels.on_ground(image, ground)
        return [_cut(flat, box, preprocessing, orientation) for box in boxes]

    light = on("white")
    dark = on("black") if image.mode != "RGB" and preprocessing.on_black else []
    others = [black for white, black in zip(light, dark, strict=False) if _shows_more(white, black)]
    tags = colours.of(frame) if preprocessing.as_tagged else None
    if tags is None:
        return light, others
    inks = [_cut(frame, box, preprocessing, orientation) for box in boxes] if tags.mode == "CMYK" else light
    light_shown, dark_shown = [tags.show(square) for square in inks], [tags.show(square) for square in dark]
    others += [shown for plain, shown in zip(light, light_shown, strict=True) if _changed(plain, shown)]
    others += [
        shown
        for plain, shown, on_light in zip(dark, dark_shown, light_shown, strict=False)
        if _changed(plain, shown) and _shows_more(on_light, shown)
    ]
    return light, others


def _changed(plain: View, tagged: View) -> bool:
    """Whether its tags make another picture of it."""
    red, green, blue = np.moveaxis(np.maximum(plain, tagged) - np.minimum(plain, tagged) > _CHANGED_LEVELS, 2, 0)
    return bool((red | green | blue).mean() >= _VISIBLE_SHARE)


def _shows_more(white: View, black: View) -> bool:
    """Whether there is anything on black that was not all seen on white: not round corners, nor a black drawing."""
    through = white[..., 0].astype(np.int16) - black[..., 0] > _VISIBLE_LEVELS
    return bool(through.mean() >= _VISIBLE_SHARE and black.max() > _VISIBLE_LEVELS)


def _count(sides: tuple[int, int], preprocessing: Preprocessing) -> int:
    """Into how many squares the longer side goes: an odd number, so that the middle one is the centre."""
    most = preprocessing.max_frames
    longer, shorter = max(sides), min(sides)
    if not 0 < preprocessing.long_from * shorter <= longer:
        return 1
    scaled, margins = preprocessing.resize * longer // shorter, preprocessing.resize - preprocessing.crop
    needed = math.ceil((scaled - margins) / preprocessing.crop)
    return min(needed | 1, most - 1 + most % 2)


def _boxes(
    sides: tuple[int, int], reverses: tuple[bool, bool], preprocessing: Preprocessing, count: int
) -> list[tuple[float, float, float, float]]:
    """What is cut out, in pixels as stored: left, top, right, bottom of each, in the order as shown.

    The same pixels as torchvision's Resize and CenterCrop on an upright Pillow image.
    """
    resize, crop = preprocessing.resize, preprocessing.crop
    shorter = min(sides)
    spans = []
    for side, reversed_ in zip(sides, reverses, strict=True):
        scaled = resize * side // shorter
        along = count if side == max(sides) else 1
        firsts = _firsts(scaled, resize, crop, along)
        if reversed_:  # of an odd remainder one pixel less is cut off from the left, or top, as shown
            firsts = [scaled - crop - first for first in firsts]
        spans.append([(first * side / scaled, (first + crop) * side / scaled) for first in firsts])
    across, down = spans
    return [(left, top, right, bottom) for left, right in across for top, bottom in down]


def _firsts(scaled: int, resize: int, crop: int, count: int) -> Sequence[int]:
    """Where `count` squares begin along a side: spread over all but the margins that the centre of a square has."""
    if count == 1:
        return [round((scaled - crop) / 2)]
    margin = (resize - crop) / 2
    return [round(margin + (scaled - crop - 2 * margin) * at / (count - 1)) for at in range(count)]


def _cut(rgb: Image.Image, box: tuple[float, ...], preprocessing: Preprocessing, orientation: int) -> View:
    """One square, scaled and turned upright.

    Only what it shows is scaled, and turned after that: 1 x 60,000 pixels would otherwise become 256 x 15,360,000.
    """
    left, top, right, bottom = box
    within = (left, top, min(right, rgb.width), min(bottom, rgb.height))
    size = (preprocessing.crop, preprocessing.crop)
    cut = rgb.resize(size, Image.Resampling[preprocessing.interpolation.upper()], box=within)
    return np.asarray(pixels.upright(cut, orientation))
