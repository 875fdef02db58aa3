"""Faster engines beside the work: none that lies, fails or is slow gets in, and one that may loses no batch."""

import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.store import publish_colours
from tests.support.waiting import wait_until
from worker.batcher import Batcher
from worker.classifier import Classifier, Scores, Version
from worker.errors import UsageError, WeightsError
from worker.evidence import PICTURES_MAX, Evidence
from worker.metrics import Metrics
from worker.model import check_pictures, compiled, devices
from worker.model import engine as engines
from worker.model import network as networks
from worker.model.agreement import RULES, Labels
from worker.model.compiled import EngineCache, EngineError
from worker.model.engine import EagerEngine, Engine, Frames, body_key
from worker.model.graphed import GraphedEngine
from worker.model.preprocessing import Preprocessing
from worker.model.weights import WeightsStore
from worker.timing import TIMED_ROUNDS
from worker.tuner import Tuner

CPU = torch.device("cpu")
PACE_S = {"cpu-bf16": 0.002, "cpu-int8": 0.001}


def colours(count: int, seed: int = 0) -> tuple[Frames, Labels]:
    """Small pictures blown up, each clearly of one colour, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    small = rng.integers(0, 60, (count, 14, 14, 3), np.uint8)
    for index, label in enumerate(labels):
        small[index, :, :, (1, 2, 0)[label]] += 180
    return small.repeat(16, axis=1).repeat(16, axis=2), labels


class FakeTime(threading.local):
    """What a thread's fake engines have taken, in place of what a busy machine makes of it."""

    passed_s = 0.0


fake_time = FakeTime()


class Fake:
    """An engine around the one in service: `lie` changes its features, `slow_s` its speed, int8 is the fastest."""

    def __init__(self, version: Version, name: str, lie: Callable[[Tensor], Tensor], slow_s: float) -> None:
        self.name = name
        self._real = version.runner
        self._lie = lie
        self._slow_s = slow_s

    def features(self, frames: Frames) -> Tensor:
        """As `Engine.features`."""
        time.sleep(self._slow_s)
        fake_time.passed_s += self._slow_s + PACE_S.get(self.name, 0.0)
        return self._lie(self._real.features(frames))


class SlowReference(Fake):
    """fp32 in service, slow enough that any candidate is faster."""


