"""Pictures whose verdict the colour store (see `store`) knows: red is risked, green approved, blue not suitable."""

import io
import random
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"approved": (30, 200, 30), "not_suitable": (30, 30, 200), "risked": (200, 30, 30)}
UNSURE = (110, 100, 100)


def picture(label: str, format: str = "JPEG", size: tuple[int, int] = (320, 280), **options: Any) -> bytes:
    """One encoded picture of that label, no two with the same bytes."""
    return encoded(Image.new("RGB", size, COLOURS[label]), format, **options)


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    """The image with a few random pixels, encoded: JPEG rounds most of what one of them says away."""
    for x in range(0, min(image.width, 64), 8):
        image.putpixel((x, 0), tuple(random.randbytes(3)))
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def animation(labels: list[str], format: str = "GIF", duration_ms: int | list[int] = 100) -> bytes:
    """One frame a label."""
    frames = [Image.new("RGB", (300, 260), COLOURS[label]) for label in labels]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=duration_ms, loop=0)


def photograph(rng: np.random.Generator, label: int) -> bytes:
    """A JPEG of 1,280 x 960: soft shapes, grain, and a tint that tells the label a little."""
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((1280, 960), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (960, 1280, 1), np.int16)
    pixels[..., label] += 25
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
