"""What the frozen part computes, through real decoders, on a small network in VGG-11's place."""

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from tests.support.fitting import SMALL
from trainer import engines
from trainer.bases import random_base
from trainer.dataset import Picture
from trainer.decoding import CONTENT_MAX_BYTES, DECODERS_MAX, decode_all, decoder_pool
from trainer.features import computer
from trainer.frozen import FrozenPart
from trainer.progress import Reporter
from worker import cores
from worker.decode import DecoderPool
from worker.errors import WeightsError
from worker.model import devices
from worker.model import engine as worker_engines
from worker.model import network as networks
from worker.model.agreement import UNLABELLED
from worker.model.labels import RISKED
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits
from worker.model.tensors import state_dict
from worker.model.weights import WeightsStore


@pytest.fixture
def base() -> dict[str, torch.Tensor]:
    return random_base(SMALL, 0)


@pytest.fixture
def part(base: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> FrozenPart:
    """In float32, whatever this processor has."""
    monkeypatch.setattr(devices, "native_bf16", lambda device: False)
    return FrozenPart(SMALL, base, Preprocessing(), torch.device("cpu"))


def whole(base: dict[str, torch.Tensor], head: dict[str, torch.Tensor]) -> engines.Whole:
    return engines.Whole(SMALL, state_dict(base, head), Preprocessing(), 1.0, None)


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    limits = {"processes": 1, "timeout_s": 20.0, "memory_bytes": 2**30}
    with DecoderPool(Preprocessing(), DecodeLimits(), **limits) as pool:
        yield pool


def write(path: Path, data: bytes, label: int = 0) -> Picture:
    path.write_bytes(data)
    return Picture(path, label, hashlib.sha256(data).hexdigest())


def still(colour: int, format_: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (colour, 90, 30)).save(buffer, format_)
    return buffer.getvalue()


def animation(frames: int) -> bytes:
    """A GIF that gets redder frame by frame."""
    images = [Image.new("RGB", (40, 30), (40 * i, 0, 0)) for i in range(frames)]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=100)
    return buffer.getvalue()


def test_what_a_picture_gives_does_not_depend_on_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, or a run that goes on from a cache makes another version than one that does not: the real
    network, whose libraries go another way for each length of a batch, in the precision where that shows most."""
    monkeypatch.setattr(devices, "native_bf16", lambda device: False)
    network = networks.get("vgg11")
    part = FrozenPart(network, random_base(network, 0), Preprocessing(), torch.device("cpu"))
    frames = np.random.default_rng(0).integers(0, 256, (33, 224, 224, 3), np.uint8)
    together = part.forward(frames)
    for alone in (20, 32):
        assert np.array_equal(part.forward(frames[alone : alone + 1])[0], together[alone])


@pytest.mark.parametrize(("usable", "processes"), [(1, 1), (6, 3), (64, DECODERS_MAX)])
def test_decoders_take_half_the_cores_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, usable: int, processes: int
) -> None:
    """Not half of those that the machine has: a container is given a few of many."""
    monkeypatch.setattr(os, "cpu_count", lambda: 10 * usable)
    monkeypatch.setattr(cores, "usable", lambda: usable)
    before = decoding_threads()
    with decoder_pool(Preprocessing()):
        assert decoding_threads() - before == processes


def decoding_threads() -> int:
    """One waits for each decoder process."""
    return sum(thread.name.startswith("decoder-") for thread in threading.enumerate())


def test_the_parts_together_are_the_network(part: FrozenPart, base: dict[str, torch.Tensor]) -> None:
    """Cut at the first dropout, repeated without dropout, then the last layer: the whole network's logits."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    module = SMALL.build().eval()
    module.load_state_dict(base, strict=False)
    head = module[1][5]
    with torch.no_grad():
        whole = module(networks.normalise(torch.from_numpy(frames), Preprocessing(), torch.float32))
        parts = head(torch.from_numpy(part.head_input(part.forward(frames))))
    assert part.forward(frames).shape == (4, 64)
    torch.testing.assert_close(parts, whole)


