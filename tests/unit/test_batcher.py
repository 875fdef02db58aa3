"""The batcher on a device made of numpy: who is scored together, whose fault a failure is, and the way out."""

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.waiting import wait_until
from worker.batcher import Batcher
from worker.classifier import Frames, Scores
from worker.errors import ContentError, UnavailableError
from worker.model.devices import OutOfDeviceMemoryError
from worker.scorer import GROW_AFTER

SIDE = 4
BAD = 255  # a frame of this value makes the network fail
PATIENCE_S = 30


class Activations:
    """What a forward pass holds on a device for as long as something refers to it."""

    def __init__(self, images: int) -> None:
        self.images = images


class Device:
    """Scores a frame of value v as (v / 255, 0, 1 - v / 255); may be slow, small, or broken."""

    def __init__(self) -> None:
        self.version: Any = object()
        self.capacity = 10**9
        self.broken = False
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.batches: list[int] = []
        self.steps: list[str] = []
        self.held: weakref.WeakSet[Activations] = weakref.WeakSet()

    def begin(self, frames: Frames) -> Callable[[], Scores]:
        """Takes frames, and scores them when it is waited for."""
        self.steps.append(f"begin {frames[0, 0, 0, 0]}")
        return partial(self.score, frames)

    def score(self, frames: Frames) -> Scores:
        """Notes the batch's size, waits for the gate, fails or scores."""
        self.batches.append(len(frames))
        self.steps.append(f"wait for {frames[0, 0, 0, 0]}")
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        activations = Activations(len(frames))
        self.held.add(activations)
        if sum(one.images for one in self.held) > self.capacity:
            raise OutOfDeviceMemoryError(f"{len(frames)} do not fit")
        values = frames[:, 0, 0, 0]
        if self.broken or BAD in values:
            raise FloatingPointError("probabilities that are no numbers")
        share = (values / 255).astype(np.float32)
        return Scores(np.stack([share, np.zeros_like(share), 1 - share], axis=1), self.version)


def picture(value: int, frames: int = 1) -> Frames:
    """A picture whose frames have the values `value`, `value` + 1, …"""
    values = np.arange(value, value + frames, dtype=np.uint8)
    return np.broadcast_to(values[:, None, None, None], (frames, SIDE, SIDE, 3)).copy()


def values(future: "Future[Scores]") -> list[int]:
    """The frames' values as the scores tell them."""
    return [round(float(p) * 255) for p in future.result(PATIENCE_S).probabilities[:, 0]]


def failure(future: "Future[Scores]") -> BaseException | None:
    """What a future raises."""
    return future.exception(PATIENCE_S)


@pytest.fixture
def device() -> Device:
    """A whole, fast, large one."""
    return Device()


@pytest.fixture
def broken_with() -> list[BaseException]:
    """What `on_broken` was told."""
    return []


@pytest.fixture(params=[1, 2], ids=["one in flight", "two in flight"])
def batcher(request: pytest.FixtureRequest, device: Device, broken_with: list[BaseException]) -> Iterator[Batcher]:
    """At most 64 images a batch."""
    made = Batcher(
        device.score, begin=device.begin, in_flight=request.param, max_images=64, on_broken=broken_with.append
    )
    yield made
    device.open.set()
    made.close()


def hold(device: Device, batcher: Batcher) -> "Future[Scores]":
    """Submits a picture and returns once the device is busy with it, and stays so until `device.open.set()`."""
    device.open.clear()
    device.entered.clear()
    held = batcher.submit(picture(1))
    assert device.entered.wait(PATIENCE_S)
    return held


def test_what_waits_while_the_device_is_busy_is_scored_together(device: Device, batcher: Batcher) -> None:
    """No timer: a lone picture goes at once, and the next batch takes all that came meanwhile."""
    held = hold(device, batcher)
    waiting = [batcher.submit(picture(value)) for value in range(10, 30)]
    device.open.set()
    assert values(held) == [1]
    assert [values(future) for future in waiting] == [[value] for value in range(10, 30)]
    assert device.batches == [1, 20]


