"""The serving benchmarks where CUDA is found: the engine against the card, and the line against its slower half."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tests.benchmarks.conftest import Record
from tests.benchmarks.forms import CUDA, Used, on_a_gpu, under_other_names
from tests.benchmarks.serving import drain_rate, photographs, server, vgg_version
from tests.support.place import Place
from worker.classifier import Classifier, Scores
from worker.decode import DecoderPool
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits
from worker.settings import Settings

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), on_a_gpu]

BATCH = 64
GRAPHS = (1, 8, 64, 128, 256)
ENGINE_S, LINE_S = 2.0, 10.0
DECODED = 4096
VGG11_FLOP = 2 * 7.605e9
"""Of one picture of 224 x 224: 7.605 G multiply-adds without the last layer's."""
MATRIX, PRODUCTS = 8192, 500


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("gpu")
    with Place(folder, server(folder)) as made:
        made.store.promote(vgg_version(made, 0), by="bench", why="measured")
        yield made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of torch's on the CPU, as a worker beside a GPU has; others in this process get theirs back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def card_flops() -> float:
    """What the card multiplies in bf16, in one large product after the other."""
    a, b = (torch.randn((MATRIX, MATRIX), device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    for _ in range(PRODUCTS):
        a @ b
    torch.cuda.synchronize()
    return 2 * MATRIX**3 * PRODUCTS / (time.perf_counter() - started_s)


def pictures_a_second(classifier: Classifier, batch: int) -> float:
    """Full batches of frames in the host's memory through the engine in service, and as many of them begun before the
    first is waited for as the batcher begins."""
    frames = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    begun: deque[Callable[[], Scores]] = deque()

    def run(seconds: float) -> float:
        started_s, batches = time.perf_counter(), 0
        while time.perf_counter() - started_s < seconds:
            begun.append(classifier.begin(frames))
            if len(begun) >= classifier.in_flight:
                begun.popleft()()
            batches += 1
        while begun:
            begun.popleft()()
        return batches * batch / (time.perf_counter() - started_s)

    run(ENGINE_S / 4)
    return run(ENGINE_S)


def with_graphs(place: Place, most: int) -> Classifier:
    """The engine alone, as a worker comes to serve with it."""
    classifier = Classifier(place.store, device="cuda", precision="bf16")
    version = classifier.load(str(place.store.champion()))
    assert classifier.use(classifier.graphed(version, "bf16", most), version.id)
    return classifier


def decoded_a_second(data: list[bytes]) -> float:
    """The worker's own decoders alone, all of them warm."""
    count = Settings().decoder_count(on_gpu=True)
    with DecoderPool(Preprocessing(), DecodeLimits(), processes=count, timeout_s=30, memory_bytes=2**30) as decoders:

        def round_s(pictures: list[bytes]) -> float:
            started_s = time.perf_counter()
            for future in [decoders.submit(picture) for picture in pictures]:
                future.result()
            return time.perf_counter() - started_s

        round_s(data * math.ceil(4 * count / len(data)))
        many = data * math.ceil(DECODED / len(data))
        return len(many) / round_s(many)


def test_the_engines_against_the_cards_own_matrix_rate(place: Place, record: Record) -> None:
    """Half of what the card multiplies in bf16, measured here with one large product, before and after."""
    before = card_flops()
    rates: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        eager = Classifier(place.store, device="cuda", precision=precision)
        eager.load(str(place.store.champion()))
        rates[f"{precision} eager, {BATCH} images"] = pictures_a_second(eager, BATCH)
        del eager
    graphs = with_graphs(place, max(GRAPHS))
    for images in GRAPHS:
        rates[f"bf16 graph, {images} images"] = pictures_a_second(graphs, images)
    after = card_flops()
    card = (before + after) / 2
    for engine, rate in rates.items():
        record(f"GPU: {engine}: share of the card's bf16 rate", rate * VGG11_FLOP / card, "-", per_s=round(rate))
    best = max(rates.values()) * VGG11_FLOP / card
    record("GPU: best engine / the card's bf16 matrix rate", best, ">= 0.5", tflops_before=before // 1e12,
           tflops_after=after // 1e12)  # fmt: skip
    assert best >= 0.5


def test_submit_to_verdict_against_the_slower_of_decoding_and_engine(place: Place, record: Record) -> None:
    """The whole line with captured graphs, for some ten seconds, against its two halves alone."""
    photos = photographs(place.content, CUDA.photographs, seed=2)
    decode = decoded_a_second([(place.content / content_id).read_bytes() for content_id in photos])
    engine = pictures_a_second(with_graphs(place, BATCH), BATCH)
    slower = min(decode, engine)
    torch.cuda.empty_cache()
    worker = CUDA.start(place, warm=1)
    names = under_other_names(place, photos, math.ceil(LINE_S * slower / len(photos)))
    used = Used(place, worker)
    ours = drain_rate(place, names)
    record("GPU: submit to verdict / slower of decode, engine", ours / slower, ">= 0.9", ours=round(ours),
           decode=round(decode), engine=round(engine), **used.a_picture(len(names)))  # fmt: skip
    assert ours / slower >= 0.9
