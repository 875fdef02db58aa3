"""A tuner with a colour version to tune, and engines that are as fast and as right as a test says."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch import Tensor

from tests.support.store import publish_colours
from worker.classifier import Classifier, Version
from worker.model import devices
from worker.model.agreement import RULES, Labels
from worker.model.compiled import EngineCache
from worker.model.engine import Engine, Frames
from worker.model.weights import WeightsStore
from worker.tuner import Tuner

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


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures, the rules themselves are tested elsewhere; engines are as fast as they say they are; and this
    processor has no bf16, whatever it has."""
    for precision in ("bf16", "int8"):
        monkeypatch.setitem(RULES, precision, replace(RULES[precision], pictures_min=60))
    monkeypatch.setattr(devices, "native_bf16", lambda device: False)
    measured = SimpleNamespace(perf_counter=lambda: fake_time.passed_s)
    monkeypatch.setattr("worker.timing.time", measured)
