"""Gathers the frames of many pictures into one forward pass: all that waits, up to a maximum, no timer.

Frames go in, each picture's own probabilities come out; what becomes of a batch that fails is `scorer`'s. Knows no
IDs, Redis, torch or verdicts.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from worker.classifier import Frames, Scores
from worker.errors import UnavailableError
from worker.scorer import Scorer, Waiting, refusal

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Call:
    """Something else than a batch that wants the device for itself."""

    call: Callable[[], Any]
    future: "Future[Any]"


Wanted = TypeVar("Wanted", Waiting, _Call)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A batch since `started`; `scores` waits for the device, or is None where nothing was handed to it yet."""

    batch: list[Waiting]
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
        self._scorer = Scorer(score, max_images, on_broken)
        self._begin_score = begin if in_flight > 1 else None
        self._in_flight = in_flight
        self._closing_s = closing_s
        self._on_batch = on_batch
        self._on_broken = on_broken
        self._busy_since: float | None = None
        self._closed = False
        self._queue: queue.SimpleQueue[Waiting | _Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # so that nothing is queued behind the end
        self._held: Waiting | _Call | None = None
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, frames: Frames) -> "Future[Scores]":
        """Queues one picture's frames [n, crop, crop, 3].

        The future gives its `Scores`, or raises ContentError (`model_failed`) or, closed or broken, UnavailableError.
        """
        return self._enqueue(Waiting(frames, Future(), time.monotonic())).future

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
            self._closed = self._scorer.refusing = True
            self._queue.put(None)
        self._thread.join(self._closing_s)
        if self._thread.is_alive():
            self._on_broken(UnavailableError(f"the batch in work has not ended {self._closing_s:g} s after the stop"))

    @property
    def busy_since(self) -> float | None:
        """When the batch in work was begun, on the monotonic clock; None where there is none."""
        return self._busy_since

    def _enqueue(self, wanted: Wanted) -> Wanted:
        with self._lock:
            closed = self._closed
            if not closed:
                self._queue.put(wanted)
        if closed:
            wanted.future.set_exception(refusal())
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
            del batch  # its scores name the engine, which is to be let go once another serves
        for last in begun:
            self._finish(last)
        self._busy_since = None

    def _begin(self, batch: list[Waiting], started: float) -> _Begun:
        """Hands a batch to the device where that needs no care; what fails here is tried again, with care."""
        batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
        scores = None
        images = sum(len(waiting.frames) for waiting in batch)
        if self._begin_score and 0 < images <= self._scorer.max_images and not self._scorer.refusing:
            with contextlib.suppress(Exception):
                scores = self._begin_score(np.concatenate([waiting.frames for waiting in batch]))
        return _Begun(batch, started, scores)

    def _finish(self, begun: _Begun) -> None:
        batch, scores = begun.batch, None
        if begun.scores is not None:
            with contextlib.suppress(Exception):
                scores = begun.scores()
        if scores is not None:
            self._scorer.deal_out(batch, scores)
        else:
            self._scorer.score_all(batch)
        seconds = time.monotonic() - begun.started
        images = sum(len(waiting.frames) for waiting in batch)
        self._on_batch(images, [begun.started - waiting.since for waiting in batch], seconds)

    def _gather(self, *, wait: bool) -> list[Waiting] | None:
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
            first = None  # as with a batch, see _run
        if first is None:
            return None
        batch, images = [first], len(first.frames)
        while images < self._scorer.max_images:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                self._queue.put(None)
                break
            if isinstance(waiting, _Call) or images + len(waiting.frames) > self._scorer.max_images:
                self._held = waiting
                break
            batch.append(waiting)
            images += len(waiting.frames)
        return batch

    def _run_between(self, wanted: _Call) -> None:
        future, call = wanted.future, wanted.call
        del wanted
        if self._scorer.refusing:
            future.set_exception(refusal())
            return
        self._busy_since = time.monotonic()
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        finally:
            # An error's traceback refers to this frame. Did the frame still refer to the future, which holds the error,
            # the circle would keep the engine that was called alive until the garbage collector comes by.
            del future, call
        self._busy_since = None
