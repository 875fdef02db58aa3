"""Faster engines beside the work: none that lies, fails or is slow gets in."""

import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.store import publish_colours
from tests.support.tuning import Bench, Fake, colours, fake_time, quick
from tests.support.waiting import wait_until
from worker.batcher import Batcher
from worker.classifier import Version
from worker.model import devices
from worker.model.compiled import EngineError
from worker.model.engine import EagerEngine, Engine, Frames
from worker.model.graphed import GraphedEngine
from worker.timing import TIMED_ROUNDS
from worker.tuner import Tuner


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def test_an_engine_that_agrees_on_the_pictures_kept_with_the_version_serves(tmp_path: Path) -> None:
    """Its name is in the scores; bf16, which this processor lacks, is counted and not tried."""
    bench = Bench(tmp_path, check=60)
    bench.tuner.tune(bench.classifier.version)
    assert bench.serving == "cpu-int8"
    assert bench.engines == ["cpu-int8"]
    assert bench.classifier.score(colours(3)[0]).version.engine == "cpu-int8"
    assert ("cpu-bf16", "not_native") in bench.fallbacks


def test_where_the_processor_has_bf16_that_serves_until_int8_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, each on its own comparison; an int8 that lies leaves bf16 in service."""
    monkeypatch.setattr(devices, "native_bf16", lambda device: True)
    bench = Bench(tmp_path / "both", check=60)
    bench.tuner.tune(bench.classifier.version)
    assert (bench.engines, bench.fallbacks) == (["cpu-bf16", "cpu-int8"], [])
    bench = Bench(tmp_path / "one", check=60)

    def build(version: Version, precision: str) -> Engine:
        bench.lie = lambda features: features.roll(1, dims=1) if precision == "int8" else features
        return bench.build(version, precision)

    bench.tuner._build = build
    bench.tuner.tune(bench.classifier.version)
    assert (bench.serving, bench.fallbacks) == ("cpu-bf16", [("cpu-int8", "flips")])


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda features: features.roll(1, dims=1), "flips"),
        (lambda features: features * torch.nan, "flips"),
        (lambda features: features[:, :3], "build_failed"),
    ],
    ids=["lies", "no_numbers", "wrong_shape"],
)
def test_an_engine_that_lies_does_not_serve(tmp_path: Path, lie: Callable[[Tensor], Tensor], reason: str) -> None:
    bench = Bench(tmp_path, check=60)
    bench.lie = lie
    bench.tuner.tune(bench.classifier.version)
    assert bench.serving == "cpu-fp32"
    assert ("cpu-int8", reason) in bench.fallbacks


class Graphs(Fake, GraphedEngine):
    """The same as graphs for those numbers of images."""

    captured: ClassVar = [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("wrong", Graphs.captured)
def test_one_graph_that_lies_is_enough(tmp_path: Path, wrong: int) -> None:
    """Each of them judges a part of the pictures kept with the version."""
    bench = Bench(tmp_path, check=sum(Graphs.captured))
    bench.lie = lambda features: features.roll(1, dims=1) if len(features) == wrong else features

    def build(version: Version, precision: str) -> Engine:
        fake = bench.build(version, precision)
        return Graphs(replace(version, runner=fake._real), fake.name, bench.lie, 0.0)

    bench.tuner._build = build
    bench.tuner.tune(bench.classifier.version)
    assert (bench.serving, bench.fallbacks[-1]) == ("cpu-fp32", ("cpu-int8", "flips"))


def test_an_engine_that_is_no_faster_here_does_not_serve(tmp_path: Path) -> None:
    bench = Bench(tmp_path, check=60)
    bench.slow_s = 0.2
    bench.tuner.tune(bench.classifier.version)
    assert bench.serving == "cpu-fp32"
    assert bench.fallbacks[-1] == ("cpu-int8", "slower")


@pytest.mark.parametrize(("candidate_s", "serves"), [(0.1, "cpu-int8"), (0.2, "cpu-fp32")])
def test_what_is_timed_between_batches_decides_which_is_faster(tmp_path: Path, candidate_s: float, serves: str) -> None:
    """Not what an engine takes beside the work, where the one of more layers waits for the other most."""
    bench = Bench(tmp_path, check=60)
    bench.slow_s = 0.2  # beside the work, in whatever is not timed
    seconds = itertools.cycle((candidate_s, 0.15))

    def between(call: Callable[[], float]) -> float:
        call()
        return next(seconds)

    Tuner(bench.classifier, bench.store, bench.cache, between=between, build=bench.build).tune(bench.classifier.version)
    assert bench.serving == serves


class FakeGraphs(Fake, GraphedEngine):
    """What counts as graphs."""


class FakeEager(Fake, EagerEngine):
    """What counts as the eager engine."""


@pytest.mark.parametrize(
    ("kind", "serving", "takes", "enough"),
    [
        (FakeGraphs, "cuda-bf16", 1.01, True),
        (FakeGraphs, "cuda-bf16", 1.03, False),
        (FakeGraphs, "cuda-fp32", 1.01, False),
        (FakeGraphs, "cuda-fp32", 0.94, True),
        (Fake, "cuda-bf16", 1.01, False),
    ],
)
def test_graphs_of_what_serves_already_need_only_be_as_fast(
    tmp_path: Path, kind: type[Fake], serving: str, takes: float, enough: bool
) -> None:
    """What they gain does not show in a pass alone; another precision, or another engine, must be faster there."""
    bench = Bench(tmp_path)
    version = bench.classifier.version
    seconds = itertools.cycle((takes, 1.0))
    tuner = Tuner(bench.classifier, bench.store, bench.cache, between=lambda call: call() * 0 + next(seconds))
    engine, now = (made(version, name, lambda f: f, 0.0) for made, name in ((kind, "cuda-bf16"), (FakeEager, serving)))
    assert tuner._faster(engine, now, version) is enough


@pytest.mark.parametrize("fails", ["timed", "compared", "slower"])
def test_a_candidate_that_failed_is_let_go_of_at_once(tmp_path: Path, fails: str) -> None:
    """With no garbage collection to wait for: on a GPU it is a gigabyte of graphs and weights."""
    bench, calls, made = Bench(tmp_path, check=60), itertools.count(), []
    batcher = Batcher(bench.classifier.score, max_images=8)

    class Failing(Fake):
        def features(self, frames: Frames) -> Tensor:
            fake_time.passed_s += 1 if fails == "slower" else 0
            if next(calls) == {"timed": 1, "compared": 1 + TIMED_ROUNDS}.get(fails):
                raise RuntimeError("it fails")
            return super().features(frames)

    def build(version: Version, precision: str) -> Engine:
        engine = Failing(
            replace(version, runner=version.runner._real), f"cpu-{precision}", lambda features: features, 0
        )
        made.append(weakref.ref(engine))
        return engine

    tuner = Tuner(
        bench.classifier, bench.store, bench.cache, between=batcher.between, build=build,
        on_fallback=lambda engine, reason: bench.fallbacks.append((engine, reason)),
    )  # fmt: skip
    gc.disable()
    try:
        tuner.tune(bench.classifier.version)
        assert bench.fallbacks[-1] == ("cpu-int8", "slower" if fails == "slower" else "build_failed")
        wait_until(lambda: [engine() for engine in made] == [None], "the candidate is gone")
    finally:
        gc.enable()
        batcher.close()


@pytest.mark.parametrize(("max_images", "timed"), [(4, 4), (64, 16)])
def test_no_more_is_timed_than_one_batch_may_hold(tmp_path: Path, max_images: int, timed: int) -> None:
    """The work in service waits meanwhile, and the watchdog counts it as a batch."""
    bench, counts = Bench(tmp_path, check=60), []

    class Counting(Fake):
        def features(self, frames: Frames) -> Tensor:
            counts.append(len(frames))
            return super().features(frames)

    def build(version: Version, precision: str) -> Engine:
        return Counting(version, f"cpu-{precision}", lambda features: features, 0.0)

    Tuner(bench.classifier, bench.store, bench.cache, max_images=max_images, build=build).tune(bench.classifier.version)
    assert counts[: 1 + TIMED_ROUNDS] == [timed] * (1 + TIMED_ROUNDS)


def test_an_engine_that_cannot_be_built_does_not_serve(tmp_path: Path) -> None:
    """Whatever breaks while it is built, and where the version keeps no ranges."""
    bench = Bench(tmp_path, check=60)

    def broken(version: Version, precision: str) -> Engine:
        raise EngineError("no_compiler", "there is none")

    Tuner(
        bench.classifier, bench.store, bench.cache, build=broken,
        on_fallback=lambda engine, reason: bench.fallbacks.append((engine, reason)),
    ).tune(bench.classifier.version)  # fmt: skip
    assert bench.fallbacks[-1] == ("cpu-int8", "no_compiler")
    bare = Bench(tmp_path / "bare", check=60, ranges=False)
    bare.tuner.tune(bare.classifier.version)
    assert bare.fallbacks[-1] == ("cpu-int8", "no_ranges")
    assert (bare.built, bare.serving) == (0, "cpu-fp32")


def test_a_stop_does_not_wait_for_a_device_that_hangs(tmp_path: Path) -> None:
    """The process ends; no thread can be ended from outside."""
    bench, hangs, open_again = Bench(tmp_path, check=60), threading.Event(), threading.Event()
    broken: list[BaseException] = []

    def build(version: Version, precision: str) -> Engine:
        hangs.set()
        open_again.wait()
        raise EngineError("build_failed", "it is over")

    tuner = Tuner(bench.classifier, bench.store, bench.cache, build=build, closing_s=0.1, on_broken=broken.append)
    tuner.start()
    assert hangs.wait(30)
    stopping = threading.Thread(target=tuner.stop, daemon=True)
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive()
    assert [str(error) for error in broken] == ["the tuner has not ended 0.1 s after the stop"]
    open_again.set()
    tuner.stop()
    wait_until(lambda: not tuner._thread.is_alive(), "it ends once it can")


def test_what_is_asked_for_serves_without_a_comparison(tmp_path: Path) -> None:
    bench = Bench(tmp_path, precision="int8")
    assert bench.serving == "cpu-fp32"
    bench.tuner.tune(bench.classifier.version)
    assert bench.serving == "cpu-int8"


def test_fp32_asked_for_tries_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, check=60, precision="fp32")
    bench.tuner.tune(bench.classifier.version)
    assert (bench.built, bench.serving, bench.fallbacks) == (0, "cpu-fp32", [])


def test_a_new_last_layer_takes_the_engine_over_without_building(tmp_path: Path) -> None:
    """Judged again on the same features; one on which the engine disagrees sends it back to fp32."""
    bench = Bench(tmp_path, check=60)
    bench.lie = lambda features: features + 0.004 * torch.arange(features.shape[1])
    bench.tuner.tune(bench.classifier.version)
    assert (bench.serving, bench.built) == ("cpu-int8", 1)
    built = bench.built
    second = publish_colours(bench.store, sharpness=5.0, ranges=True, check=bench.check)
    started = time.perf_counter()
    assert bench.classifier.load(second).engine == "cpu-int8"
    assert time.perf_counter() - started < 1
    bench.tuner.tune(bench.classifier.version)
    assert (bench.serving, bench.built) == ("cpu-int8", built)
    third = publish_colours(bench.store, sharpness=-5.0, ban_threshold=None, ranges=True, check=bench.check)
    for evidence in bench.tuner._comparison._judged.values():
        evidence._candidate = list(np.roll(np.stack(evidence._candidate), 1, axis=1))
    assert bench.classifier.load(third).engine == "cpu-fp32"


def test_what_is_rolled_back_to_while_the_next_is_tuned_is_tuned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes back with the eager engine, and must not stay with it because it was tuned once."""
    monkeypatch.setattr("worker.tuner.LOOK_EVERY_S", 0.05)
    bench = Bench(tmp_path, check=60)
    second = publish_colours(bench.store, sharpness=5.0, ranges=True, check=bench.check)
    building, go_on = threading.Event(), threading.Event()

    def build(version: Version, precision: str) -> Engine:
        if version.id == second:
            building.set()
            assert go_on.wait(30), "nobody let the second version's engine be built"
        return bench.build(version, precision)

    bench.tuner._build = build
    bench.tuner.start()
    wait_until(lambda: bench.serving == "cpu-int8", "the first version is tuned")
    monkeypatch.setattr(bench.classifier, "accepts", lambda *_: False)  # as for a version on another base
    bench.load(second)
    assert building.wait(30), "the second version is not tuned"
    bench.load(bench.first)
    assert bench.serving == "cpu-fp32"
    go_on.set()
    wait_until(lambda: bench.serving == "cpu-int8", "the first version is tuned again")
    bench.tuner.stop()


