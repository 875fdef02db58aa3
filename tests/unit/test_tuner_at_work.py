"""Engines that are compared on what is being judged: one that may serve loses no batch, one that lies is found out."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.tuning import Bench, Fake, colours, quick
from tests.support.waiting import wait_until
from worker.batcher import Batcher
from worker.classifier import Scores, Version
from worker.model import check_pictures
from worker.model.engine import Engine, Frames


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


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
