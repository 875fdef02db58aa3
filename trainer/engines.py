"""What a version carries so that workers may serve it with something faster than float32.

Frames of test pictures, on which any worker compares its engines; ranges for int8, measured on training pictures; and,
where this machine multiplies bfloat16 natively, what the comparison shows here. What belongs to the frozen layers is
taken over from the version before, so that a version stays as small as what was trained. Knows no recipe.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trainer.arrays import DoubleArray, Frames, IntArray
from trainer.dataset import Picture, Unreadable
from trainer.decoding import decode_all, middle
from trainer.frozen import BATCH_FRAMES
from trainer.progress import Reporter
from worker.decode import DecoderPool
from worker.errors import WeightsError
from worker.model import check_pictures, devices, int8
from worker.model import engine as worker_engines
from worker.model.agreement import RULES, compare
from worker.model.engine import EagerEngine
from worker.model.manifest import BaseRef, EngineCheck, FileRef
from worker.model.network import Network
from worker.model.preprocessing import Preprocessing
from worker.model.weights import WeightsStore

CHECK_PICTURES: Final = 128
"""Pictures a version names at most: enough to see a label flip in one of a hundred, some 2 MB."""

CALIBRATION_PICTURES: Final = 64
"""Pictures that int8's ranges are measured on; a few seconds of work."""


@dataclass(frozen=True)
class ForEngines:
    """Of a manifest `engines`, `activation_ranges` and `check_pictures`."""

    checks: dict[str, EngineCheck]
    ranges: dict[str, tuple[float, float]]
    pictures: FileRef | None


@dataclass(frozen=True)
class Known:
    """What an earlier version has of it already: `ranges`, none if empty; `pictures`, and what is in them."""

    ranges: dict[str, tuple[float, float]]
    pictures: FileRef | None
    frames: Frames
    labels: IntArray


NOTHING: Final = Known({}, None, np.zeros((0, 0, 0, 3), np.uint8), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Whole:
    """A network with its head and ban threshold: all that decides what is published. `state`: its whole state dict."""

    network: Network
    state: Mapping[str, Tensor]
    preprocessing: Preprocessing
    temperature: float
    ban_threshold: float | None


def prepare(
    whole: Whole,
    trained_on: Sequence[Picture],
    tested_on: Sequence[Picture],
    decoders: DecoderPool,
    store: WeightsStore,
    known: Known,
    device: torch.device,
    reporter: Reporter,
) -> ForEngines:
    """All of it for the whole network, compared on the CPU and on `device`.

    `known` is taken over, but for check pictures that are fewer than there could be now. No bf16 is compared where it
    is only emulated: no figure is recorded that no worker could reproduce at that speed.
    """
    ranges = known.ranges
    if not ranges:
        body = worker_engines.body_of(whole.network, whole.state, torch.device("cpu"), torch.float32)
        calibrated_on, _ = sample_frames(trained_on, decoders, CALIBRATION_PICTURES)
        with reporter.track("Ranges for int8", len(calibrated_on)) as advance:
            ranges = int8.calibrate(body, calibrated_on, whole.preprocessing, advance) if len(calibrated_on) else {}
    pictures, frames, labels = known.pictures, known.frames, known.labels
    if pictures is None or len(frames) < min(CHECK_PICTURES, len(tested_on)):
        frames, labels = sample_frames(tested_on, decoders, CHECK_PICTURES)
        if not len(frames):
            return ForEngines({}, ranges, None)
        pictures = store.add_check_pictures(check_pictures.encode(frames, labels))
    compared = {torch.device("cpu"), device}  # no other: a worker may need the memory of a GPU that we were not given
    checks = {}
    for each in sorted(filter(devices.native_bf16, compared), key=str):
        with reporter.track(f"{each.type}-bf16 compared with fp32", 2 * len(frames)) as advance:
            checks[f"{each.type}-bf16"] = check_bf16(whole, frames, labels, each, advance)
    return ForEngines(checks, ranges, pictures)


def known_from(store: WeightsStore, champion: str | None, base: BaseRef, preprocessing: Preprocessing) -> Known:
    """What the champion has, where it stands on the same base and prepares pictures in the same way; else nothing.

    Ranges are properties of the layers before the last, which versions on one base share: measuring them anew would
    cost each retraining more than its fit, and take the compiled engine from a worker whose layers did not change.
    Pictures are compared on, not learned from or reported on: the same ones serve every version.
    """
    if champion is None:
        return NOTHING
    manifest = store.manifest(champion)
    if manifest.base.sha256 != base.sha256 or manifest.preprocessing != preprocessing.to_json():
        return NOTHING
    ranges = dict(manifest.activation_ranges)
    try:
        return Known(ranges, manifest.check_pictures, *check_pictures.read(store, manifest))
    except WeightsError:  # lost or damaged: new ones are stored
        return Known(ranges, None, NOTHING.frames, NOTHING.labels)


def check_bf16(
    whole: Whole,
    frames: Frames,
    labels: IntArray,
    device: torch.device,
    advance: Callable[[int], None] = lambda count: None,
) -> EngineCheck:
    """Compare bfloat16 with float32 on `device` for uint8 frames [N, H, W, 3], one a picture, and their labels [N], as
    the worker runs them and holds them against each other. `advance` hears of each batch, twice `N` in all."""
    head = worker_engines.head_of(whole.network, whole.state, whole.temperature, device)

    @torch.inference_mode()
    def probabilities(precision: str) -> DoubleArray:
        body = worker_engines.body_of(whole.network, whole.state, device, worker_engines.DTYPES[precision])
        engine = EagerEngine(body, device, precision, whole.preprocessing)
        judged = []
        for start in range(0, len(frames), BATCH_FRAMES):
            part = frames[start : start + BATCH_FRAMES]
            judged.append(head.probabilities(engine.features(part)).cpu().double().numpy())
            advance(len(part))
        return np.concatenate(judged)

    by_both = probabilities("fp32"), probabilities("bf16")
    return compare(RULES["bf16"], *by_both, labels=labels, ban_threshold=whole.ban_threshold).check()


def sample_frames(pictures: Sequence[Picture], decoders: DecoderPool, count: int) -> tuple[Frames, IntArray]:
    """The middle frames of up to `count` pictures spread over all, uint8 [N, H, W, 3], and their labels [N]; the
    unreadable are left out, so that N may be 0."""
    places = np.unique(np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int))
    read = [
        (middle(decoded.frames), picture.label)
        for picture, decoded in decode_all([pictures[place] for place in places], decoders)
        if not isinstance(decoded, Unreadable)
    ]
    frames = np.concatenate([frames for frames, _ in read]) if read else np.zeros((0, 0, 0, 3), np.uint8)
    return frames, np.array([label for _, label in read], np.int64)
