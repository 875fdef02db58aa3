"""Gathers the frames of many pictures into one forward pass: all that waits, up to a maximum, no timer.

Frames go in, each picture's own probabilities come out. Knows no IDs, Redis, torch or verdicts. One bad picture
never takes its batch along: a batch that fails is split until the bad one is alone.
"""

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from worker.classifier import Frames, OutOfDeviceMemoryError, Scores
from worker.errors import ContentError, UnavailableError

logger = logging.getLogger(__name__)

# Good batches in a row after which a maximum that was halved for want of memory may grow by half again.
GROW_AFTER = 200

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Waiting:
    frames: Frames
    future: "Future[Scores]"
    since: float


@dataclass(frozen=True, slots=True)
class _Call:
    """Something else than a batch that wants the device for itself."""

    call: Callable[[], Any]
    future: "Future[Any]"


Wanted = TypeVar("Wanted", _Waiting, _Call)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A batch since `started`; `scores` waits for the device, or is None where nothing was handed to it yet."""

    batch: list[_Waiting]
    started: float
    scores: Callable[[], Scores] | None


class Batcher:
    """One thread that owns the device.

    Args:
        score: uint8 frames [n, crop, crop, 3] to `Scores`, such as `Classifier.score`.
        begin: the same in two steps: hands the frames on, and returns what waits for their scores.
        in_flight: batches that are begun before the first is waited for; with 1 `begin` is not used.
        max_images: images in one forward pass. A picture with more frames is scored in several.
        closing_s: how long a stop waits for the batch in work, whose pictures were given back by then.
        on_batch: told (images, seconds of each picture's wait, seconds of the forward pass).
        on_broken: called once when even a blank image cannot be scored: the device is broken, not the pictures.
    """

    def __init__(
        self,
        score: Callable[[Frames], Scores],
        *,
        begin: Callable[[Frames], Callable[[], Scores]] | None = None,
        in_flight: int = 1,
        max_images: int,
        closing_s: float = 30.0,
        on_batch: Callable[[int, Sequence[float], float], None] = lambda images, waits, forward: None,
        on_broken: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._score = score
        self._begin_score = begin if in_flight > 1 else None
        self._in_flight = in_flight
        self._closing_s = closing_s
        self._most = max_images
        self._max_images = max_images
        self._good = 0
        self._on_batch = on_batch
        self._on_broken = on_broken
        self._busy_since: float | None = None
        self._broken = False
        self._closed = False
        self._queue: queue.SimpleQueue[_Waiting | _Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # so that nothing is queued behind the end
        self._held: _Waiting | _Call | None = None
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, frames: Frames) -> "Future[Scores]":
        """Queues one picture's frames [n, crop, crop, 3].

        The future gives its `Scores`, or raises ContentError (`model_failed`) or, closed or broken, UnavailableError.
        """
        return self._enqueue(_Waiting(frames, Future(), time.monotonic())).future

    def between(self, call: Callable[[], Result]) -> Result:
        """Runs a call, no longer than a batch, with the device for itself: between two batches, on the same thread.

        Returns or raises what it does; closed or broken, UnavailableError.
        """
        result: Result = self._enqueue(_Call(call, Future())).future.result()
        return result

    def close(self) -> None:
        """Ends the thread after the batch in work; what still waits is refused with UnavailableError.

        A batch that does not end is reported to `on_broken`: no thread can be ended from outside.
        """
        with self._lock:
            self._closed = True
            self._queue.put(None)
        self._thread.join(self._closing_s)
        if self._thread.is_alive():
            self._on_broken(UnavailableError(f"the batch in work has not ended {self._closing_s:g} s after the stop"))

    def busy_s(self) -> float:
        """Seconds that the batch in work has taken so far; 0 where there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _enqueue(self, wanted: Wanted) -> Wanted:
        with self._lock:
            closed = self._closed
            if not closed:
                self._queue.put(wanted)
        if closed:
            wanted.future.set_exception(_refusal())
        return wanted

    def _run(self) -> None:
        begun: deque[_Begun] = deque()
        while (batch := self._gather(wait=not begun)) is not None:
            if batch:
                started = time.monotonic()
                self._busy_since = self._busy_since or started
                begun.append(self._begin(batch, started))
            if len(begun) >= self._in_flight or not batch:
                self._finish(begun.popleft())
                self._busy_since = begun[0].started if begun else None
        for last in begun:
            self._finish(last)
        self._busy_since = None

    def _begin(self, batch: list[_Waiting], started: float) -> _Begun:
        """Hands a batch to the device where that needs no care; what fails here is tried again, with care."""
        batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
        scores = None
        images = sum(len(waiting.frames) for waiting in batch)
        if self._begin_score and 0 < images <= self._max_images and not (self._broken or self._closed):
            with contextlib.suppress(Exception):
                scores = self._begin_score(np.concatenate([waiting.frames for waiting in batch]))
        return _Begun(batch, started, scores)

    def _finish(self, begun: _Begun) -> None:
        batch, scores = begun.batch, None
        if begun.scores is not None:
            with contextlib.suppress(Exception):
                scores = begun.scores()
        if scores is not None:
            self._grow()
            _deal_out(batch, scores)
        else:
            self._score_all(batch)
        seconds = time.monotonic() - begun.started
        images = sum(len(waiting.frames) for waiting in batch)
        self._on_batch(images, [begun.started - waiting.since for waiting in batch], seconds)

    def _gather(self, *, wait: bool) -> list[_Waiting] | None:
        """Everything that waits, up to the maximum; blocks for the first, or is empty. None when closed and empty."""
        while True:
            try:
                first = self._held or self._queue.get(block=wait)
            except queue.Empty:
                return []
            self._held = None
            if not isinstance(first, _Call):
                break
            if not wait:  # what is begun comes first
                self._held = first
                return []
            self._run_between(first)
        if first is None:
            return None
        batch, images = [first], len(first.frames)
        while images < self._max_images:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                self._queue.put(None)
                break
            if isinstance(waiting, _Call) or images + len(waiting.frames) > self._max_images:
                self._held = waiting
                break
            batch.append(waiting)
            images += len(waiting.frames)
        return batch

    def _run_between(self, wanted: _Call) -> None:
        if self._broken or self._closed:
            wanted.future.set_exception(_refusal())
            return
        self._busy_since = time.monotonic()
        try:
            wanted.future.set_result(wanted.call())
        except BaseException as error:
            wanted.future.set_exception(error)
        self._busy_since = None

    def _score_all(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        if self._broken or self._closed:
            self._refuse(batch)
            return
        try:
            scores = self._in_chunks(np.concatenate([waiting.frames for waiting in batch]))
        except OutOfDeviceMemoryError:
            self._score_all_smaller(batch)
        except Exception as error:
            self._split(batch, error)
        else:
            self._grow()
            _deal_out(batch, scores)

    def _in_chunks(self, frames: Frames) -> Scores:
        if len(frames) <= self._max_images:
            return self._score(frames)
        parts = [self._score(frames[at : at + self._max_images]) for at in range(0, len(frames), self._max_images)]
        if any(part.version is not parts[0].version for part in parts):
            return self._in_chunks(frames)  # a new champion came between: one picture is judged by one version
        return Scores(np.concatenate([part.probabilities for part in parts]), parts[0].version)

    def _score_all_smaller(self, batch: list[_Waiting]) -> None:
        if self._max_images == 1:
            self._declare_broken(batch, OutOfDeviceMemoryError("Not even one image fits on the device."))
            return
        self._max_images = max(1, self._max_images // 2)
        self._good = 0
        logger.warning("out of memory on the device: at most %d images a batch from now on", self._max_images)
        middle = max(1, len(batch) // 2)
        for part in (batch[:middle], batch[middle:]):
            self._score_all(part)

    def _grow(self) -> None:
        self._good += 1
        if self._max_images < self._most and self._good >= GROW_AFTER:
            self._max_images = min(self._most, self._max_images + max(1, self._max_images // 2))
            self._good = 0

    def _split(self, batch: list[_Waiting], error: Exception) -> None:
        if len(batch) > 1:
            middle = len(batch) // 2
            self._score_all(batch[:middle])
            self._score_all(batch[middle:])
            return
        logger.warning("a picture cannot be scored: %s: %s", type(error).__name__, error)
        try:
            self._score(np.zeros_like(batch[0].frames[:1]))
        except Exception as blank_error:
            self._declare_broken(batch, blank_error)
            return
        batch[0].future.set_exception(ContentError("model_failed", f"The network failed: {type(error).__name__}."))

    def _declare_broken(self, batch: list[_Waiting], error: BaseException) -> None:
        logger.critical("the device cannot even score a blank image (%s): this process gives up", error)
        self._broken = True
        self._on_broken(error)  # first: who waits for these would go on to others
        self._refuse(batch)

    def _refuse(self, batch: list[_Waiting]) -> None:
        for waiting in batch:
            waiting.future.set_exception(_refusal())


def _deal_out(batch: Sequence[_Waiting], scores: Scores) -> None:
    start = 0
    for waiting in batch:
        end = start + len(waiting.frames)
        waiting.future.set_result(Scores(scores.probabilities[start:end], scores.version))
        start = end


def _refusal() -> UnavailableError:
    return UnavailableError("This process scores nothing any more; others will.")
