"""One loaded picture of any of Pillow's modes, as it is shown: RGB, on some ground, upright. Knows no formats."""

import struct
from typing import Final

import numpy as np
from PIL import Image

_UPRIGHT: Final = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_EIGHT_BIT: Final = ((np.arange(65536) + 128) // 257).astype(np.uint8)
"""The nearest 8-bit level of each 16-bit one: white is 65,535 = 255 * 257."""

_ORIENTATION: Final = 0x0112
_SHORT: Final = 3


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is broken.

    As browsers read it, or a picture could be judged upside down and shown upright: the first directory's first such
    tag that is one 16-bit number, and nothing that XMP or a text says, which Pillow's own reading takes for it, too.
    """
    block = image.info.get("exif")
    if not isinstance(block, bytes):
        return 1
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", block, 4)
        (entries,) = struct.unpack_from(f"{order}H", block, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", block, at)
            if (tag, kind, count) == (_ORIENTATION, _SHORT, 1):
                return value if value in _UPRIGHT else 1
    except struct.error:  # it breaks off
        pass
    return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """`image` as it is shown: turned and mirrored as an EXIF orientation says."""
    method = _UPRIGHT[orientation]
    return image if method is None else image.transpose(method)


def reverses(orientation: int) -> tuple[bool, bool]:
    """Whether columns and rows, as stored, are shown from their end to their beginning, along whichever side."""
    return orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)


def straight(image: Image.Image) -> Image.Image:
    """`image` of any of Pillow's modes as RGB, or as RGBA where something behind it would show through.

    16-bit grey is scaled to 8 bits (divided by 257), as is 32-bit integer, clipped to 16 bits first; float is
    clipped to 0..255. All else goes through Pillow's own conversion.
    """
    mode = image.mode
    if mode.startswith("I"):
        image = _grey_from_16_bit(image)
    elif mode == "F":
        levels = np.nan_to_num(np.asarray(image, np.float32), nan=0.0)
        image = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    if mode == "La":
        image = image.convert("LA")
    # Converting to the mode an image already has would copy it: 256 MB where it has 64 million pixels.
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            return image
    return image if image.mode == "RGB" else image.convert("RGB")


def on_ground(image: Image.Image, ground: str) -> Image.Image:
    """What `straight` gave, as RGB: what shows through is of the colour `ground`."""
    if image.mode == "RGB":
        return image
    flat = Image.new("RGB", image.size, ground)
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def _grey_from_16_bit(image: Image.Image) -> Image.Image:
    levels = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
    grey = Image.fromarray(_EIGHT_BIT[levels])
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return grey