class Bench:
    """A classifier of a colour version and a tuner whose candidates are made by `build`; notes what it is told."""

    def __init__(self, folder: Path, *, check: int = 0, precision: str = "auto", ranges: bool = True) -> None:
        self.store = WeightsStore(folder / "weights")
        self.check = colours(check) if check else None
        self.ranges = ranges
        self.first = publish_colours(self.store, ranges=ranges, check=self.check, promote=True)
        self.classifier = Classifier(self.store, device="cpu", precision=precision)
        self.lie: Callable[[Tensor], Tensor] = lambda features: features
        self.slow_s = 0.0
        self.built = 0
        self.fallbacks: list[tuple[str, str]] = []
        self.engines: list[str] = []
        self.cache = EngineCache(folder / "engines", self.store.root, registers="tests.support.tiny_app")
        self.tuner = self.new_tuner()
        self.load(self.first)

    def new_tuner(self) -> Tuner:
        return Tuner(
            self.classifier,
            self.store,
            self.cache,
            build=self.build,
            on_engine=lambda version: self.engines.append(version.engine),
            on_fallback=lambda engine, reason: self.fallbacks.append((engine, reason)),
        )

    def load(self, version_id: str) -> Version:
        """Into service, and slow where it is the eager engine."""
        version = self.classifier.load(version_id)
        if not isinstance(version.runner, Fake):
            slow = replace(version, runner=SlowReference(version, "cpu-fp32", lambda features: features, 0.1))
            self.classifier._version = slow  # stands for a network that takes its time
        assert self.classifier.version is not None
        return self.classifier.version

    def build(self, version: Version, precision: str) -> Engine:
        self.built += 1
        real = version.runner
        while isinstance(real, Fake):
            real = real._real
        return Fake(replace(version, runner=real), f"cpu-{precision}", self.lie, self.slow_s)

    @property
    def serving(self) -> str:
        assert self.classifier.version is not None
        return self.classifier.version.engine


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures, the rules themselves are tested elsewhere; engines are as fast as they say they are; and this
    processor has no bf16, whatever it has."""
    for precision in ("bf16", "int8"):
        monkeypatch.setitem(RULES, precision, replace(RULES[precision], pictures_min=60))
    monkeypatch.setattr(devices, "native_bf16", lambda device: False)
    measured = SimpleNamespace(perf_counter=lambda: fake_time.passed_s)
    monkeypatch.setattr("worker.timing.time", measured)


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


class Captured:
    """In the place of GraphedEngine on a device with room for graphs of `room` images; notes what was asked for."""

    room = 0
    asked: list[int]
    bodies: list["weakref.ref[nn.Module]"]

    def __init__(
        self, body: nn.Module, device: torch.device, precision: str, preprocessing: Preprocessing, most: int
    ) -> None:
        assert all(held() is None for held in self.bodies), "what did not fit is still there"
        self.asked.append(most)
        self.bodies.append(weakref.ref(body))
        if most > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.name = f"cuda-{precision}"
        self._body, self._preprocessing = body, preprocessing

    def features(self, frames: Frames) -> Tensor:
        """As `Engine.features`."""
        pixels = networks.normalise(torch.from_numpy(frames), self._preprocessing, torch.bfloat16)
        return self._body(pixels).float()


@pytest.fixture
def on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench whose classifier says that it is on one, and captures `Captured`; bodies stay where they are."""
    monkeypatch.setattr(devices, "native_bf16", lambda device: True)
    monkeypatch.setattr("worker.classifier.GraphedEngine", Captured)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    whole = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: whole)
    monkeypatch.setattr(Captured, "asked", [], raising=False)
    monkeypatch.setattr(Captured, "bodies", [], raising=False)
    body_of = engines.body_of
    monkeypatch.setattr(engines, "body_of", lambda network, state, device, dtype: body_of(network, state, CPU, dtype))
    bench = Bench(tmp_path, precision="bf16")
    bench.classifier.device = torch.device("cuda")
    gc.disable()
    yield bench
    gc.enable()


def gpu_tuner(bench: Bench, max_images: int = 64) -> Tuner:
    """One that captures."""
    return Tuner(
        bench.classifier, bench.store, bench.cache, max_images=max_images,
        on_engine=lambda version: bench.engines.append(version.engine),
        on_fallback=lambda engine, reason: bench.fallbacks.append((engine, reason)),
    )  # fmt: skip


@pytest.mark.parametrize(("room", "asked"), [(64, [64]), (20, [64, 32, 16]), (8, [64, 32, 16, 8])])
def test_where_memory_lacks_graphs_are_captured_for_fewer_images(
    on_a_gpu: Bench, monkeypatch: pytest.MonkeyPatch, room: int, asked: list[int]
) -> None:
    """Each attempt begins with all that there is: nothing of the one before is left."""
    monkeypatch.setattr(Captured, "room", room)
    assert gpu_tuner(on_a_gpu).tune(on_a_gpu.classifier.version)
    assert (Captured.asked, on_a_gpu.serving, on_a_gpu.fallbacks) == (asked, "cuda-bf16", [])