def test_with_two_in_flight_a_batch_is_begun_before_the_one_before_is_waited_for(device: Device) -> None:
    """So the device has the next one's frames while it computes; and each still gets its own scores."""
    batcher = Batcher(device.score, begin=device.begin, in_flight=2, max_images=1)
    held = hold(device, batcher)
    waiting = [batcher.submit(picture(value)) for value in (2, 3, 4)]
    device.open.set()
    assert [values(future) for future in (held, *waiting)] == [[1], [2], [3], [4]]
    batcher.close()
    assert device.steps == ["begin 1", "wait for 1", "begin 2", "begin 3", "wait for 2", "begin 4", "wait for 3",
                            "wait for 4"]  # fmt: skip


def test_no_batch_is_larger_than_the_maximum(device: Device, batcher: Batcher) -> None:
    """What does not fit any more goes first into the next batch."""
    hold(device, batcher)
    waiting = [batcher.submit(picture(value % 250, frames=3)) for value in range(50)]
    device.open.set()
    assert [values(future)[0] for future in waiting] == list(range(50))
    assert max(device.batches) <= 64
    assert device.batches == [1, 63, 63, 24]


def test_a_picture_of_more_frames_than_fit_is_scored_in_several_passes(device: Device) -> None:
    """All of its frames, in order, and its neighbours' too."""
    batcher = Batcher(device.score, max_images=4)
    hold(device, batcher)
    waiting = [batcher.submit(picture(20)), batcher.submit(picture(100, frames=11)), batcher.submit(picture(30))]
    device.open.set()
    assert [values(future) for future in waiting] == [[20], list(range(100, 111)), [30]]
    assert max(device.batches) <= 4
    batcher.close()


def test_one_picture_is_judged_by_one_version(device: Device) -> None:
    """A champion that changes between two passes over the same picture has it scored again from the start."""
    versions = iter([object(), *[object()] * 10])

    def score(frames: Frames) -> Scores:
        return Scores(device.score(frames).probabilities, next(versions))

    batcher = Batcher(score, max_images=4)
    scores = batcher.submit(picture(100, frames=8)).result(PATIENCE_S)
    assert len(scores.probabilities) == 8
    assert device.batches == [4, 4, 4, 4]
    batcher.close()


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 240), st.integers(1, 14), st.booleans()), max_size=30),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 3),
)
def test_every_picture_gets_its_own_scores(
    wanted: list[tuple[int, int, bool]], max_images: int, capacity: int, in_flight: int
) -> None:
    """Whatever the sizes, the device's memory and the bad ones among them: nobody gets another's scores or fault."""
    device = Device()
    device.capacity = capacity
    batcher = Batcher(device.score, begin=device.begin, in_flight=in_flight, max_images=max_images)
    pictures = [
        np.full_like(picture(value, frames), BAD) if bad else picture(value, frames) for value, frames, bad in wanted
    ]
    held = hold(device, batcher)
    futures = [batcher.submit(frames) for frames in pictures]
    device.open.set()
    for (value, frames, bad), future in zip(wanted, futures, strict=True):
        if bad:
            assert isinstance(failure(future), ContentError)
        else:
            assert values(future) == list(range(value, value + frames))
    assert values(held) == [1]
    batcher.close()


def test_a_bad_picture_fails_alone(device: Device, batcher: Batcher, broken_with: list[BaseException]) -> None:
    """`model_failed` for it, scores for all its neighbours, and the device is not given up."""
    hold(device, batcher)
    before = [batcher.submit(picture(value)) for value in range(10, 20)]
    bad = batcher.submit(picture(BAD))
    after = [batcher.submit(picture(value)) for value in range(20, 30)]
    device.open.set()
    error = failure(bad)
    assert isinstance(error, ContentError)
    assert error.reason == "model_failed"
    assert [values(future) for future in before + after] == [[value] for value in range(10, 30)]
    assert broken_with == []


def test_a_frame_of_another_shape_fails_nobody_else(batcher: Batcher, device: Device) -> None:
    """Pictures that cannot even be put into one batch are scored apart."""
    hold(device, batcher)
    odd = batcher.submit(np.full((1, SIDE + 1, SIDE, 3), 7, np.uint8))
    even = batcher.submit(picture(9))
    device.open.set()
    assert values(odd) == [7]
    assert values(even) == [9]


