"""Graphs where the device's memory lacks, where a capture spoils the process, and where the device breaks."""

import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.support.tuning import Bench, quick
from tests.support.waiting import wait_until
from worker.classifier import Version
from worker.model import devices
from worker.model import engine as engines
from worker.model import network as networks
from worker.model.engine import Engine, Frames
from worker.model.preprocessing import Preprocessing
from worker.tuner import Tuner

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


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
