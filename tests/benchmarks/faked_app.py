"""The real worker around a faked decoder and a faked network: what is left is the path of a content ID.

The network is the tiny one on frames of 8 x 8 pixels (the version's preprocessing says so), without its body: of that
only the features' shape is left. The decoder answers at once. Intake, fetch, batcher, last layer, rules, publish,
metrics and Celery are real.
"""

from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.tiny_network import TINY
from worker import classifier, service
from worker.app import app
from worker.model import network
from worker.model.engine import EagerEngine, Frames
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded, DecodeLimits

network.register(TINY)


class InstantDecoders:
    """Has the interface of `DecoderPool`; every picture is one green frame."""

    def __init__(self, parameters: Preprocessing, limits: DecodeLimits, **_: Any) -> None:
        frames = np.zeros((1, parameters.crop, parameters.crop, 3), np.uint8)
        frames[..., 1] = 200
        self._decoded = Decoded(frames, "JPEG", parameters.crop, parameters.crop)

    def submit(self, data: bytes) -> "Future[Decoded]":
        future: Future[Decoded] = Future()
        future.set_result(self._decoded)
        return future

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def close(self) -> None:
        """Holds nothing."""


class InstantBody(EagerEngine):
    """Features without a forward pass."""

    def features(self, frames: Frames) -> Tensor:
        return torch.ones(len(frames), WIDTH, device=self._device)


WIDTH = TINY.shapes()[f"{TINY.head}.weight"][1]
service.DecoderPool = InstantDecoders  # with the body, all that is faked
classifier.EagerEngine = InstantBody

__all__ = ["app"]
