"""What engines were compared on: the pictures kept with a version, and what two engines made of pictures."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.tuning import Bench, colours, quick
from worker.errors import WeightsError
from worker.evidence import PICTURES_MAX, Evidence
from worker.model import check_pictures


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def test_evidence_is_bounded_and_counts_a_picture_once() -> None:
    evidence = Evidence()
    frames, _ = colours(30)
    new = evidence.news(np.concatenate([frames, frames]))
    assert new.tolist() == list(range(30))
    evidence.add(frames, np.zeros((30, 4), np.float32), np.zeros((30, 4), np.float32))
    assert len(evidence.news(frames)) == 0
    many = np.random.default_rng(0).integers(0, 256, (PICTURES_MAX + 5, 32, 32, 3), np.uint8)
    assert len(evidence.news(many)) == PICTURES_MAX - 30


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
