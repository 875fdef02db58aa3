"""What a picture looks like in 224 bytes, and which pictures look the same: copies scaled or saved once more.

    uint8 frame ─► 256 bits of a perceptual hash and 8 x 8 mean colours ─► pairs that are near in both

Two conditions, because either alone is wrong too often (`trainer/LOG.md`, 5): the hash sees shapes but no colour, and
says nothing where a picture has hardly a shape (stripes, one colour); mean colours see no shape. Works on the
frames that the network sees. Knows nothing of files, labels or training.
"""

from typing import Final

import imagehash
import numpy as np
from PIL import Image

from trainer.arrays import BoolArray, FloatArray, Frames, IntArray

HASH_SIDE: Final = 16
COLOUR_SIDE: Final = 8
HASH_BYTES: Final = HASH_SIDE**2 // 8
LOOK_BYTES: Final = HASH_BYTES + COLOUR_SIDE**2 * 3

HASH_DISTANCE_MAX: Final = 32
"""Of 256 bits; unrelated pictures differ in about 128."""

COLOUR_DISTANCE_MAX: Final = 12.0
"""Root mean square over the 8 x 8 mean colours, of 255."""

LOOKS_AT_ONCE: Final = 512
"""Compared with all known ones in one matrix product: 50 MB of results for 24,500 known ones."""

PAIRS_AT_ONCE: Final = 65_536
"""Of which colours are compared: 100 MB of differences."""


def look(frame: Frames) -> Frames:
    """The look of one uint8 frame [H, W, 3], as uint8 [LOOK_BYTES]."""
    image = Image.fromarray(frame)
    bits = imagehash.phash(image, hash_size=HASH_SIDE).hash
    colours = np.asarray(image.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX))
    result: Frames = np.concatenate([np.packbits(bits.ravel()), colours.ravel()])
    return result


def nearest_known(looks: Frames, known: Frames) -> IntArray:
    """For each of `looks` [N, LOOK_BYTES] the index of one of `known` [M, LOOK_BYTES] that looks the same, else -1."""
    found = np.full(len(looks), -1, np.int64)
    signs = _signs(known)
    for start in range(0, len(looks) if len(known) else 0, LOOKS_AT_ONCE):
        mine, theirs = _same(looks[start : start + LOOKS_AT_ONCE], known, signs)
        found[start + mine] = theirs
    return found


def repeated(looks: Frames) -> BoolArray:
    """Which of `looks` [N, LOOK_BYTES] look the same as one before them, bool [N]."""
    result = np.zeros(len(looks), np.bool_)
    signs = _signs(looks)
    for start in range(0, len(looks), LOOKS_AT_ONCE):
        end = min(start + LOOKS_AT_ONCE, len(looks))
        mine, theirs = _same(looks[start:end], looks[:end], signs[:end])
        result[start + mine[theirs < start + mine]] = True
    return result


def _signs(looks: Frames) -> FloatArray:
    bits = np.unpackbits(np.ascontiguousarray(looks[:, :HASH_BYTES]), axis=1)
    return bits.astype(np.float32) * np.float32(2) - np.float32(1)


def _same(looks: Frames, known: Frames, known_signs: FloatArray) -> tuple[IntArray, IntArray]:
    """Rows of `looks`, of which there are LOOKS_AT_ONCE at most, and of `known` that look the same, pair by pair."""
    # Of vectors of +1 and -1 the product is 256 less twice the number of differing bits.
    mine, theirs = np.nonzero(_signs(looks) @ known_signs.T >= HASH_SIDE**2 - 2 * HASH_DISTANCE_MAX)
    same = _same_colours(looks, mine, known, theirs)
    return mine[same], theirs[same]


def _same_colours(looks: Frames, mine: IntArray, known: Frames, theirs: IntArray) -> BoolArray:
    """For pairs of rows; in slices, for pictures of one colour all have one hash, and every pair of them comes here."""
    result = np.zeros(len(mine), np.bool_)
    for start in range(0, len(mine), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        difference = looks[mine[some], HASH_BYTES:].astype(np.float32) - known[theirs[some], HASH_BYTES:]
        result[some] = (difference**2).mean(axis=1) <= COLOUR_DISTANCE_MAX**2
    return result
