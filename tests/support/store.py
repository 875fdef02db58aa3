"""Weights stores for tests: the tiny network, its numbers set by hand so that a picture's mean colour is its label."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.tiny_network import TINY, Tiny
from worker.model import check_pictures, int8, network
from worker.model.agreement import Labels
from worker.model.engine import Frames, body_of
from worker.model.manifest import ManifestDraft
from worker.model.preprocessing import Preprocessing
from worker.model.weights import WeightsStore

CHANNEL_OF_LABEL = (1, 2, 0)  # green approved, blue not suitable, red risked
SHARPNESS = 4.0


def colour_store(
    root: Path, *, ban_threshold: float | None = 0.6, review_threshold: float | None = 0.3
) -> WeightsStore:
    """A store whose champion tells labels by mean colour."""
    store = WeightsStore(root)
    publish_colours(store, ban_threshold=ban_threshold, review_threshold=review_threshold, promote=True)
    return store


def publish_colours(
    store: WeightsStore,
    *,
    ban_threshold: float | None = 0.6,
    review_threshold: float | None = 0.3,
    sharpness: float = SHARPNESS,
    promote: bool = False,
    metrics: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    ranges: bool = False,
    check: tuple[Frames, Labels] | None = None,
    by: str = "tests",
) -> str:
    """Publishes a version of the colour network; another `sharpness` or threshold makes another version.

    With `ranges` it may be served in int8; `check` are frames and labels to compare engines on.
    """
    network.register(TINY)
    state = Tiny().state_dict()
    for tensor in state.values():
        tensor.zero_()
    state["features.0.weight"][range(3), range(3)] = 1.0
    for unit, channel in enumerate((0, 1, 2)):
        # Six non-negative units: a colour's mean above the average brightness, and one below it.
        state["classifier.0.weight"][unit, channel * 16 : (channel + 1) * 16] = 1 / 16
        state["classifier.0.weight"][unit + 3, channel * 16 : (channel + 1) * 16] = -1 / 16
    for label, channel in enumerate(CHANNEL_OF_LABEL):
        state["classifier.3.weight"][label, channel] = sharpness
        state["classifier.3.weight"][label, channel + 3] = -sharpness
    head = TINY.head_names()
    base = store.add_base({name: t for name, t in state.items() if name not in head}, "made by hand")
    pictures = store.add_check_pictures(check_pictures.encode(*check)) if check else None
    body = body_of(TINY, state, torch.device("cpu"), torch.float32)
    seen = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    draft = ManifestDraft(
        activation_ranges=int8.calibrate(body, seen, Preprocessing()) if ranges else {},
        check_pictures=pictures,
        network="tiny",
        preprocessing=(preprocessing or Preprocessing()).to_json(),
        base=base,
        ban_threshold=ban_threshold,
        ban_threshold_proven=False,
        review_threshold=review_threshold,
        metrics={"test": {"accuracy": 1.0}, **(metrics or {})},
        data=data or {},
        provenance={"by": by, "torch": torch.__version__},
    )
    version_id = store.publish(draft, {name: state[name] for name in head}).id
    if promote:
        store.promote(version_id, by="tests", why="the first")
    return version_id