def test_where_the_processor_has_bf16_the_features_are_nearly_the_same(
    part: FrozenPart, base: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And under another key, so that neither is ever taken for the other."""
    monkeypatch.setattr(devices, "native_bf16", lambda device: True)
    shorter = FrozenPart(SMALL, base, Preprocessing(), torch.device("cpu"))
    frames = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    exact, given = part.forward(frames), shorter.forward(frames)
    assert (part.key["engine"], shorter.key["engine"]) == ("cpu-fp32", "cpu-bf16")
    assert 0 < np.abs(given - exact).max() < 0.03 * np.abs(exact).max()


def test_a_base_of_another_network_is_refused(base: dict[str, torch.Tensor]) -> None:
    del base["1.0.bias"]
    with pytest.raises(WeightsError, match="does not fit"):
        FrozenPart(SMALL, base, Preprocessing(), torch.device("cpu"))


def test_features_keep_the_order_and_name_what_cannot_be_read(
    tmp_path: Path, part: FrozenPart, decoders: DecoderPool
) -> None:
    """GIF, AVIF and a file without suffix count; what is no picture, is cut short or is gone is listed."""
    pictures = [
        write(tmp_path / "a", still(200), 2),
        write(tmp_path / "b.txt", b"no picture", 1),
        write(tmp_path / "c.avif", still(100, "AVIF"), 0),
        write(tmp_path / "d.png", still(50)[:60], 1),
        write(tmp_path / "e.gif", still(50, "GIF"), 1),
        write(tmp_path / "f.png", still(60), 1),
    ]
    pictures[5].path.unlink()
    made = computer(part, decoders, Reporter(io.StringIO()))(pictures, "middle", "pictures")
    assert [p.path.name for p in made.pictures] == ["a", "c.avif", "e.gif"]
    assert made.labels.tolist() == [2, 0, 1]
    assert {(u.path.name, u.reason) for u in made.unreadable} == {
        ("b.txt", "unsupported_format"),
        ("d.png", "unreadable"),
        ("f.png", "fetch_failed"),
    }
    (_, first), *_ = decode_all(pictures[:1], decoders)
    np.testing.assert_allclose(made.values[:1], part.forward(first.frames), rtol=1e-5)


def test_an_animation_is_fitted_on_by_its_middle_and_judged_by_all_frames(
    tmp_path: Path, part: FrozenPart, decoders: DecoderPool
) -> None:
    pictures = [write(tmp_path / "a.gif", animation(5)), write(tmp_path / "b.png", still(10))]
    compute = computer(part, decoders, Reporter(io.StringIO()))
    everything, middle = compute(pictures, "all", "all"), compute(pictures, "middle", "middle")
    assert everything.owner.tolist() == [0] * 5 + [1]
    assert middle.owner.tolist() == [0, 1]
    np.testing.assert_allclose(middle.values[0], everything.values[2], rtol=1e-5)


def test_a_file_replaced_after_it_was_listed_is_left_out(
    tmp_path: Path, part: FrozenPart, decoders: DecoderPool
) -> None:
    """What is computed of it would be kept under the digest of what it was, for every later run."""
    listed = write(tmp_path / "a.png", still(200))
    (tmp_path / "a.png").write_bytes(still(10))
    made = computer(part, decoders, Reporter(io.StringIO()))([listed], "all", "all")
    assert [(u.reason, "replaced" in u.detail) for u in made.unreadable] == [("fetch_failed", True)]
    assert made.pictures == ()


def test_a_file_too_large_for_the_worker_is_left_out(tmp_path: Path, part: FrozenPart, decoders: DecoderPool) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(CONTENT_MAX_BYTES + 1)
    made = computer(part, decoders, Reporter(io.StringIO()))([Picture(path, 0, "")], "all", "all")
    assert [u.reason for u in made.unreadable] == ["too_large"]
    assert made.pictures == ()


def test_bfloat16_is_compared_with_float32_on_the_whole_network(base: dict[str, torch.Tensor]) -> None:
    """Forced here whatever the processor: clear pictures keep their label, and 120 pictures are enough."""
    frames = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8)
    head = {"1.5.weight": torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), "1.5.bias": torch.zeros(3)}
    check = engines.check_bf16(whole(base, head), frames, np.full(120, UNLABELLED), torch.device("cpu"))
    assert check.pictures == 120
    assert check.passed == (check.flips == 0)
    assert check.clear_pictures > 0


def test_bfloat16_that_changes_clear_labels_does_not_pass(base: dict[str, torch.Tensor]) -> None:
    """A last layer that takes small differences of large numbers is beyond bfloat16, and the check sees it."""
    frames = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8)
    part = FrozenPart(SMALL, base, Preprocessing(), torch.device("cpu"))
    inputs = part.head_input(part.forward(frames)).astype(np.float64)
    weight = np.random.default_rng(1).normal(size=(3, 32)) / np.maximum(inputs.std(axis=0), 1e-9) * 10
    head = {
        "1.5.weight": torch.tensor(weight, dtype=torch.float32),
        "1.5.bias": torch.tensor(-weight @ inputs.mean(axis=0), dtype=torch.float32),
    }
    check = engines.check_bf16(whole(base, head), frames, np.full(120, UNLABELLED), torch.device("cpu"))
    assert check.flips > 0
    assert not check.passed


def test_bfloat16_that_loses_what_is_labelled_does_not_pass(base: dict[str, torch.Tensor]) -> None:
    """Near the ban threshold it flips nothing that was clear; but each picture was right by float32 alone."""
    frames = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8), 120, axis=0)
    head = {"1.5.weight": torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), "1.5.bias": torch.zeros(3)}
    every, cpu = whole(base, head), torch.device("cpu")
    last = worker_engines.head_of(SMALL, every.state, 1.0, cpu)

    def probabilities(precision: str) -> np.ndarray:
        body = worker_engines.body_of(SMALL, every.state, cpu, worker_engines.DTYPES[precision])
        with torch.inference_mode():
            features = worker_engines.EagerEngine(body, cpu, precision, Preprocessing()).features(frames[:1])
            return last.probabilities(features).double().numpy()[0]

    fp32, bf16 = probabilities("fp32"), probabilities("bf16")
    between = replace(every, ban_threshold=(fp32[RISKED] + bf16[RISKED]) / 2)
    assert fp32[RISKED] != bf16[RISKED], "this head cannot tell the two apart: draw another"
    published = RISKED if fp32[RISKED] > bf16[RISKED] else int(fp32.argmax())
    check = engines.check_bf16(between, frames, np.full(120, published), cpu)
    assert (check.flips, check.passed) == (0, False)
    assert engines.check_bf16(between, frames, np.full(120, UNLABELLED), cpu).passed


def test_engines_are_compared_on_readable_pictures_alone(tmp_path: Path, decoders: DecoderPool) -> None:
    pictures = [write(tmp_path / "a.gif", animation(5)), write(tmp_path / "b.png", b"nothing")]
    frames, labels = engines.sample_frames(pictures, decoders, 5)
    assert frames.shape == (1, 224, 224, 3)
    assert labels.tolist() == [0]
    assert len(engines.sample_frames(pictures[1:], decoders, 5)[0]) == 0


def test_a_version_names_what_faster_engines_need(
    tmp_path: Path, base: dict[str, torch.Tensor], decoders: DecoderPool
) -> None:
    """A range for the input and every layer, and pictures spread over all labels with the labels they have."""
    store = WeightsStore(tmp_path / "weights")
    pictures = [write(tmp_path / f"{i}.png", still(20 * i), label=i // 4) for i in range(12)]
    head = {"1.5.weight": torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), "1.5.bias": torch.zeros(3)}
    cpu, said = torch.device("cpu"), io.StringIO()

    def prepare(tested_on: list[Picture], known: engines.Known = engines.NOTHING) -> engines.ForEngines:
        return engines.prepare(whole(base, head), pictures, tested_on, decoders, store, known, cpu, Reporter(said))

    made = prepare(pictures[::2])
    assert "Ranges for int8: 12 of 12 done" in said.getvalue()
    if made.checks:
        assert "cpu-bf16 compared with fp32: 12 of 12 done" in said.getvalue()
    assert {"input", "0.0", "1", "4"} <= made.ranges.keys()
    assert all(low < high for low, high in made.ranges.values())
    assert made.pictures is not None
    kept = safetensors.numpy.load(store.read_check_pictures(made.pictures))
    assert kept["labels"].tolist() == [0, 0, 1, 1, 2, 2]

    known = engines.Known(
        {"input": (-1.0, 2.0)}, made.pictures, np.zeros((6, 224, 224, 3), np.uint8), np.zeros(6, np.int64)
    )
    again = prepare(pictures[1::2], known)
    assert again.ranges == known.ranges, "what an earlier version measured on the same layers is not measured again"
    assert again.pictures == made.pictures, "nor are other pictures stored"
    more = prepare(pictures, known)
    assert more.pictures != made.pictures, "unless there are more of them now"
    assert len(list((store.root / "check").iterdir())) == 2
