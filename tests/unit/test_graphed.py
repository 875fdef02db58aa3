"""CUDA graphs of a small body: on a GPU where there is one, and everywhere on a stand-in for its graphs."""

import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support import cuda_stand_in
from worker.model import devices
from worker.model.engine import DTYPES, EagerEngine
from worker.model.graphed import WARM_UPS, GraphedEngine, sizes
from worker.model.preprocessing import Preprocessing

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device: this is a GPU's")
MOST = 12


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=on_a_gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device whose graphs are tried."""
    if request.param != "cuda":
        return cuda_stand_in.put_in_place(monkeypatch)
    gpu = torch.device("cuda")
    if not devices.native_bf16(gpu):
        pytest.skip("this GPU does not multiply bf16 natively, and no worker serves with graphs there")
    return gpu


Hook = Callable[[Tensor, Tensor], Tensor]


class Body(nn.Module):
    """Two convolutions and a pool: what a capture has to get right, small.

    In the first capture, that of the most images, `captured` makes its features from what they would be, and from what
    they were in the warm-up before, which saw the same frames.
    """

    def __init__(self, captured: Hook = lambda features, before: features) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(2))
        self._captured = captured
        self._made: list[Tensor] = []  # a graph may read them

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 64]."""
        features = self.layers(pixels).flatten(1)
        self._made.append(features)
        return self._captured(features, self._made[-2]) if len(self._made) == WARM_UPS + 1 else features


def on(device: torch.device, precision: str, body: nn.Module) -> nn.Sequential:
    """As the classifier makes a body ready."""
    ready = nn.Sequential(body, nn.Identity()).eval().requires_grad_(False)
    return ready.to(device, DTYPES[precision], memory_format=torch.channels_last)


def graphs_of(body: nn.Module, device: torch.device, precision: str = "fp32") -> GraphedEngine:
    """A body of one's own, which nothing else holds, as graphs."""
    return GraphedEngine(on(device, precision, body), device, precision, Preprocessing(), MOST)


def made(device: torch.device, precision: str) -> tuple[EagerEngine, GraphedEngine]:
    """The same weights run eagerly and as graphs."""
    eager = EagerEngine(on(device, precision, Body()), device, precision, Preprocessing())
    return eager, graphs_of(Body(), device, precision)


def frames(count: int, seed: int) -> np.ndarray:
    """So many random frames."""
    return np.random.default_rng(seed).integers(0, 256, (count, 224, 224, 3), np.uint8)


@pytest.mark.parametrize(
    ("most", "captured"), [(1, [1]), (2, [1, 2]), (12, [1, 2, 4, 8, 12]), (64, [2**p for p in range(7)])]
)
def test_sizes_are_powers_of_two_and_the_largest(most: int, captured: list[int]) -> None:
    """So that padding at most doubles a batch, and a full one is not padded."""
    assert sizes(most) == captured


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_give_what_the_body_gives(device: torch.device, precision: str) -> None:
    """For every size up to the largest, those between two graphs and those beyond, in any order."""
    eager, graphed = made(device, precision)
    with torch.inference_mode():
        for seed, count in enumerate([1, MOST, 3, MOST + 5, 2, 7, 3 * MOST, 1]):
            batch = frames(count, seed)
            torch.testing.assert_close(graphed.features(batch), eager.features(batch), rtol=0.02, atol=0.02)


def test_batches_in_flight_do_not_mix(device: torch.device) -> None:
    """What was begun keeps its own features while others are begun, by this thread and by another."""
    eager, graphed = made(device, "fp32")
    batches = [frames(1 + seed % MOST, seed) for seed in range(40)]

    def check() -> None:
        with torch.inference_mode():
            begun = [graphed.features(batch) for batch in batches]
            for batch, features in zip(batches, begun, strict=True):
                torch.testing.assert_close(features, eager.features(batch), rtol=0.01, atol=0.01)

    failures: list[BaseException] = []

    def beside() -> None:
        try:
            check()
        except BaseException as error:
            failures.append(error)

    other = threading.Thread(target=beside)
    other.start()
    check()
    other.join()
    assert not failures


def test_the_weights_live_as_long_as_the_graphs(device: torch.device) -> None:
    """Which read them, but hold nothing: whoever made them has let go, and their memory would be given to others."""
    eager, graphed = made(device, "bf16")
    gc.collect()
    others = [torch.full((size,), 255, dtype=torch.uint8, device=device) for size in (1000, 10_000, 30_000_000)]
    batch = frames(MOST, 0)
    with torch.inference_mode():
        torch.testing.assert_close(graphed.features(batch), eager.features(batch), rtol=0.02, atol=0.02)
    assert len(others) == 3


WRONG: dict[str, Hook] = {
    "wrong numbers": lambda features, before: features * 1.2,
    "no numbers": lambda features, before: features / 0,
    "rows exchanged": lambda features, before: features.flip(0),
    "two rows exchanged": lambda features, before: torch.cat([features[1:2], features[:1], features[2:]]),
    "one row wrong": lambda features, before: torch.cat([features[:-2], features[-2:-1] * 1.1, features[-1:]]),
    "padding leaks": lambda features, before: features + (features[-1] - before[-1]),
    "what the capture saw": lambda features, before: before + 0,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_graphs_that_give_something_else_are_refused(device: torch.device, wrong: Hook) -> None:
    """Before they judge a picture, also where they are right on what was there when they were captured."""
    with pytest.raises(RuntimeError, match=f"graph of {MOST} images does not give what the network gives"):
        graphs_of(Body(wrong), device)


def test_a_capture_that_fails_leaves_its_thread_on_the_stream_it_had(device: torch.device) -> None:
    """Or all that this thread does later would run beside the work of the others, on the same memory."""

    def forbidden(features: Tensor, before: Tensor) -> Tensor:
        torch.cuda.synchronize()
        return features

    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="captur"):
        graphs_of(Body(forbidden), device)
    assert torch.cuda.current_stream() == before
