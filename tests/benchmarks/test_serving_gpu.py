"""The serving benchmarks where CUDA is found: the engine against the card, and the line against its slower half."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks.conftest import Record
from tests.benchmarks.serving import VGG, photographs, vgg_version, warmed
from tests.support.place import Place
from tests.support.worker import Broker
from worker.classifier import Classifier
from worker.decode import DecoderPool
from worker.model.preprocessing import DecodeLimits, Preprocessing
from worker.settings import Settings

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device: these figures are a GPU's"),
]

BATCH, PHOTOGRAPHS = 64, 512
VGG11_FLOP = 2 * 7.61e9
"""Of one picture of 224 x 224: 7.61 G multiply-adds (torchvision's model table)."""
MATRIX = 8192


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("gpu")
    with Place(folder, Broker(folder / "valkey", appendfsync="everysec")) as made:
        made.store.promote(vgg_version(made, 0), by="bench", why="measured")
        yield made


def seconds_each(work: Callable[[], object], times: int) -> float:
    """Seconds of one run among many, the device waited for at both ends."""
    for _ in range(10):
        work()
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started_s) / times


def pictures_a_second(place: Place) -> float:
    """The engine alone, full batches of frames in the host's memory, as the batcher hands them on."""
    classifier = Classifier(place.store, device="cuda", precision="bf16")
    classifier.load(str(place.store.champion()))
    frames = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), np.uint8)
    return BATCH / seconds_each(lambda: classifier.score(frames), 50)


def test_the_engine_against_the_cards_own_matrix_rate(place: Place, record: Record) -> None:
    """Half of what the card multiplies in bf16, measured here with one large product."""
    a, b = (torch.randn((MATRIX, MATRIX), device="cuda", dtype=torch.bfloat16) for _ in range(2))
    card_flops = 2 * MATRIX**3 / seconds_each(lambda: a @ b, 50)
    rate = pictures_a_second(place)
    share = rate * VGG11_FLOP / card_flops
    record("GPU: engine / the card's bf16 matrix rate", share, ">= 0.5", per_s=round(rate), tflops=card_flops // 1e12)
    assert share >= 0.5


def test_submit_to_verdict_against_the_slower_of_decoding_and_engine(place: Place, record: Record) -> None:
    """The whole line, against the worker's own decoders alone and its engine alone."""
    warm, ids = photographs(place.content, BATCH, seed=1), photographs(place.content, PHOTOGRAPHS, seed=2)
    data = [Path(place.content / content_id).read_bytes() for content_id in ids]
    count = Settings().decoder_count(on_gpu=True)
    with DecoderPool(Preprocessing(), DecodeLimits(), processes=count, timeout_s=30, memory_bytes=2**30) as decoders:
        decoders.submit(data[0]).result()
        started_s = time.perf_counter()
        for future in [decoders.submit(picture) for picture in data]:
            future.result()
        decode = PHOTOGRAPHS / (time.perf_counter() - started_s)
    engine = pictures_a_second(place)
    worker = place.start_worker(app=VGG, device="cuda", precision="bf16")
    warmed(place, worker, warm)
    started_s = time.perf_counter()
    place.judge(ids, 300)
    ours = PHOTOGRAPHS / (time.perf_counter() - started_s)
    slower = min(decode, engine)
    record("GPU: submit to verdict / slower of decode, engine", ours / slower, ">= 0.9", ours=round(ours),
           decode=round(decode), engine=round(engine))  # fmt: skip
    assert ours / slower >= 0.9
