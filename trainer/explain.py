"""Pictures explained by a version and by the network before it was fine-tuned, ready to be drawn.

    pictures ─► middle or deciding frame ─► shapley.Cut.maps with each of two last layers ─► Explained

Before fine-tuning means the same base with a last layer that has seen no picture: the base's own, ImageNet's, has other
outputs and is not kept in the store, so what is shown is the untrained layer, from a fixed seed, that the article's
recipe starts from. Another version of the same base may take its place. Knows nothing of drawing or HTML.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trainer import dataset, recipes
from trainer.arrays import Frames
from trainer.assess import Newcomer, stored_head
from trainer.dataset import Picture, Unreadable
from trainer.decoding import decode_all, middle
from trainer.errors import DataError
from trainer.figures import to_explain
from trainer.progress import Reporter
from trainer.recipes import FittedHead
from trainer.shapley import Cut, Head, Map
from worker.decode import DecoderPool
from worker.errors import UsageError
from worker.model import network as networks
from worker.model.labels import LABELS, RISKED
from worker.model.manifest import Manifest
from worker.model.preprocessing import Preprocessing
from worker.model.weights import WeightsStore

BACKGROUND_MAX: Final = 32
"""Pictures of a background: more change a map less than its own samples do."""

REPORT_CELLS: Final = 14
REPORT_SAMPLES: Final = 20
REPORT_BACKGROUND: Final = 16
"""In a report maps are coarser and rougher than those of the command: a fit must not wait minutes for them."""

UNTRAINED: Final = "before fine-tuning: the base with an untrained last layer"
AFTER: Final = "fine-tuned:"
NEUTRAL: Final = "a plain picture of the preprocessing's mean colour"


@dataclass(frozen=True)
class Shown:
    """A picture to explain: what it is called, uint8 frames [frames, H, W, 3], what is said about it, and whether it
    is to be blurred until clicked."""

    name: str
    frames: Frames
    said: str = ""
    blurred: bool = False


@dataclass(frozen=True)
class Row:
    """What one network makes of a picture: who says it, and its two likeliest labels, the likelier one first."""

    said: str
    maps: tuple[Map, Map]


@dataclass(frozen=True)
class Explained:
    """A picture, which of its frames was explained, and a row for each network."""

    shown: Shown
    at: int
    rows: tuple[Row, ...]

    @property
    def frame(self) -> Frames:
        """The frame that was explained, uint8 [H, W, 3]."""
        frame: Frames = self.shown.frames[self.at]
        return frame

    @property
    def name(self) -> str:
        """The picture's name; of one with several frames with the number of the frame."""
        count = len(self.shown.frames)
        return self.shown.name if count == 1 else f"{self.shown.name} (frame {self.at + 1} of {count})"


@dataclass(frozen=True)
class Background:
    """The pictures that a picture is held against: uint8 [N, H, W, 3], and what a reader is told that they are."""

    frames: Frames
    said: str


def explain(
    cut: Cut, heads: Sequence[Head], shown: Sequence[Shown], background: Background, samples: int
) -> list[Explained]:
    """Each picture by each head. Of several frames the one that decides by the last head is explained."""
    reached = [cut.activations(one.frames) for one in shown]
    deciding = [int(cut.probabilities(heads[-1], one)[:, RISKED].argmax()) for one in reached]
    explained = torch.stack([one[at] for one, at in zip(reached, deciding, strict=True)])
    against = cut.activations(background.frames)
    made = [cut.maps(head, explained, against, samples) for head in heads]
    return [
        Explained(one, at, tuple(Row(head.said, maps[i]) for head, maps in zip(heads, made, strict=True)))
        for i, (one, at) in enumerate(zip(shown, deciding, strict=True))
    ]


def untrained(head_width: int) -> Head:
    """The last layer before fine-tuning."""
    return Head(f"{UNTRAINED} (seed {recipes.SEED})", recipes.untrained_head(head_width, recipes.SEED))


