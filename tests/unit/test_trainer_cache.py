"""Features on disk: what is computed once stays, and nothing that happens to the folder gives wrong numbers."""

import hashlib
import io
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.fitting import SMALL
from trainer import features
from trainer.arrays import FloatArray, Frames
from trainer.bases import random_base
from trainer.cache import FeatureCache
from trainer.dataset import Facts, Picture
from trainer.errors import CacheError
from trainer.features import Features, computer
from trainer.frozen import FrozenPart
from trainer.progress import Reporter
from trainer.shards import Entry, pack
from trainer.tables import Tables
from worker.decode import DecoderPool
from worker.model.files import ABANDONED_S
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits


class Counting(FrozenPart):
    """A frozen part that counts the frames it computes, and can be interrupted after some."""

    computed = 0
    interrupted_after: int | None = None

    def forward(self, frames: Frames) -> FloatArray:
        if self.interrupted_after is not None and self.computed >= self.interrupted_after:
            raise KeyboardInterrupt
        self.computed += len(frames)
        return super().forward(frames)


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    with DecoderPool(Preprocessing(), DecodeLimits(), processes=1, timeout_s=20.0, memory_bytes=2**30) as pool:
        yield pool


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    """80 stills and two animations of five frames."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    made = []
    for i in range(82):
        images = [Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)) for _ in range(5 if i >= 80 else 1)]
        buffer = io.BytesIO()
        images[0].save(buffer, "GIF" if i >= 80 else "PNG", save_all=True, append_images=images[1:])
        path = root / f"{i}.png"
        path.write_bytes(buffer.getvalue())
        made.append(Picture(path, i % 3, hashlib.sha256(buffer.getvalue()).hexdigest()))
    return made


class Run:
    """One training run's use of a cache folder: a network of its own, a cache of its own, what was said."""

    def __init__(self, folder: Path, decoders: DecoderPool, seed: int = 0, **limits: int) -> None:
        self.part = Counting(SMALL, random_base(SMALL, seed), Preprocessing(), torch.device("cpu"))
        self.said = io.StringIO()
        self.reporter = Reporter(self.said)
        self.cache = FeatureCache(folder, self.part.key, self.part.dtype, self.reporter.say, **limits)
        self.decoders = decoders

    def __call__(self, pictures: list[Picture], frames: str = "middle") -> Features:
        compute = computer(self.part, self.decoders, self.reporter, self.cache)
        return compute(pictures, frames, "Features")


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


