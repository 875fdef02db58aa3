"""Broken pictures from sound ones, the same for the same seed: what a stranger with a fuzzer uploads.

Small pictures of every format go in, damaged bytes come out. Knows no decoder.
"""

import io
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

MAX_BYTES = 200_000
"""Larger files of the shared pictures are no seeds: their size is what they test."""

TOKENS = (
    b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xdb",
    b"\xff\xdd\x00\x04\x00\x01",
    b"\xff\xe1\xff\xff", b"Exif\0\0", b"MPF\0", b"\x89PNG\r\n\x1a\n", b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS",
    b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt", b"eXIf", b"GIF87a", b"GIF89a", b"\x21\xf9\x04", b"\x21\xff\x0b",
    b"\x2c\0\0\0\0\xff\xff\xff\xff", b"\x3b", b"RIFF", b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH",
    b"ftypavif", b"ftypavis", b"meta", b"iloc", b"ipma", b"ispe", b"mdat", b"moov", b"stsz", b"BM", b"\x28\0\0\0",
    b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"II*\0", b"MM\0*",
)  # fmt: skip
"""Magic numbers, chunk and box names, and the lengths at which sums overflow."""

LIES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Mutation = Callable[[random.Random, bytes, bytes], bytes]
"""Dice, a picture, another one: a damaged picture."""


def seeds(dice: random.Random) -> list[bytes]:
    """Sound pictures of each format, still and animated, in the modes and options that take other paths to decode."""
    colour = Image.frombytes("RGB", (40, 30), dice.randbytes(3600))
    film = [Image.frombytes("RGB", (24, 20), dice.randbytes(1440)) for _ in range(4)]
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha, palette, grey = colour.convert("RGBA"), colour.convert("P"), colour.convert("L")
    made = [
        _saved(colour, "JPEG"), _saved(colour, "JPEG", progressive=True, exif=exif), _saved(grey, "JPEG"),
        _saved(colour.convert("CMYK"), "JPEG"), _saved(colour, "JPEG", subsampling=2, icc_profile=dice.randbytes(300)),
        _saved(colour, "PNG"), _saved(alpha, "PNG"), _saved(palette, "PNG", transparency=3), _saved(grey, "PNG"),
        _saved(colour.convert("1"), "PNG"), _saved(grey.convert("I;16"), "PNG"),
        _saved(colour, "WEBP"), _saved(alpha, "WEBP", lossless=True), _saved(alpha, "WEBP", exif=exif),
        _saved(palette, "GIF"), _saved(grey, "GIF", interlace=1),
        _saved(colour, "AVIF", speed=10), _saved(alpha, "AVIF", speed=10),
        _saved(colour, "BMP"), _saved(palette, "BMP"), _saved(alpha, "BMP"), _saved(colour.convert("1"), "BMP"),
    ]  # fmt: skip
    return made + [
        _saved(film[0], kind, save_all=True, append_images=film[1:], duration=40)
        for kind in ("GIF", "PNG", "WEBP", "AVIF")
    ]


def seeds_beside(folder: Path) -> list[bytes]:
    """The shared pictures that are small enough; none where the folder is not there."""
    if not folder.is_dir():
        return []
    return [path.read_bytes() for path in sorted(folder.iterdir()) if 0 < path.stat().st_size <= MAX_BYTES]


def mutated(seed: int, count: int, more: list[bytes] | None = None) -> Iterator[bytes]:
    """`count` damaged pictures, one to four mutations each, a third of them from `more` where there are such."""
    dice = random.Random(seed)
    own = seeds(dice)
    for _ in range(count):
        pool = more if more and dice.random() < 1 / 3 else own
        data, other = dice.choice(pool), dice.choice(pool)
        for _ in range(dice.choice((1, 1, 2, 4))):
            data = dice.choice(MUTATIONS)(dice, data, other) or b"\0"
        yield _checksums_mended(data) if dice.random() < 0.5 else data


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return _timeless(buffer.getvalue()) if kind == "AVIF" else buffer.getvalue()


def _timeless(data: bytes) -> bytes:
    """An AVIF film without the moment it was made, which else would make other mutations of it each second."""
    made = bytearray(data)
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        for found in re.finditer(box, data):
            at, length = found.end() + 4, 16 if data[found.end()] == 1 else 8  # version and flags, then two times
            made[at : at + length] = bytes(length)
    return bytes(made)


def _bits(dice: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    reach = len(changed) if dice.random() < 0.5 else min(len(changed), 200)
    for _ in range(dice.choice((1, 1, 3, 20))):
        changed[dice.randrange(reach)] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _cut(dice: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: dice.randrange(len(data))]


def _drop(dice: random.Random, data: bytes, other: bytes) -> bytes:
    start = dice.randrange(len(data))
    return data[:start] + data[start + dice.choice((1, 2, 4, 12, 100)) :]


def _splice(dice: random.Random, data: bytes, other: bytes) -> bytes:
    here, there = dice.randrange(len(data)), dice.randrange(len(other))
    return data[:here] + other[there : there + dice.choice((8, 64, 512, 4096))] + data[here:]


def _repeat(dice: random.Random, data: bytes, other: bytes) -> bytes:
    start = dice.randrange(len(data))
    piece = data[start : start + dice.choice((4, 40, 400))]
    return data[:start] + piece * dice.choice((2, 10, 200)) + data[start:]


def _append(dice: random.Random, data: bytes, other: bytes) -> bytes:
    return data + dice.choice((other, dice.randbytes(50), bytes(1000), b"<?php ?>", data))


def _token(dice: random.Random, data: bytes, other: bytes) -> bytes:
    start, token = dice.randrange(len(data)), dice.choice(TOKENS)
    return data[:start] + token + data[start + len(token) * dice.randrange(2) :]


def _lie(dice: random.Random, data: bytes, other: bytes) -> bytes:
    """A number in the first bytes, where sizes stand, or behind a chunk's name, becomes another."""
    start = dice.randrange(min(len(data), 64))
    names = [found for token in TOKENS if len(token) >= 4 and (found := data.find(token)) >= 0]
    if names and dice.random() < 0.5:
        start = dice.choice(names) + dice.choice((-4, 4, 8, 12))
    start = max(0, start)
    code = dice.choice(("<H", ">H", "<I", ">I", "B"))
    number = struct.pack(code, dice.choice(LIES) & (256 ** struct.calcsize(code) - 1))
    return data[:start] + number + data[start + len(number) :]


MUTATIONS: tuple[Mutation, ...] = (_bits, _bits, _cut, _drop, _splice, _repeat, _append, _token, _lie, _lie)


def _checksums_mended(data: bytes) -> bytes:
    """A PNG's chunks with the checksums that they should have, so that damage gets past them; others as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    mended, at = bytearray(data), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4])
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = zlib.crc32(mended[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(mended)