def test_out_of_memory_halves_the_batch_and_it_grows_back(device: Device, batcher: Batcher) -> None:
    """Nobody fails for want of memory; after many good batches the maximum is tried again."""
    device.capacity = 20
    hold(device, batcher)
    waiting = [batcher.submit(picture(value)) for value in range(60)]
    device.open.set()
    assert [values(future) for future in waiting] == [[value] for value in range(60)]
    device.batches.clear()
    hold(device, batcher)
    waiting = [batcher.submit(picture(value)) for value in range(60)]
    device.open.set()
    assert [values(future) for future in waiting] == [[value] for value in range(60)]
    assert max(device.batches) <= 20  # learned: nothing larger was tried

    device.capacity = 10**9
    for _ in range(4 * GROW_AFTER):
        values(batcher.submit(picture(1)))
    device.batches.clear()
    hold(device, batcher)
    waiting = [batcher.submit(picture(value)) for value in range(100)]
    device.open.set()
    assert [values(future) for future in waiting] == [[value] for value in range(100)]
    assert device.batches == [1, 64, 36]


def test_a_device_too_small_for_one_image_is_broken(
    device: Device, batcher: Batcher, broken_with: list[BaseException]
) -> None:
    """No picture is to blame: they are left to other processes."""
    device.capacity = 0
    assert isinstance(failure(batcher.submit(picture(1))), UnavailableError)
    wait_until(lambda: broken_with, "on_broken was told")
    assert isinstance(broken_with[0], OutOfDeviceMemoryError)


def test_a_device_that_cannot_score_a_blank_image_is_broken(
    device: Device, batcher: Batcher, broken_with: list[BaseException]
) -> None:
    """`on_broken` is told once, every picture is left to others, and nothing is scored any more."""
    hold(device, batcher)
    device.broken = True
    waiting = [batcher.submit(picture(value)) for value in range(10)]
    device.open.set()
    assert all(isinstance(failure(future), UnavailableError) for future in waiting)
    assert isinstance(failure(batcher.submit(picture(1))), UnavailableError)
    assert [type(error) for error in broken_with] == [FloatingPointError]
    assert len(device.batches) < 12  # it gave up instead of trying one after the other


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_call_between_batches_has_the_device_for_itself(device: Device, in_flight: int) -> None:
    """It waits for what was begun, what comes after waits for it, and it counts as work."""
    batcher = Batcher(device.score, begin=device.begin, in_flight=in_flight, max_images=1)
    before = [hold(device, batcher), batcher.submit(picture(2))]
    after: list[Future[Scores]] = []

    def call() -> tuple[list[bool], bool, list[int]]:
        after.append(batcher.submit(picture(3)))
        return [future.done() for future in before], batcher.busy_since is not None, list(device.batches)

    with ThreadPoolExecutor(1) as elsewhere:
        said = elsewhere.submit(batcher.between, call)
        wait_until(lambda: batcher._queue.qsize() == 2, "the call waits behind the second picture")
        device.open.set()
        assert said.result(PATIENCE_S) == ([True, True], True, [1, 1])
    assert values(after[0]) == [3]
    batcher.close()


def test_a_call_that_fails_concerns_its_caller_alone(batcher: Batcher) -> None:
    def call() -> None:
        raise FloatingPointError("measured nothing")

    with pytest.raises(FloatingPointError, match="measured nothing"):
        batcher.between(call)
    assert values(batcher.submit(picture(4))) == [4]


def test_an_idle_batcher_keeps_nothing_alive(device: Device, batcher: Batcher) -> None:
    """Neither of its last batch nor of its last call: an engine that was replaced is 500 MB."""

    class Version:
        """Stands for one with its engine."""

    def use() -> list[weakref.ref[Version]]:
        scored, called = Version(), Version()
        device.version = scored
        assert values(batcher.submit(picture(1))) == [1]
        device.version = Version()
        assert batcher.between(partial(isinstance, called, Version))
        return [weakref.ref(scored), weakref.ref(called)]

    used = use()
    wait_until(lambda: [version() for version in used] == [None, None], "the versions are gone")