@contextmanager
def no_file_longer_than(length: int) -> Iterator[None]:
    """The system refuses to write more to any file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_later_run_computes_only_what_is_new(tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]) -> None:
    first = Run(tmp_path, decoders)
    before = first(pictures[:70])
    second = Run(tmp_path, decoders)
    after = second(pictures[:77])
    assert (first.part.computed, second.part.computed) == (70, 7)
    np.testing.assert_array_equal(after.values[:70], before.values)
    np.testing.assert_array_equal(after.looks[:70], before.looks)
    assert after.facts[:70] == before.facts
    assert [p.path for p in after.pictures] == [p.path for p in pictures[:77]]
    assert "70 of 77 are in the cache" in second.said.getvalue()


def test_the_same_bytes_elsewhere_and_under_another_label_are_not_computed_again(
    tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]
) -> None:
    Run(tmp_path / "cache", decoders)(pictures[:3])
    moved = tmp_path / "moved.png"
    moved.write_bytes(pictures[1].path.read_bytes())
    again = Run(tmp_path / "cache", decoders)
    assert again([Picture(moved, 2, pictures[1].sha256)]).labels.tolist() == [2]
    assert again.part.computed == 0


def test_another_base_or_preprocessing_never_gets_these_features(
    tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]
) -> None:
    first, other = Run(tmp_path, decoders), Run(tmp_path, decoders, seed=1)
    assert not np.array_equal(first(pictures[:3]).values, other(pictures[:3]).values)
    assert other.part.computed == 3
    base = random_base(SMALL, 0)
    keys = [FrozenPart(SMALL, base, Preprocessing(crop=crop), torch.device("cpu")).key for crop in (224, 200)]
    assert keys[0] != keys[1]


def test_all_frames_serve_for_the_middle_one_but_not_the_other_way_round(
    tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]
) -> None:
    """A picture that moves from what is judged by to what is fitted on costs nothing."""
    run, animated = Run(tmp_path, decoders), pictures[80:]
    middle = run(animated)
    everything = run(animated, "all")
    assert run.part.computed == 2 + 10
    again = Run(tmp_path, decoders)
    np.testing.assert_array_equal(again(animated).values, everything.values[[2, 7]])
    np.testing.assert_allclose(middle.values, everything.values[[2, 7]], rtol=1e-5)
    assert again.part.computed == 0


def test_an_interrupted_run_keeps_what_it_had_computed(
    tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]
) -> None:
    run = Run(tmp_path, decoders)
    run.part.interrupted_after = 64
    with pytest.raises(KeyboardInterrupt):
        run(pictures[:80])
    again = Run(tmp_path, decoders)
    assert len(again(pictures[:80]).pictures) == 80
    assert again.part.computed == 16


def test_a_full_disk_is_one_sentence_and_leaves_a_valid_cache(
    tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]
) -> None:
    first = Run(tmp_path, decoders)
    kept = first(pictures[:10])
    with no_file_longer_than(2000), pytest.raises(CacheError, match="free space there") as caught:
        Run(tmp_path, decoders)(pictures[:40])
    assert str(caught.value).count("\n") == 0
    assert len(files(tmp_path)) == 1 and not list(tmp_path.rglob(".*.tmp"))
    again = Run(tmp_path, decoders)
    np.testing.assert_array_equal(again(pictures[:40]).values[:10], kept.values)
    assert again.part.computed == 30


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def one_bit_changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")


def columns_that_do_not_fit(path: Path) -> None:
    """A well-formed file under its right name that promises more frames than it has."""
    look = np.zeros(224, np.uint8)
    entry = Entry("ab" * 32, np.zeros((2, 24), np.float32), True, look, Facts("PNG", 1, 1))
    content = bytearray(pack([entry], torch.float32))
    at = content.index((2).to_bytes(8, "little"), 8 + int.from_bytes(content[:8], "little"))
    content[at : at + 8] = (2**40).to_bytes(8, "little")
    path.with_name(f"{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    path.unlink()


@pytest.mark.parametrize("damage", [cut_short, one_bit_changed, emptied, a_pickle, columns_that_do_not_fit])
def test_damaged_files_are_removed_computed_again_and_named(
    damage: object, tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]
) -> None:
    expected = Run(tmp_path, decoders)(pictures[:5]).values
    damage(files(tmp_path)[0])
    again = Run(tmp_path, decoders)
    np.testing.assert_array_equal(again(pictures[:5]).values, expected)
    assert again.part.computed == 5
    assert "is damaged" in again.said.getvalue()
    healed = Run(tmp_path, decoders)
    healed(pictures[:5])
    assert healed.part.computed == 0


def test_damage_and_loss_while_a_run_is_under_way_are_made_good(
    tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]
) -> None:
    Run(tmp_path, decoders)(pictures[:5])
    Run(tmp_path, decoders)(pictures[5:9])
    under_way = Run(tmp_path, decoders)
    one_bit_changed(files(tmp_path)[0])
    files(tmp_path)[1].unlink()
    assert len(under_way(pictures[:9]).pictures) == 9
    assert under_way.part.computed == 9
    assert "is gone" in under_way.said.getvalue()


def test_two_runs_share_a_folder(tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]) -> None:
    """Both started before either computed: the same pictures twice, the same numbers, and both sets stay."""
    one, two = Run(tmp_path, decoders), Run(tmp_path, decoders)
    np.testing.assert_array_equal(one(pictures[:30]).values, two(pictures[:30]).values)
    two(pictures[30:40])
    third = Run(tmp_path, decoders)
    third(pictures[:40])
    assert third.part.computed == 0


def test_the_folder_keeps_its_limit_and_what_was_unused_for_longest_goes_first(
    tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]
) -> None:
    Run(tmp_path, decoders)(pictures[:20])
    (old,) = files(tmp_path)
    Run(tmp_path, decoders)(pictures[20:40])
    long_ago_s = time.time() - 86_400
    os.utime(old, (long_ago_s, long_ago_s))
    size = sum(path.stat().st_size for path in files(tmp_path))
    with Run(tmp_path, decoders, max_bytes=size).cache as cache:
        cache.add([Entry("cd" * 32, np.zeros((1, 24), np.float32), True, np.zeros(224, np.uint8), Facts("PNG", 1, 1))])
    assert old not in files(tmp_path)
    assert len(files(tmp_path)) == 2
    assert sum(path.stat().st_size for path in files(tmp_path)) <= size


def test_a_set_a_little_larger_than_the_limit_is_computed_in_part_again_and_again(
    tmp_path: Path, decoders: DecoderPool, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this run is still to read gives no room to what it computes: a growing set meets its limit some day."""
    monkeypatch.setattr(features, "SHARD_PICTURES", 4)
    Run(tmp_path / "whole", decoders)(pictures)
    limit = sum(path.stat().st_size for path in files(tmp_path / "whole")) * 88 // 100
    for fewest, most in ((82, 82), (8, 41), (8, 41)):
        run = Run(tmp_path / "cache", decoders, max_bytes=limit)
        with run.cache:
            assert len(run(pictures).pictures) == 82
        assert fewest <= run.part.computed <= most
        assert sum(path.stat().st_size for path in files(tmp_path / "cache")) <= limit


