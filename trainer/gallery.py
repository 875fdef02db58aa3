"""Pictures as a report shows them: small, drawn anew from what the decoders made of them, in data URIs.

    pictures ─► DecoderPool ─► middle frame ─► JPEG of 128 x 128 ─► data:image/jpeg;base64,…

No byte of an uploaded file reaches the page: what is shown is a fresh JPEG of decoded pixels, a few KB each whatever
was uploaded. Knows nothing of labels, figures or HTML.
"""

import base64
import io
from collections.abc import Sequence
from typing import Final

from PIL import Image

from trainer.arrays import Frames
from trainer.dataset import Picture, Unreadable
from trainer.decoding import decode_all, middle
from worker.decode import DecoderPool

SIDE: Final = 128
"""Pixels along a thumbnail's side."""

QUALITY: Final = 72
"""JPEG quality: 3 to 6 KB a thumbnail."""


def thumbnails(pictures: Sequence[Picture], decoders: DecoderPool) -> dict[str, str]:
    """A data URI of each picture by the SHA-256 of its bytes; what cannot be read is left out."""
    return {
        picture.sha256: thumbnail(middle(decoded.frames))
        for picture, decoded in decode_all(pictures, decoders)
        if not isinstance(decoded, Unreadable)
    }


def thumbnail(frame: Frames) -> str:
    """A data URI of uint8 [1, H, W, 3] as a JPEG of SIDE x SIDE."""
    image = Image.fromarray(frame[0]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