@pytest.mark.parametrize(("max_images", "asked"), [(64, [64, 32, 16, 8]), (12, [12, 8]), (4, [4])])
def test_where_there_is_no_room_at_all_it_is_tried_again(
    on_a_gpu: Bench, monkeypatch: pytest.MonkeyPatch, max_images: int, asked: list[int]
) -> None:
    """After a while, and not before; once there is room it serves, and nothing is tried any more."""
    monkeypatch.setattr("worker.tuner.AGAIN_AFTER_S", 1.0)
    monkeypatch.setattr("worker.tuner.LOOK_EVERY_S", 0.05)
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(on_a_gpu.serving))
    tuner = gpu_tuner(on_a_gpu, max_images)
    tuner.start()
    wait_until(lambda: emptied == ["cpu-fp32"], "the cache is emptied after the first try")
    assert (Captured.asked, on_a_gpu.fallbacks) == (asked, [("cuda-bf16", "no_memory")])
    monkeypatch.setattr(Captured, "room", 64)
    wait_until(lambda: emptied == ["cpu-fp32", "cuda-bf16"], "it is emptied after the second")
    tuner.stop()
    assert (Captured.asked, on_a_gpu.fallbacks) == ([*asked, max_images], [("cuda-bf16", "no_memory")])


def test_what_was_refused_for_another_reason_is_not_tried_again(on_a_gpu: Bench) -> None:
    def broken(version: Version, precision: str) -> Engine:
        raise RuntimeError("the graph of 8 images does not give what the network gives")

    tuner = gpu_tuner(on_a_gpu)
    tuner._build = broken
    assert tuner.tune(on_a_gpu.classifier.version)
    assert on_a_gpu.fallbacks == [("cuda-bf16", "build_failed")]


def test_where_a_failed_capture_spoilt_the_process_that_is_said_once(
    on_a_gpu: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """As torch before 2.12 has it; whatever version comes next, only a new process captures again."""
    tried: list[str] = []

    def spoilt(version: Version, precision: str) -> Engine:
        tried.append(version.id)
        raise RuntimeError('captures_underway.empty() INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":3750')

    tuner = gpu_tuner(on_a_gpu)
    tuner._build = spoilt
    assert tuner.tune(on_a_gpu.classifier.version)
    assert "restart this worker" in caplog.text
    assert tuner.tune(replace(on_a_gpu.classifier.version, body="of another version"))
    assert on_a_gpu.fallbacks == [("cuda-bf16", "captures_spoilt")]
    assert tried == [on_a_gpu.first]


def test_a_device_that_is_broken_is_told(on_a_gpu: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error after which CUDA answers nothing any more; one that leaves the device whole is the candidate's."""
    broken: list[BaseException] = []
    tuner = gpu_tuner(on_a_gpu)
    tuner._on_broken = broken.append

    sticky = threading.Event()

    def illegal(*arguments: object) -> Engine:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def synchronize(device: torch.device) -> None:
        if sticky.is_set():
            illegal()

    tuner._build = illegal
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: SimpleNamespace(synchronize=lambda: synchronize(of)))
    tuner.tune(on_a_gpu.classifier.version)
    assert broken == []
    sticky.set()
    tuner.tune(on_a_gpu.classifier.version)
    assert [type(error) for error in broken] == [torch.AcceleratorError]


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


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[Bench, Batcher]]:
    """20 pictures kept, 60 needed: the tuner runs in its thread beside a batcher."""
    bench = Bench(tmp_path, check=20)
    batcher = Batcher(bench.classifier.score, max_images=8)
    bench.tuner.start()
    yield bench, batcher
    bench.tuner.stop()
    batcher.close()


def judge(batcher: Batcher, bench: Bench, until: Callable[[], bool]) -> list[tuple["Future[Scores]", int]]:
    """Submits fresh pictures until something has happened; what was submitted, with the right labels."""
    sent: list[tuple[Future[Scores], int]] = []
    deadline = time.monotonic() + 60
    for seed in range(1, 10_000):
        frames, labels = colours(3, seed)
        sent += [(batcher.submit(frames[i : i + 1]), int(label)) for i, label in enumerate(labels)]
        sent[-1][0].result(30)
        if until():
            return sent
        assert time.monotonic() < deadline, f"nothing happened: {bench.fallbacks}"
    raise AssertionError("nothing happened")


