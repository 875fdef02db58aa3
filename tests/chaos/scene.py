"""Pictures and versions whose verdicts can be computed by hand.

A picture is one colour, and its content ID ends in its number in the pool (`u17-p04`); the tiny network answers with
softmax(sharpness x that colour's normalised mean), and each version has a sharpness and a ban threshold of its own.
So what a verdict should say follows from its content ID and the version that it names, and from no other version.
"""

import hashlib
import io
import itertools
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.support.pictures import COLOURS, encoded
from tests.support.store import CHANNEL_OF_LABEL, publish_colours
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits, decode
from worker.model.weights import WeightsStore

LABELS = ("approved", "not_suitable", "risked")
POOL = 24
SIZE = (96, 80)  # small, for it is the queue that is under attack
VERSIONS = 12
BAN_THRESHOLD = 0.5
REVIEW_THRESHOLD = 0.3
SHARPNESS = 0.7
# Two versions differ by over 0.001 on every picture of the pool, as `Versions` sees to; rounding and fp32 by far less.
TOLERANCE = 1e-4


class Pictures:
    """A pool of pictures, a third of them risked, and the content folder that workers read."""

    def __init__(self, folder: Path, content: Path) -> None:
        self.pool = folder / "pool"
        self._drawn = folder / "drawn"
        self.pool.mkdir()
        self._drawn.mkdir()
        self.content = content
        self.labels: dict[str, str] = {}  # of what was drawn, by its digest
        self._numbers = itertools.count()
        for number in range(POOL):
            (self.pool / f"{number:02}").write_bytes(_shade(LABELS[number % 3], number))

    def put(self, content_id: str) -> None:
        """Makes the ID's picture visible to the workers."""
        os.link(self.pool / content_id.rpartition("-p")[2], self.content / content_id)

    def draw(self, content_id: str, label: str) -> str:
        """Puts bytes there, in one step, that no other ID has and that this one never had; returns their SHA-256."""
        name, buffer = PngInfo(), io.BytesIO()
        name.add_text("Title", f"{content_id} {next(self._numbers)}")
        Image.new("RGB", SIZE, COLOURS[label]).save(buffer, "PNG", pnginfo=name)
        drawn = self._drawn / hashlib.sha256(buffer.getvalue()).hexdigest()
        drawn.write_bytes(buffer.getvalue())
        self.labels[drawn.name] = label
        fresh = self._drawn / f"{content_id}.new"
        os.link(drawn, fresh)
        os.replace(fresh, self.content / content_id)
        return drawn.name

    def copy(self, content_id: str, other: str) -> None:
        """The same bytes under another content ID."""
        os.link(self.content / content_id, self.content / other)

    def means(self, content_id: str, sha256: str) -> tuple[float, ...]:
        """The normalised mean of each channel, as the network sees it: of a pool ID's picture, else of these bytes."""
        return _means(self._drawn / sha256 if sha256 in self.labels else self.pool / content_id.rpartition("-p")[2])


def label_of(content_id: str) -> str:
    """The label that the picture of a pool ID deserves."""
    return LABELS[int(content_id.rpartition("-p")[2]) % 3]


def _shade(label: str, number: int) -> bytes:
    red, green, blue = COLOURS[label]
    darker = 2 * (number // 3)
    return encoded(Image.new("RGB", SIZE, (max(red - darker, 0), max(green - darker, 0), max(blue - darker, 0))))


@cache
def _means(path: Path) -> tuple[float, ...]:
    how = Preprocessing()
    frame = decode(path.read_bytes(), how, DecodeLimits()).frames[0] / 255
    return tuple(np.mean((frame - how.mean) / how.std, axis=(0, 1)).tolist())


@dataclass(frozen=True, slots=True)
class Numbers:
    """What tells one version from another."""

    sharpness: float
    ban_threshold: float

    def probabilities(self, means: tuple[float, ...]) -> dict[str, float]:
        """The softmax by hand."""
        powers = [math.exp(self.sharpness * means[channel]) for channel in CHANNEL_OF_LABEL]
        return {label: power / sum(powers) for label, power in zip(LABELS, powers, strict=True)}


class Versions:
    """The versions in the store, and what each of them computes."""

    def __init__(self, store: WeightsStore) -> None:
        self.store = store
        self.numbers: dict[str, Numbers] = {}
        for _ in range(VERSIONS):
            self.publish()

    def publish(self) -> str:
        """One more version, unlike all others."""
        count = len(self.numbers)
        numbers = Numbers(SHARPNESS + 0.03 * count, BAN_THRESHOLD + count / 10_000)
        version = publish_colours(
            self.store,
            sharpness=numbers.sharpness,
            ban_threshold=numbers.ban_threshold,
            review_threshold=REVIEW_THRESHOLD,
            promote=count == 0,
        )
        self.numbers[version] = numbers
        return version

    def named_by(self, probabilities: dict[str, float], means: tuple[float, ...]) -> set[str]:
        """The versions that give these probabilities to a picture with these means."""
        return {
            version
            for version, numbers in self.numbers.items()
            if all(abs(p - probabilities[label]) < TOLERANCE for label, p in numbers.probabilities(means).items())
        }
