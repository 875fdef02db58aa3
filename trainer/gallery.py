"""Pictures as a report shows them: small, drawn anew from what the decoders made of them, in data URIs.

    pictures ─► DecoderPool ─► format, size, middle frame ─► JPEG of 128 x 128 ─► data:image/jpeg;base64,…

No byte of an uploaded file reaches the page: what is shown is a fresh JPEG of decoded pixels, a few KB each whatever
was uploaded. Knows nothing of labels, figures or HTML.
"""

import base64
import io
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from PIL import Image

from trainer.arrays import Frames
from trainer.dataset import Picture, Unreadable
from trainer.decoding import decode_all, middle
from trainer.figures import Look
from worker.decode import DecoderPool

SIDE: Final = 128
"""Pixels along a thumbnail's side."""

QUALITY: Final = 72
"""JPEG quality: 3 to 6 KB a thumbnail."""


@dataclass(frozen=True)
class Gallery:
    """By SHA-256 of a picture's bytes: how its file looks, and for those that were wanted a data URI."""

    looks: dict[str, Look]
    thumbnails: dict[str, str]


def look(pictures: Sequence[Picture], wanted: AbstractSet[str], decoders: DecoderPool) -> Gallery:
    """Look at each picture once, and draw thumbnails of those whose SHA-256 is `wanted`; what cannot be read is left
    out."""
    looks, thumbnails = {}, {}
    for picture, decoded in decode_all(pictures, decoders):
        if isinstance(decoded, Unreadable):
            continue
        looks[picture.sha256] = Look(decoded.format, decoded.width, decoded.height)
        if picture.sha256 in wanted:
            thumbnails[picture.sha256] = thumbnail(middle(decoded.frames))
    return Gallery(looks, thumbnails)


def thumbnail(frame: Frames) -> str:
    """A data URI of uint8 [1, H, W, 3] as a JPEG of SIDE x SIDE."""
    image = Image.fromarray(frame[0]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