def heads_of(store: WeightsStore, manifest: Manifest, before: Manifest | None) -> tuple[Head, Head]:
    """The last layers of `before`, untrained where None, and of a version.

    Raises UsageError where they stand on different bases.
    """
    after = Head(f"{AFTER} {manifest.id}", stored_head(store, manifest), manifest.temperature)
    if before is None:
        return untrained(after.fitted.weight.shape[1]), after
    same = (before.network, before.base.sha256, before.preprocessing)
    if same != (manifest.network, manifest.base.sha256, manifest.preprocessing):
        raise UsageError(
            f"{before.id} stands on another base or preprocessing than {manifest.id}: "
            "name a version of the same base with --before, or leave it out."
        )
    return Head(f"for comparison: {before.id}", stored_head(store, before), before.temperature), after


def background_of(folder: Path, decoders: DecoderPool) -> Background:
    """The middle frames of at most BACKGROUND_MAX pictures under `folder`, drawn by the hash of their names.

    Raises DataError where there is none that can be read.
    """
    files = dataset.scan_unlabelled(folder, "background", BACKGROUND_MAX)
    frames = _middles(files, decoders)
    if not frames:
        raise DataError(f"None of the {len(files)} files tried in {str(folder)!r} is a picture: name another folder.")
    return Background(np.concatenate(frames), f"{len(frames)} pictures of {folder.name}")


def neutral(preprocessing: Preprocessing) -> Background:
    """One picture of the preprocessing's mean colour: all but zero to the network."""
    colour = np.round(np.array(preprocessing.mean) * 255).astype(np.uint8)
    side = preprocessing.crop
    return Background(np.broadcast_to(colour, (1, side, side, 3)).copy(), NEUTRAL)


def of_test_pictures(
    new: Newcomer,
    base: Mapping[str, Tensor],
    head: FittedHead,
    count: int,
    device: torch.device,
    decoders: DecoderPool,
    reporter: Reporter,
) -> list[Explained]:
    """At most `count` test pictures of a version just fitted, before and after, against pictures it was fitted on."""
    draft, features, outcomes = new.draft, new.features, new.outcomes
    chosen = to_explain(outcomes.probabilities, outcomes.labels, draft.ban_threshold, count)
    pictures = [features.test.pictures[i] for i in chosen]
    by_digest = sorted(features.fitted_on.pictures, key=lambda picture: picture.sha256)
    background = _middles(by_digest[:REPORT_BACKGROUND], decoders)
    shown = []
    for at, (picture, decoded) in zip(chosen, decode_all(pictures, decoders), strict=True):
        if isinstance(decoded, Unreadable):
            continue
        label, called = outcomes.labels[at], outcomes.made[at].called
        said = f"{LABELS[label]}, called {LABELS[called]}"
        blurred = label != called or RISKED in (label, called)
        shown.append(Shown(picture.content_id, decoded.frames, said, blurred))
    if not shown or not background:
        return []  # files that were read before are gone now: the figures stand, there is only nothing to draw
    reporter.say(f"Computing Shapley maps of {len(shown)} test pictures.")
    started_s = time.monotonic()
    preprocessing = Preprocessing.from_json(draft.preprocessing)
    cut = Cut(networks.get(draft.network), base, preprocessing, device, cells=REPORT_CELLS)
    against = Background(np.concatenate(background), f"{len(background)} pictures that the version was fitted on")
    heads = untrained(head.weight.shape[1]), Head(f"{AFTER} {new.id}", head, draft.temperature)
    made = explain(cut, heads, shown, against, REPORT_SAMPLES)
    reporter.say(f"Shapley maps of {len(made)} test pictures: done in {time.monotonic() - started_s:.1f} s.")
    return made


def _middles(pictures: Sequence[Picture], decoders: DecoderPool) -> list[Frames]:
    return [middle(made.frames) for _, made in decode_all(pictures, decoders) if not isinstance(made, Unreadable)]