def test_a_limit_of_nothing_keeps_nothing_but_the_run_succeeds_and_says_so(
    tmp_path: Path, decoders: DecoderPool, pictures: list[Picture]
) -> None:
    run = Run(tmp_path, decoders, max_bytes=0)
    with run.cache:
        assert len(run(pictures).pictures) == 82
    assert files(tmp_path) == []
    assert "computes some pictures again" in run.said.getvalue()


def test_what_a_killed_run_left_half_written_is_cleared_away_once_old(tmp_path: Path, decoders: DecoderPool) -> None:
    Run(tmp_path, decoders)
    (folder,) = tmp_path.iterdir()
    for name, age_s in ((".old.tmp", ABANDONED_S + 60), (".new.tmp", 0)):
        (folder / name).write_bytes(b"half a file")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    Run(tmp_path, decoders)
    assert [path.name for path in folder.glob(".*.tmp")] == [".new.tmp"]


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path, decoders: DecoderPool) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=r"cannot be used .*--cache"):
        Run(tmp_path / "file", decoders)


def test_bfloat16_features_come_back_as_they_were_computed_in_half_the_space(tmp_path: Path) -> None:
    values = torch.randn(3, 24, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).float().numpy()
    entries = [
        Entry(f"{i:064x}", values[i : i + 1], True, np.zeros(224, np.uint8), Facts("AVIF", 640, 480)) for i in range(3)
    ]
    cache = FeatureCache(tmp_path, {"engine": "cuda-bf16"}, torch.bfloat16, print)
    cache.add(entries)
    back = sorted(cache.read({entry.sha256 for entry in entries}, "all"), key=lambda entry: entry.sha256)
    np.testing.assert_array_equal(np.concatenate([entry.values for entry in back]), values)
    assert back[0].facts == Facts("AVIF", 640, 480)
    assert len(pack(entries, torch.float32)) - len(pack(entries, torch.bfloat16)) >= values.nbytes // 2 - 64


def test_a_large_table_lies_on_disk_without_a_name_and_holds_the_same(tmp_path: Path) -> None:
    table = Tables(tmp_path, in_memory_bytes=0).new(3000, 7)
    table[:] = np.arange(21_000).reshape(3000, 7)
    np.testing.assert_array_equal(table.ravel(), np.arange(21_000))
    assert list(tmp_path.iterdir()) == []


def test_a_large_table_that_does_not_fit_is_refused_before_it_is_used(tmp_path: Path) -> None:
    with no_file_longer_than(2**20), pytest.raises(CacheError, match="does not fit"):
        Tables(tmp_path, in_memory_bytes=0).new(2**18, 4)