def test_a_call_that_failed_keeps_nothing_alive(batcher: Batcher) -> None:
    """Nor a garbage collection to wait for: a candidate that failed is a gigabyte on the device."""

    class Engine:
        """Stands for one that is timed."""

        def fail(self) -> None:
            """As where the device has no room."""
            raise FloatingPointError("measured nothing")

    def use() -> weakref.ref[Engine]:
        engine = Engine()
        with contextlib.suppress(FloatingPointError):
            batcher.between(partial(Engine.fail, engine))
        return weakref.ref(engine)

    gc.disable()
    try:
        used = use()
        wait_until(lambda: used() is None, "the engine is gone")
    finally:
        gc.enable()


def test_close_finishes_the_batch_in_work_and_refuses_what_waits(device: Device) -> None:
    """The forward pass in flight is not thrown away; the others are left to other processes."""
    batcher = Batcher(device.score, max_images=4)
    held = hold(device, batcher)
    waiting = [batcher.submit(picture(value)) for value in range(20)]
    elsewhere = ThreadPoolExecutor(1)
    called = elsewhere.submit(batcher.between, lambda: "too late")
    closing = threading.Thread(target=batcher.close)
    closing.start()
    wait_until(lambda: isinstance(failure_now(batcher.submit(picture(1))), UnavailableError), "close has begun")
    device.open.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert values(held) == [1]
    assert all(isinstance(failure(future), UnavailableError) for future in waiting)
    assert isinstance(failure(batcher.submit(picture(1))), UnavailableError)
    assert isinstance(called.exception(PATIENCE_S), UnavailableError)
    elsewhere.shutdown()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_close_ends_though_the_last_that_waits_is_no_full_batch(device: Device, in_flight: int) -> None:
    """And says of no device that it is broken, nor leaves anybody waiting for scores."""
    told: list[BaseException] = []
    batcher = Batcher(
        device.score, begin=device.begin, in_flight=in_flight, max_images=4, closing_s=5.0, on_broken=told.append
    )
    held = hold(device, batcher)
    waiting = batcher.submit(picture(2))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    wait_until(lambda: isinstance(failure_now(batcher.submit(picture(1))), UnavailableError), "close has begun")
    device.open.set()
    closing.join(PATIENCE_S)
    assert told == []
    assert values(held) == [1]
    assert isinstance(failure(waiting), UnavailableError)


def failure_now(future: "Future[Scores]") -> BaseException | None:
    """What it raises where it is done, without waiting."""
    return future.exception() if future.done() else None


def test_a_cancelled_picture_disturbs_nobody(device: Device, batcher: Batcher) -> None:
    """Whoever loses interest may cancel; the others in the batch get their scores."""
    hold(device, batcher)
    first, second, third = (batcher.submit(picture(value)) for value in (5, 6, 7))
    assert second.cancel()
    device.open.set()
    assert (values(first), values(third)) == ([5], [7])
    assert device.batches == [1, 2]


def test_batches_are_reported(device: Device) -> None:
    """Images, each picture's wait and the forward pass in seconds, once a batch."""
    reports: list[tuple[int, list[float], float]] = []
    batcher = Batcher(
        device.score,
        max_images=64,
        on_batch=lambda images, waits, seconds: reports.append((images, list(waits), seconds)),
    )
    hold(device, batcher)
    waiting = [batcher.submit(picture(value, frames=2)) for value in (10, 20)]
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 0.05, "the first to have waited")
    device.open.set()
    for future in waiting:
        future.result(PATIENCE_S)
    batcher.close()
    took = time.monotonic() - began
    assert [(images, len(waits)) for images, waits, _ in reports] == [(1, 1), (4, 2)]
    (_, _, first_s), (_, waits_s, second_s) = reports
    assert first_s > 0.05 and all(0.05 < wait_s <= took + 1 for wait_s in waits_s)
    assert 0 <= second_s < took
