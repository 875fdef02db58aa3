"""The serving benchmarks where CUDA is found: the engine against the card, and the line against its slower half."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tests.benchmarks.conftest import Record
from tests.benchmarks.serving import VGG, drain_rate, photographs, vgg_version, warmed
from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import Broker
from worker.classifier import Classifier, Scores
from worker.decode import DecoderPool
from worker.model import devices
from worker.model.preprocessing import DecodeLimits, Preprocessing
from worker.settings import Settings

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device: these figures are a GPU's"),
]

BATCH, PHOTOGRAPHS = 64, 1024
DECODE_ROUNDS, LINE_S = 4, 10
VGG11_FLOP = 2 * 7.61e9
"""Of one picture of 224 x 224: 7.61 G multiply-adds (torchvision's model table)."""
MATRIX = 8192


@pytest.fixture(scope="module", autouse=True)
def bf16() -> None:
    """Of the GPU's own, which all of these are about."""
    if not devices.native_bf16(torch.device("cuda")):
        pytest.skip("this GPU does not multiply bf16 natively: no figure here is promised for it")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("gpu")
    with Place(folder, Broker(folder / "valkey", appendfsync="everysec")) as made:
        made.store.promote(vgg_version(made, 0), by="bench", why="measured")
        yield made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of torch's on the CPU, as a worker beside a GPU has; others in this process get theirs back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    """The engine alone, as a worker comes to serve with it: full batches of frames in the host's memory, captured
    graphs, and as many batches begun before the first is waited for as the batcher begins."""
    classifier = Classifier(place.store, device="cuda", precision="bf16")
    version = classifier.load(str(place.store.champion()))
    assert classifier.use(classifier.graphed(version, "bf16", BATCH), version.id)
    frames = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), np.uint8)
    begun: deque[Callable[[], Scores]] = deque()

    def batch() -> None:
        begun.append(classifier.begin(frames))
        if len(begun) >= classifier.in_flight:
            begun.popleft()()

    return BATCH / seconds_each(batch, 500)


def decoded_a_second(data: list[bytes]) -> float:
    """The worker's own decoders alone, all of them warm."""
    count = Settings().decoder_count(on_gpu=True)
    with DecoderPool(Preprocessing(), DecodeLimits(), processes=count, timeout_s=30, memory_bytes=2**30) as decoders:

        def round_s() -> float:
            started_s = time.perf_counter()
            for future in [decoders.submit(picture) for picture in data]:
                future.result()
            return time.perf_counter() - started_s

        round_s()
        return DECODE_ROUNDS * len(data) / sum(round_s() for _ in range(DECODE_ROUNDS))


def test_the_engine_against_the_cards_own_matrix_rate(place: Place, record: Record) -> None:
    """Half of what the card multiplies in bf16, measured here with one large product."""
    a, b = (torch.randn((MATRIX, MATRIX), device="cuda", dtype=torch.bfloat16) for _ in range(2))
    card_flops = 2 * MATRIX**3 / seconds_each(lambda: a @ b, 50)
    rate = pictures_a_second(place)
    share = rate * VGG11_FLOP / card_flops
    record("GPU: engine / the card's bf16 matrix rate", share, ">= 0.5", per_s=round(rate), tflops=card_flops // 1e12)
    assert share >= 0.5


def test_submit_to_verdict_against_the_slower_of_decoding_and_engine(place: Place, record: Record) -> None:
    """The whole line with captured graphs, for some ten seconds, against its two halves alone."""
    photos = photographs(place.content, PHOTOGRAPHS, seed=2)
    decode = decoded_a_second([(place.content / content_id).read_bytes() for content_id in photos])
    engine = pictures_a_second(place)
    slower = min(decode, engine)
    torch.cuda.empty_cache()
    worker = place.start_worker(app=VGG, device="cuda", precision="bf16")
    warmed(place, worker, photographs(place.content, BATCH, seed=1))
    wait_until(lambda: "serving with cuda-bf16 now" in worker.log(), "graphs to be captured", 300)
    ours = drain_rate(place, under_other_names(place, photos, math.ceil(LINE_S * slower / PHOTOGRAPHS)))
    record("GPU: submit to verdict / slower of decode, engine", ours / slower, ">= 0.9", ours=round(ours),
           decode=round(decode), engine=round(engine))  # fmt: skip
    assert ours / slower >= 0.9


def under_other_names(place: Place, ids: list[str], times: int) -> list[str]:
    """Each picture under so many IDs more, none twice in a row."""
    names = []
    for turn in range(times):
        for content_id in ids:
            names.append(f"{content_id}x{turn}")
            os.link(place.content / content_id, place.content / names[-1])
    return names
