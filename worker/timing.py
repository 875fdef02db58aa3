"""Which of two engines is faster, here and now: both in, a yes or a no out.

Nothing runs beside a timed pass: two on the same cores slow each other down at every layer, and int8 most, for it has
more of them. Knows no versions, stores or queues; whoever owns the device lends it, pass by pass.
"""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from worker.model.engine import EagerEngine, Engine, Frames
from worker.model.graphed import GraphedEngine

logger = logging.getLogger(__name__)

TIMED_FRAMES: Final = 16
TIMED_ROUNDS: Final = 3
FASTER: Final = 0.95
"""A candidate must take at most this share of the time: a smaller gain is not worth its memory."""
AS_FAST: Final = 1.02
"""The same for graphs of what serves already: their gain, copies beside the work and a thread that does no more than
launch them, does not show in a pass that is timed alone."""


def is_faster(
    engine: Engine,
    serving: Engine,
    *,
    crop: int,
    max_images: int,
    between: Callable[[Callable[[], Any]], Any],
    check: Callable[[], None],
) -> bool:
    """Whether `engine` is so much faster than `serving` that it is worth its memory.

    Args:
        crop: side of a frame.
        max_images: images of a batch; no more are timed, for the work in service waits meanwhile.
        between: runs a call with the device for itself, as `Batcher.between`, and raises what that raises.
        check: raises where nobody wants to know any more.
    """
    count = min(TIMED_FRAMES, max_images)
    frames = np.random.default_rng(0).integers(0, 256, (count, crop, crop, 3), np.uint8)
    best = {engine: math.inf, serving: math.inf}
    for timed in best:
        _seconds(timed, frames)  # sets up kernels, and may take longer than a batch
        check()
    for _ in range(TIMED_ROUNDS):  # in turn, so that load hits both
        for timed in best:
            best[timed] = min(best[timed], between(partial(_seconds, timed, frames)))
            check()
    logger.info(
        "%s: %.1f images/s beside %s: %.1f", engine.name, count / best[engine], serving.name, count / best[serving]
    )
    same = isinstance(engine, GraphedEngine) and isinstance(serving, EagerEngine) and engine.name == serving.name
    return best[engine] <= (AS_FAST if same else FASTER) * best[serving]


def _seconds(engine: Engine, frames: Frames) -> float:
    with torch.inference_mode():
        started = time.perf_counter()
        engine.features(frames).cpu()
        return time.perf_counter() - started
