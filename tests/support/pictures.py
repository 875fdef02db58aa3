"""Pictures whose verdict the colour store (see `store`) knows: red is risked, green approved, blue not suitable."""

import io
import random
from typing import Any

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
