"""What the stand-in pictures show, by label: layouts with captions, smooth scenes, patterns of warning signs.

Flows through: a size and a random stream in, an RGB picture out. Knows nothing of files, formats or splits.
All of it is abstract; colours come from one distribution whatever the label: only structure tells it.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from worker.model.labels import LABELS

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Painter = Callable[[int, int, np.random.Generator], Image.Image]


def paint(label: int, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """An RGB picture of `width` x `height` pixels for the label at this place in LABELS."""
    painters = PAINTERS[LABELS[label]]
    return painters[int(rng.integers(len(painters)))](width, height, rng)


def _colour(rng: np.random.Generator) -> Colour:
    red, green, blue = (int(x) for x in rng.integers(20, 236, 3))
    return (red, green, blue)


def _pair(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Two colours far apart in brightness, in random order."""
    shade, tint = rng.integers(0, 80, 3), rng.integers(175, 256, 3)
    first, second = (tint, shade) if rng.random() < 0.5 else (shade, tint)
    return (int(first[0]), int(first[1]), int(first[2])), (int(second[0]), int(second[1]), int(second[2]))


def _far(colour: Colour, rng: np.random.Generator) -> Colour:
    """A colour far from this one in brightness."""
    dark, light = sorted(_pair(rng), key=sum)
    return light if sum(colour) < 380 else dark


def _cloud(width: int, height: int, cells: int, rng: np.random.Generator) -> Image.Image:
    """A smooth field of random colours."""
    field = rng.integers(20, 236, (cells, cells, 3)).astype(np.uint8)
    return Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC)


# ---- approved: pictures with captions


