"""Scores a batch with care: fewer images at once where memory lacks, split until a bad picture is alone.

Pictures that wait go in, and each of them gets its own scores, or what keeps it from them. Knows no queue or thread;
whose thread it is used on, that owns the device.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from worker.classifier import Frames, Scores
from worker.errors import ContentError, UnavailableError
from worker.model.devices import OutOfDeviceMemoryError

logger = logging.getLogger(__name__)

# Good batches in a row after which a maximum that was halved for want of memory may grow by half again.
GROW_AFTER = 200


@dataclass(frozen=True, slots=True)
class Waiting:
    """One picture's frames [n, crop, crop, 3], who waits for their scores, and since when."""

    frames: Frames
    future: "Future[Scores]"
    since: float


class Scorer:
    """One bad picture never takes its batch along.

    Args:
        score: uint8 frames [n, crop, crop, 3] to `Scores`, such as `Classifier.score`.
        max_images: images in one forward pass. A picture with more frames is scored in several.
        on_broken: called once when even a blank image cannot be scored: the device is broken, not the pictures.
    """

    def __init__(
        self, score: Callable[[Frames], Scores], max_images: int, on_broken: Callable[[BaseException], None]
    ) -> None:
        self._score = score
        self._most = max_images
        self.max_images = max_images
        """Images that fit into one forward pass, by what is known."""
        self._good = 0
        self._on_broken = on_broken
        self.refusing = False
        """Whether nothing is scored any more: the device is broken, or somebody said so."""

    def score_all(self, batch: Sequence[Waiting]) -> None:
        """Answers each of the pictures."""
        if not batch:
            return
        if self.refusing:
            _refuse(batch)
            return
        made = self._attempt([waiting.frames for waiting in batch])
        if isinstance(made, Scores):
            self.deal_out(batch, made)
        elif isinstance(made, OutOfDeviceMemoryError):
            self._score_all_smaller(batch)
        else:
            self._split(batch, made)

    def deal_out(self, batch: Sequence[Waiting], scores: Scores) -> None:
        """Gives each of the pictures its part of their scores."""
        self._good += 1
        if self.max_images < self._most and self._good >= GROW_AFTER:
            self.max_images = min(self._most, self.max_images + max(1, self.max_images // 2))
            self._good = 0
        start = 0
        for waiting in batch:
            end = start + len(waiting.frames)
            waiting.future.set_result(Scores(scores.probabilities[start:end], scores.version))
            start = end

    def _attempt(self, pictures: Sequence[Frames]) -> Scores | Exception:
        """Scores of all their frames, or why there are none.

        The error leaves its traceback behind, whose frames keep the failed pass's tensors on the device: the next
        attempt needs that memory.
        """
        try:
            return self._in_chunks(np.concatenate(pictures))
        except Exception as error:
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)

    def _in_chunks(self, frames: Frames) -> Scores:
        if len(frames) <= self.max_images:
            return self._score(frames)
        parts = [self._score(frames[at : at + self.max_images]) for at in range(0, len(frames), self.max_images)]
        if any(part.version is not parts[0].version for part in parts):
            return self._in_chunks(frames)  # a new champion came between: one picture is judged by one version
        return Scores(np.concatenate([part.probabilities for part in parts]), parts[0].version)

    def _score_all_smaller(self, batch: Sequence[Waiting]) -> None:
        if self.max_images == 1:
            self._declare_broken(batch, OutOfDeviceMemoryError("Not even one image fits on the device."))
            return
        self.max_images = max(1, self.max_images // 2)
        self._good = 0
        logger.warning("out of memory on the device: at most %d images a batch from now on", self.max_images)
        middle = max(1, len(batch) // 2)
        for part in (batch[:middle], batch[middle:]):
            self.score_all(part)

    def _split(self, batch: Sequence[Waiting], error: Exception) -> None:
        if len(batch) > 1:
            middle = len(batch) // 2
            self.score_all(batch[:middle])
            self.score_all(batch[middle:])
            return
        logger.warning("a picture cannot be scored: %s: %s", type(error).__name__, error)
        blank = self._attempt([np.zeros_like(batch[0].frames[:1])])
        if isinstance(blank, Exception):
            self._declare_broken(batch, blank)
            return
        batch[0].future.set_exception(ContentError("model_failed", f"The network failed: {type(error).__name__}."))

    def _declare_broken(self, batch: Sequence[Waiting], error: BaseException) -> None:
        logger.critical("the device cannot even score a blank image (%s): this process gives up", error)
        self.refusing = True
        self._on_broken(error)  # first: who waits for these would go on to others
        _refuse(batch)


def refusal() -> UnavailableError:
    """What whoever waits is told once nothing is scored any more."""
    return UnavailableError("This process scores nothing any more; others will.")


def _refuse(batch: Sequence[Waiting]) -> None:
    for waiting in batch:
        waiting.future.set_exception(refusal())