def test_too_few_pictures_are_made_up_for_by_what_is_judged(live: tuple[Bench, Batcher]) -> None:
    """Until then fp32 serves, said and counted; the swap loses no picture and changes no label."""
    bench, batcher = live
    sent = judge(batcher, bench, lambda: bench.serving == "cpu-int8")
    assert ("cpu-int8", "too_few_pictures") in bench.fallbacks
    sent += judge(batcher, bench, lambda: True)
    engines = [future.result(30).version.engine for future, _ in sent]
    assert {engines[0], engines[-1]} == {"cpu-fp32", "cpu-int8"}
    assert [int(future.result(30).probabilities.argmax()) for future, _ in sent] == [label for _, label in sent]
    assert bench.classifier.watcher is None


def test_where_no_more_is_kept_and_it_is_not_enough_the_comparison_ends(
    live: tuple[Bench, Batcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where hardly a picture is clear: two networks in memory and every batch compared would bring nothing new."""
    bench, batcher = live
    monkeypatch.setattr("worker.evidence.PICTURES_MAX", 40)
    judge(batcher, bench, lambda: bench.fallbacks.count(("cpu-int8", "too_few_pictures")) == 2)
    wait_until(lambda: bench.classifier.watcher is None, "the comparison to end")
    assert bench.serving == "cpu-fp32"


def test_a_lie_is_found_in_what_is_judged(live: tuple[Bench, Batcher]) -> None:
    """An engine that is right about the 20 pictures kept and wrong about others never serves."""
    bench, batcher = live
    kept = {
        frames.tobytes()
        for frames in check_pictures.read(bench.store, bench.classifier._store.manifest(bench.first))[0]
    }

    class Parrot(Fake):
        def features(self, frames: Frames) -> Tensor:
            features = super().features(frames)
            known = torch.tensor([frame.tobytes() in kept for frame in frames])
            return torch.where(known[:, None], features, features.roll(1, dims=1))

    build = bench.build

    def parrot(version: Version, precision: str) -> Engine:
        return Parrot(replace(version, runner=build(version, precision)), f"cpu-{precision}", lambda f: f, 0.0)

    bench.tuner._build = parrot
    sent = judge(batcher, bench, lambda: ("cpu-int8", "flips") in bench.fallbacks)
    assert {future.result(30).version.engine for future, _ in sent} == {"cpu-fp32"}


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


def test_another_way_of_decoding_needs_no_other_engine(tmp_path: Path) -> None:
    """What a body makes of frames hangs on their size and scale, not on how a JPEG became one."""
    bench = Bench(tmp_path)
    manifest = bench.store.manifest(bench.first)
    network = networks.get(manifest.network)
    keys = [
        body_key(network, manifest, {}, how)
        for how in (Preprocessing(), Preprocessing(jpeg_margins=(2.0, 2.0)), Preprocessing(mean=(0.5, 0.5, 0.5)))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_what_was_compared_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    """Nothing is compared again, and files of another width or none at all count for nothing."""
    bench = Bench(tmp_path, check=60)
    bench.tuner.tune(bench.classifier.version)
    (path,) = bench.cache.folder.glob("*int8*.evidence.safetensors")
    width = bench.classifier.version.head.weight.shape[1]
    kept = Evidence.load(path, width)
    assert len(kept) == 60
    pictures, _ = check_pictures.read(bench.store, bench.store.manifest(bench.first))
    assert len(kept.news(pictures)) == 0
    assert len(Evidence.load(path, width + 1)) == 0
    path.write_bytes(b"nothing")
    assert len(Evidence.load(path, width)) == 0


def test_only_the_last_used_files_stay_in_the_folder(tmp_path: Path) -> None:
    """Of each kind; what a process that was killed was writing goes as well, but not what one may be writing now."""
    bench = Bench(tmp_path, check=60)
    bench.cache.check_folder()
    for number in range(9):
        for name in (f"old{number}.so", f"old{number}.cpu.evidence.safetensors", f".old{number}.tmp"):
            (bench.cache.folder / name).write_bytes(b"x")
            os.utime(bench.cache.folder / name, (1000 + number, 1000 + number))
    (bench.cache.folder / ".new.tmp").write_bytes(b"x")
    bench.tuner.tune(bench.classifier.version)
    (mine,) = bench.cache.folder.glob("tiny-*.evidence.safetensors")
    bench.new_tuner().tune(bench.load(bench.first))
    left = {path.name for path in bench.cache.folder.iterdir()}
    assert left == (
        {mine.name, ".new.tmp"}
        | {f"old{number}.so" for number in range(3, 9)}
        | {f"old{number}.cpu.evidence.safetensors" for number in range(4, 9)}
    )


def test_evidence_is_bounded_and_counts_a_picture_once() -> None:
    evidence = Evidence()
    frames, _ = colours(30)
    new = evidence.news(np.concatenate([frames, frames]))
    assert new.tolist() == list(range(30))
    evidence.add(frames, np.zeros((30, 4), np.float32), np.zeros((30, 4), np.float32))
    assert len(evidence.news(frames)) == 0
    many = np.random.default_rng(0).integers(0, 256, (PICTURES_MAX + 5, 32, 32, 3), np.uint8)
    assert len(evidence.news(many)) == PICTURES_MAX - 30


def test_check_pictures_are_those_that_were_published(tmp_path: Path) -> None:
    """Back from the store as they went in, JPEG's losses apart; a changed file is refused."""
    bench = Bench(tmp_path, check=12)
    manifest = bench.store.manifest(bench.first)
    frames, labels = check_pictures.read(bench.store, manifest)
    assert np.abs(frames.astype(int) - bench.check[0]).mean() < 3
    assert (labels == bench.check[1]).all()
    (path,) = (bench.store.root / "check").iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match="is not the file that was published"):
        check_pictures.read(bench.store, manifest)
    path.write_bytes(content[:-1])
    with pytest.raises(WeightsError, match="copy it into the store again"):
        check_pictures.read(bench.store, manifest)


def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    """It holds programs."""
    (tmp_path / "engines").mkdir(mode=0o777)
    (tmp_path / "engines").chmod(0o777)
    bench = Bench(tmp_path, check=60)
    bench.tuner.tune(bench.classifier.version)
    assert bench.fallbacks[-1] == ("cpu-int8", "no_cache")
    assert bench.serving == "cpu-fp32"


@pytest.mark.parametrize(
    ("kind", "device", "names"),
    [
        ("COMPILING", "cpu", {"aoti", "compiler", "engine", "int8", "network"}),
        ("CAPTURING", "cuda", {"engine", "graphed", "network"}),
    ],
)
def test_another_release_of_the_code_takes_neither_engine_nor_evidence_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, device: str, names: set[str]
) -> None:
    """Of what compiles or captures, of what a body is, and of how frames become its input."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    bench, where = Bench(tmp_path, check=60), torch.device(device)
    version = bench.classifier.version
    before = bench.cache.key(version.manifest, version.body, "int8", where)
    assert bench.cache.key(version.manifest, version.body, "int8", where) == before
    decides = getattr(compiled, kind)
    assert {source.stem for source in decides} == names
    for position, source in enumerate(decides):
        changed = tmp_path / source.name
        changed.write_bytes(source.read_bytes() + b"# changed\n")
        sources = [*decides]
        sources[position] = changed
        with monkeypatch.context() as patched:
            patched.setattr(compiled, kind, tuple(sources))
            assert bench.cache.key(version.manifest, version.body, "int8", where) != before


def test_settings_that_this_machine_cannot_serve_are_refused_in_a_sentence(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="MODERATION_DEVICE is cuda"):
            Classifier(store, device="cuda", precision="auto")
    with pytest.raises(UsageError, match="MODERATION_PRECISION is bf16"):
        Classifier(store, device="cpu", precision="bf16")


def test_fallbacks_and_the_engine_in_service_are_metrics() -> None:
    metrics = Metrics()
    metrics.serving("tiny-0", "cpu-fp32", None)
    metrics.engine_fallbacks.labels("cpu-bf16", "not_native").inc()
    metrics.engine("tiny-0", "cpu-int8")
    value = metrics.registry.get_sample_value
    assert value("moderation_engine_fallbacks_total", {"engine": "cpu-bf16", "reason": "not_native"}) == 1
    info = {"role": "champion", "weights": "tiny-0"}
    assert value("moderation_weights_info", {**info, "engine": "cpu-int8"}) == 1
    assert value("moderation_weights_info", {**info, "engine": "cpu-fp32"}) is None
    assert value("moderation_weights_loads_total", {"outcome": "loaded"}) == 1


def test_int8_is_compiled_once_and_found_again(tmp_path: Path) -> None:
    """The real compiler in its own process on the small network: labels as in fp32, and a second start is quick."""
    bench = Bench(tmp_path, check=60)
    tuner = Tuner(bench.classifier, bench.store, bench.cache, on_fallback=lambda *said: bench.fallbacks.append(said))
    version = bench.classifier.version
    engine = tuner._build(version, "int8")
    (library,) = bench.cache.folder.iterdir()  # and nothing half done
    assert bench.cache.folder.stat().st_mode & 0o077 == 0
    frames, labels = bench.check
    for count in (1, 2, 7, 60):
        with torch.inference_mode():
            given = version.head.probabilities(engine.features(frames[:count]))
        assert (given.argmax(dim=1).numpy() == labels[:count]).all()
    started = time.perf_counter()
    EngineCache(bench.cache.folder, bench.store.root).engine(version.manifest, version.body, "int8")
    assert time.perf_counter() - started < 5
    whole = library.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for damaged in (b"damaged", b"", whole[:-1], whole[: len(whole) // 2], flipped, whole + b"more"):
        library.unlink(missing_ok=True)  # the one in use stays as it is
        library.write_bytes(damaged)
        with pytest.raises(EngineError, match="cannot be loaded"):
            bench.cache.engine(version.manifest, version.body, "int8")
        assert not library.exists()
    with torch.inference_mode():
        assert torch.equal(version.head.probabilities(engine.features(frames)), given)


@pytest.mark.parametrize(("precision", "at_most"), [("bf16", 8), ("int8", 16)])
def test_a_batch_goes_through_a_library_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, at_most: int
) -> None:
    """Of nearly equal size, in channels_last, the rows in their order; a library is given no more than helps it."""
    given: list[Tensor] = []

    def library(path: Path) -> Callable[[Tensor], Tensor]:
        def run(pixels: Tensor) -> Tensor:
            given.append(pixels)
            return pixels.float().amax(dim=(2, 3))

        return run

    monkeypatch.setattr(compiled, "Library", library)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    engine = compiled.CompiledEngine(tmp_path / "none.so", precision, Preprocessing())
    for count in (1, at_most, at_most + 1, 64):
        given.clear()
        frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 224, 224, 3)).copy()
        features = engine.features(frames)
        assert features.shape == (count, 3) and bool((features.diff(dim=0) > 0).all())
        sizes = [len(part) for part in given]
        assert max(sizes) <= at_most and max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-count // at_most)
        assert all(part.is_contiguous(memory_format=torch.channels_last) for part in given)


def test_a_compilation_ends_with_its_worker(tmp_path: Path) -> None:
    """Stopping does not wait for a compiler."""
    bench = Bench(tmp_path)
    cache, failed = bench.cache, []

    def compile_it() -> None:
        try:
            cache.engine(bench.classifier.version.manifest, bench.classifier.version.body, "int8")
        except EngineError as error:
            failed.append(error.reason)

    thread = threading.Thread(target=compile_it)
    thread.start()
    wait_until(lambda: cache._process is not None, "the compiler's process starts")
    cache.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert failed == ["build_failed"]


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