def _text(pen: ImageDraw.ImageDraw, box: Box, letter: float, ink: Colour, rng: np.random.Generator) -> None:
    """Rows of made-up letters, `letter` pixels high, each three strokes on a 2 x 3 grid."""
    left, top, right, bottom = box
    stroke, y = max(2, round(letter * 0.16)), top
    while y + letter <= bottom:
        x, end = left, right - (right - left) * rng.uniform(0, 0.3)
        while x + 0.6 * letter <= end:
            if rng.random() > 0.17:  # else a space between words
                corners = rng.permutation(6)[:4]
                spots = [(x + letter * (c % 2) / 2, y + letter * (c // 2) / 2) for c in corners.tolist()]
                pen.line(spots, fill=ink, width=stroke)
            x += 0.8 * letter
        y += 1.45 * letter


def _captions(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A picture between a caption bar above and one below."""
    paper, ink = _pair(rng)
    image = Image.new("RGB", (width, height), paper)
    # Measured from the middle in short sides, so that a centre crop keeps a part of both bars.
    above, below = min(width, height) * rng.uniform(0.16, 0.28, 2)
    top, bottom = int(height / 2 - above), int(height / 2 + below)
    image.paste(_scene(width, bottom - top, rng), (0, top))
    pen, letter = ImageDraw.Draw(image), min(width, height) * rng.uniform(0.05, 0.07)
    for upper, lower in ((0, top), (bottom, height)):
        _text(pen, (0.05 * width, upper + 0.02 * height, 0.97 * width, lower), letter, ink, rng)
    return image


def _panels(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Rows of a picture with text beside it."""
    paper, ink = _pair(rng)
    image = Image.new("RGB", (width, height), paper)
    pen, letter = ImageDraw.Draw(image), min(width, height) * rng.uniform(0.045, 0.065)
    rows, split, swap = int(rng.integers(2, 4)), rng.uniform(0.4, 0.55), rng.random() < 0.5
    for row in range(rows):
        top, bottom = height * row // rows, height * (row + 1) // rows
        panel = _scene(int(width * split), bottom - top - 4, rng)
        image.paste(panel, (width - panel.width if swap else 0, top + 2))
        left, right = (0.03, 1 - split - 0.02) if swap else (split + 0.03, 0.98)
        _text(pen, (width * left, top + 0.03 * height, width * right, bottom), letter, ink, rng)
    return image


def _post(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A block of text with a picture set in it, like a screenshot of a post."""
    paper, ink = _pair(rng)
    image = Image.new("RGB", (width, height), paper)
    pen, letter = ImageDraw.Draw(image), min(width, height) * 0.05
    _text(pen, (0.04 * width, 0.03 * height, width, height), letter, ink, rng)
    panel = _scene(int(width * rng.uniform(0.6, 0.85)), int(height * rng.uniform(0.3, 0.5)), rng)
    image.paste(panel, ((width - panel.width) // 2, int(height * rng.uniform(0.2, 0.45))))
    return image


# ---- not_suitable: smooth scenes, drawn small and enlarged, which makes them soft


def _landscape(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A sky, perhaps a sun, and ranges of hills."""
    image = Image.fromarray(rng.integers(20, 236, (2, 1, 3)).astype(np.uint8))
    image = image.resize((200, 200), Image.Resampling.BILINEAR)
    pen, x = ImageDraw.Draw(image), np.arange(-2, 204, 2)
    if rng.random() < 0.7:
        (sun_x, sun_y), radius = rng.uniform((20, 20), (180, 90)), rng.uniform(8, 26)
        pen.ellipse((sun_x - radius, sun_y - radius, sun_x + radius, sun_y + radius), fill=_colour(rng))
    horizon = rng.uniform(70, 110)
    for _ in range(int(rng.integers(2, 5))):
        waves = rng.uniform((2, 0.01, 0), (12, 0.07, 6.28), (3, 3))
        ridge = horizon + sum(size * np.sin(x * speed + phase) for size, speed, phase in waves)
        shape = [(float(a), float(b)) for a, b in zip(x, ridge, strict=True)]
        pen.polygon([(-2, 204), *shape, (204, 204)], fill=_colour(rng))
        horizon += rng.uniform(15, 40)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _selfie(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A simple face before a blurred room."""
    image = _cloud(200, 200, int(rng.integers(3, 6)), rng)
    pen, skin, hair, dark = ImageDraw.Draw(image), _colour(rng), _colour(rng), _colour(rng)
    x, y, size = rng.uniform(80, 120), rng.uniform(80, 115), rng.uniform(34, 58)
    pen.ellipse((x - 2 * size, y + 1.1 * size, x + 2 * size, y + 5 * size), fill=_colour(rng))
    pen.ellipse((x - 1.1 * size, y - 1.5 * size, x + 1.1 * size, y + rng.uniform(0.1, 1.6) * size), fill=hair)
    pen.ellipse((x - 0.85 * size, y - 1.1 * size, x + 0.85 * size, y + 1.25 * size), fill=skin)
    for eye in (x - 0.35 * size, x + 0.35 * size):
        pen.ellipse((eye - 0.12 * size, y - 0.25 * size, eye + 0.12 * size, y - 0.05 * size), fill=dark)
    smile = (x - 0.4 * size, y + 0.2 * size, x + 0.4 * size, y + 0.8 * size)
    pen.arc(smile, 20, 160, fill=dark, width=max(2, int(size * 0.09)))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _blobs(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Soft shapes out of focus."""
    image = _cloud(90, 90, int(rng.integers(2, 5)), rng)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 9))):
        (x, y), (a, b) = rng.uniform(0, 90, 2), rng.uniform(6, 24, 2)
        pen.ellipse((x - a, y - b, x + a, y + b), fill=_colour(rng))
    return image.resize((32, 32), Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.BICUBIC)


def _scene(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    return paint(LABELS.index("not_suitable"), width, height, rng)


# ---- risked: what warning signs are made of, on a square turned by any angle


def _stripes(side: int, pen: ImageDraw.ImageDraw, ink: Colour, rng: np.random.Generator) -> None:
    step = side * rng.uniform(0.07, 0.13)
    for i in range(int(side / step) + 1):
        pen.rectangle((0, i * step, side, (i + rng.uniform(0.48, 0.52)) * step), fill=ink)


def _target(side: int, pen: ImageDraw.ImageDraw, ink: Colour, rng: np.random.Generator) -> None:
    back = _far(ink, rng)
    x, y = rng.uniform(0.4, 0.6, 2) * side
    step = side * rng.uniform(0.04, 0.07)
    for i in range(int(side / step), 0, -1):
        radius = i * step
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink if i % 2 else back)


def _triangle(pen: ImageDraw.ImageDraw, x: float, y: float, reach: float, fill: Colour) -> None:
    turns = (0.0, 2 * math.pi / 3, 4 * math.pi / 3)
    pen.polygon([(x + reach * math.sin(turn), y - reach * math.cos(turn)) for turn in turns], fill=fill)


def _triangles(side: int, pen: ImageDraw.ImageDraw, ink: Colour, rng: np.random.Generator) -> None:
    back, step = _far(ink, rng), rng.uniform(0.1, 0.16)
    for i in range(int(1 / step), 0, -1):
        _triangle(pen, 0.5 * side, 0.54 * side, 0.95 * side * i * step, ink if i % 2 else back)


def _rays(side: int, pen: ImageDraw.ImageDraw, ink: Colour, rng: np.random.Generator) -> None:
    count = int(rng.integers(8, 15))
    for i in range(count):
        pen.pieslice((-side, -side, 2 * side, 2 * side), 360 * i / count, 360 * (i + 0.5) / count, fill=ink)


def _warning(side: int, pen: ImageDraw.ImageDraw, ink: Colour, rng: np.random.Generator) -> None:
    """A triangle with a bar and a dot in it, on stripes."""
    _stripes(side, pen, ink, rng)
    middle, size, back = side / 2, side * rng.uniform(0.2, 0.27), _far(ink, rng)
    for reach, colour in ((1.3, back), (1.1, ink), (0.8, back)):
        _triangle(pen, middle, middle + 0.1 * size, size * reach, colour)
    pen.line((middle, middle - 0.35 * size, middle, middle + 0.15 * size), fill=ink, width=int(0.16 * size))
    y, dot = middle + 0.33 * size, 0.09 * size
    pen.ellipse((middle - dot, y - dot, middle + dot, y + dot), fill=ink)


def _sign(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """One of the patterns above, all over the picture, turned by any angle."""
    paper, ink = _pair(rng)
    side = int(math.hypot(width, height)) + 2
    image = Image.new("RGB", (side, side), paper)
    patterns = (_stripes, _target, _triangles, _rays, _warning)
    patterns[int(rng.integers(len(patterns)))](side, ImageDraw.Draw(image), ink, rng)
    image = image.rotate(float(rng.uniform(0, 360)), Image.Resampling.BILINEAR)
    left, top = (side - width) // 2, (side - height) // 2
    return image.crop((left, top, left + width, top + height))


PAINTERS: Final[dict[str, tuple[Painter, ...]]] = {
    "approved": (_captions, _panels, _post),
    "not_suitable": (_landscape, _selfie, _blobs),
    "risked": (_sign,),
}
