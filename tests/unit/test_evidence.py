"""What engines were compared on: the pictures kept with a version, and what two engines made of pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tuning import Bench, colours, quick
from worker.errors import WeightsError
from worker.evidence import PICTURES_MAX, Evidence
from worker.model import check_pictures
from worker.model.agreement import RULES
from worker.model.engine import Head


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


@pytest.mark.parametrize("remembered", [False, True])
def test_labels_and_the_ban_threshold_are_part_of_the_judgement(tmp_path: Path, remembered: bool) -> None:
    """Every change is a close call: only the labels show that all of them turn right into wrong, and only the threshold
    that a ban comes or goes with one. Also in the next process."""
    fp32 = np.tile(np.array([0.9, 0.05, 0.05]), (120, 1))
    candidate = fp32.copy()
    fp32[:12], candidate[:12] = [0.46, 0.44, 0.1], [0.44, 0.46, 0.1]
    candidate[12] = [0.65, 0.05, 0.3]
    evidence = Evidence()
    pictures = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8)
    features, others = (np.log(probabilities).astype(np.float32) for probabilities in (fp32, candidate))
    evidence.add(pictures[:60], features[:60], others[:60], np.array([0] * 12 + [-1] * 48))
    evidence.add(pictures[60:], features[60:], others[60:])
    if remembered:
        evidence.save(tmp_path / "evidence")
        evidence = Evidence.load(tmp_path / "evidence", 3)
    head = Head(torch.eye(3), torch.zeros(3), 1.0)
    assert evidence.judge(RULES["bf16"], head, None).refusal == "accuracy"
    assert evidence.judge(RULES["bf16"], head, 0.6).flips == 0
    assert evidence.judge(RULES["bf16"], head, 0.25).flips == 1
