"""Pictures in, numbers that never change in training out: what frozen layers compute is computed once a picture.

    picture ─► in the cache? ─────────────────────────────► a table of them: Features
         └─► uint8 frames ─► batches ─► FrozenPart ─► cache ─┘

Memory holds a batch, what has not yet gone to the cache (SHARD_PICTURES), and tables that are small; larger tables
are mapped from disk. Knows nothing of recipes or labels' meaning.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from trainer.arrays import BoolArray, FloatArray, Frames, IntArray
from trainer.cache import FeatureCache, FrameChoice
from trainer.dataset import Facts, Picture, Unreadable
from trainer.decoding import decode_all, decoder_pool, middle
from trainer.errors import CacheError
from trainer.frozen import BATCH_FRAMES, FrozenPart
from trainer.looks import LOOK_BYTES, look
from trainer.progress import Reporter
from trainer.shards import Entry
from trainer.tables import Tables, chunks
from worker.decode import DecoderPool
from worker.model.reading import Decoded

SHARD_PICTURES: Final = 256
SHARD_S: Final = 30.0
"""Computed pictures go to the cache so many at a time or after so many seconds: what a killed run loses at most."""

ATTEMPTS: Final = 3
"""How often damaged or vanished cache files are computed again before the folder is called unusable."""


@dataclass(frozen=True)
class Features:
    """What the frozen part makes of the readable ones of some pictures.

    `values` is float32 [frames, width], mapped from disk where it is large; `owner` int64 [frames], ascending, says
    to which of `pictures` a frame belongs; every picture owns at least one. `looks` is uint8 [pictures,
    LOOK_BYTES], `facts` what decoding showed of each picture.
    """

    values: FloatArray
    owner: IntArray
    pictures: tuple[Picture, ...]
    unreadable: tuple[Unreadable, ...]
    looks: Frames = field(default_factory=lambda: np.zeros((0, LOOK_BYTES), np.uint8))
    facts: tuple[Facts, ...] = ()

    @property
    def labels(self) -> IntArray:
        """int64 [pictures]: indices into LABELS."""
        return np.array([picture.label for picture in self.pictures], dtype=np.int64)

    def only(self, kept: BoolArray) -> "Features":
        """Those of the pictures that `kept` [pictures] marks. Moves rows within `values`: this object is used up."""
        rows = np.flatnonzero(kept[self.owner])
        for part in chunks(len(rows)):
            self.values[part] = self.values[rows[part]]  # rows only move forward, so none is overwritten unread
        return Features(
            self.values[: len(rows)],
            (np.cumsum(kept) - 1)[self.owner[rows]],
            tuple(picture for picture, keep in zip(self.pictures, kept, strict=True) if keep),
            self.unreadable,
            self.looks[kept],
            tuple(fact for fact, keep in zip(self.facts, kept, strict=True) if keep),
        )


class Compute(Protocol):
    """Pictures to features."""

    def __call__(self, pictures: Sequence[Picture], frames: FrameChoice, what: str) -> Features: ...


def computer(part: FrozenPart, decoders: DecoderPool, reporter: Reporter, cache: FeatureCache | None = None) -> Compute:
    """Computes in `decoders` and `part` what `cache` lacks, keeps it there, and makes tables of what it holds.

    Without a `cache` a temporary one serves a single call.
    """

    def compute(pictures: Sequence[Picture], frames: FrameChoice, what: str) -> Features:
        with ExitStack() as stack:
            at = cache
            if at is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                at = stack.enter_context(FeatureCache(folder, part.key, part.dtype, reporter.say))
            unreadable = _complete(part, decoders, at, pictures, frames, what, reporter)
            for _ in range(ATTEMPTS):
                features = _table(part.tables, at, pictures, frames, unreadable)
                if features is not None:
                    return features
                unreadable += _complete(part, decoders, at, pictures, frames, what, reporter)
        raise CacheError(
            f"Files keep vanishing from the feature cache {str(at.folder)!r} or are damaged there: "
            "name another folder with --cache."
        )

    return compute


@contextmanager
def computing(
    part: FrozenPart, reporter: Reporter, folder: Path | None, max_bytes: int
) -> Iterator[tuple[Compute, DecoderPool]]:
    """`computer` with a cache in `folder`, if one is named, and the decoders that it works with."""
    with ExitStack() as stack:
        cache = None
        if folder is not None:
            cache = stack.enter_context(FeatureCache(folder, part.key, part.dtype, reporter.say, max_bytes))
        decoders = stack.enter_context(decoder_pool(part.preprocessing))
        yield computer(part, decoders, reporter, cache), decoders


def only_looks(decoders: DecoderPool, reporter: Reporter) -> Compute:
    """Decodes pictures to see whether and as what they can be read; features of width 0, one frame a picture."""

    def compute(pictures: Sequence[Picture], frames: FrameChoice, what: str) -> Features:
        readable: list[tuple[Picture, Frames, Facts]] = []
        unreadable: list[Unreadable] = []
        with reporter.track(what, len(pictures)) as advance:
            for picture, decoded in decode_all(pictures, decoders):
                advance(1)
                if isinstance(decoded, Unreadable):
                    unreadable.append(decoded)
                else:
                    readable.append((picture, look(middle(decoded.frames)[0]), facts_of(decoded)))
        count = len(readable)
        return Features(
            np.zeros((count, 0), np.float32),
            np.arange(count),
            tuple(picture for picture, _, _ in readable),
            tuple(unreadable),
            np.stack([seen for _, seen, _ in readable]) if readable else np.zeros((0, LOOK_BYTES), np.uint8),
            tuple(facts for _, _, facts in readable),
        )

    return compute


def facts_of(decoded: Decoded) -> Facts:
    """What is kept of a decoded picture beside its features."""
    return Facts(decoded.format, decoded.width, decoded.height)


def _complete(
    part: FrozenPart,
    decoders: DecoderPool,
    cache: FeatureCache,
    pictures: Sequence[Picture],
    frames: FrameChoice,
    what: str,
    reporter: Reporter,
) -> list[Unreadable]:
    """Compute the pictures that the cache lacks, and keep them there; also those computed before an interruption."""
    cache.hold({picture.sha256 for picture in pictures})
    missing = [picture for picture in pictures if not cache.frames(picture.sha256, frames)]
    if known := len(pictures) - len(missing):
        reporter.say(f"{what}: {known} of {len(pictures)} are in the cache.")
    unreadable: list[Unreadable] = []
    waiting: list[Entry] = []
    kept_at_s = time.monotonic()
    with reporter.track(what, len(pictures)) as advance:
        advance(known)
        try:
            for made in _compute(part, missing, decoders, frames):
                advance(1)
                if isinstance(made, Unreadable):
                    unreadable.append(made)
                    continue
                waiting.append(made)
                if len(waiting) >= SHARD_PICTURES or time.monotonic() - kept_at_s >= SHARD_S:
                    cache.add(waiting)
                    waiting, kept_at_s = [], time.monotonic()
        finally:
            cache.add(waiting)
    return unreadable


def _compute(
    part: FrozenPart, pictures: Sequence[Picture], decoders: DecoderPool, frames: FrameChoice
) -> Iterator[Entry | Unreadable]:
    """An Entry for each picture that can be read, an Unreadable for the others, decoding ahead of the forward pass.

    Entries come in batches, so not always in the pictures' order.
    """
    batch: list[tuple[Picture, Decoded, Frames]] = []
    count = 0
    for picture, decoded in decode_all(pictures, decoders):
        if isinstance(decoded, Unreadable):
            yield decoded
            continue
        chosen = decoded.frames if frames == "all" else middle(decoded.frames)
        if batch and count + len(chosen) > BATCH_FRAMES:
            yield from _entries(part, batch)
            batch, count = [], 0
        batch.append((picture, decoded, chosen))
        count += len(chosen)
    if batch:
        yield from _entries(part, batch)


def _entries(part: FrozenPart, batch: Sequence[tuple[Picture, Decoded, Frames]]) -> Iterator[Entry]:
    values = part.forward(np.concatenate([chosen for _, _, chosen in batch]))
    at = 0
    for picture, decoded, chosen in batch:
        whole = len(chosen) == len(decoded.frames)
        yield Entry(
            picture.sha256, values[at : at + len(chosen)], whole, look(middle(decoded.frames)[0]), facts_of(decoded)
        )
        at += len(chosen)


def _table(
    tables: Tables, cache: FeatureCache, pictures: Sequence[Picture], frames: FrameChoice, lost: Sequence[Unreadable]
) -> Features | None:
    """The features of `pictures` without the lost ones; None where the cache no longer has them all."""
    unusable = {one.path for one in lost}
    readable = [picture for picture in pictures if picture.path not in unusable]
    counts = np.array([cache.frames(picture.sha256, frames) for picture in readable], np.int64)
    if not counts.all():
        return None
    first = np.cumsum(counts) - counts
    at: dict[str, list[int]] = {}
    for i, picture in enumerate(readable):
        at.setdefault(picture.sha256, []).append(i)
    values: FloatArray | None = None
    looks = np.zeros((len(readable), LOOK_BYTES), np.uint8)
    facts: dict[int, Facts] = {}
    for entry in cache.read(set(at), frames):
        if values is None:
            values = tables.new(int(counts.sum()), entry.values.shape[1])
        for i in at[entry.sha256]:
            values[first[i] : first[i] + counts[i]] = entry.values
            looks[i], facts[i] = entry.look, entry.facts
    if len(facts) < len(readable):
        return None
    owner = np.repeat(np.arange(len(readable)), counts)
    table = np.zeros((0, 0), np.float32) if values is None else values
    return Features(table, owner, tuple(readable), tuple(lost), looks, tuple(facts[i] for i in range(len(readable))))