@pytest.mark.parametrize("fault", [MemoryError(), torch.OutOfMemoryError("no room")])
def test_where_memory_lacks_the_tuner_goes_on(tmp_path: Path, fault: Exception) -> None:
    """Such a try is not the last one, and the thread does not end of it."""
    bench = Bench(tmp_path, check=60)

    def without_room(version: Version, precision: str) -> Engine:
        raise fault

    bench.tuner._build = without_room
    assert not bench.tuner.tune(bench.classifier.version)
    assert ("cpu-int8", "no_memory") in bench.fallbacks


@pytest.mark.parametrize(("started_with", "left_with"), [(0, 10), (15, 15)])
def test_it_makes_way_for_the_work_and_asks_for_no_higher_priority(
    tmp_path: Path, started_with: int, left_with: int
) -> None:
    """A process started at a low one may not raise it, and would be left without its tuner."""
    found: list[int] = []
    bench = Bench(tmp_path)
    started_with = max(started_with, os.getpriority(os.PRIO_PROCESS, 0))

    def build(version: Version, precision: str) -> Engine:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        raise EngineError("build_failed", "not here")

    def start() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), started_with)
        tuner.start()

    tuner = Tuner(bench.classifier, bench.store, bench.cache, build=build)
    starter = threading.Thread(target=start)
    starter.start()
    starter.join()
    wait_until(lambda: bool(found), "a candidate")
    tuner.stop()
    assert found[0] == max(left_with, started_with)
