"""CUDA graphs of a small body: on a GPU where there is one, and everywhere on a stand-in for its graphs."""

import gc
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support import cuda_stand_in
from tests.support.worker import REPOSITORY
from worker.model import devices
from worker.model import network as networks
from worker.model.engine import DTYPES, EagerEngine
from worker.model.graphed import WARM_UPS, GraphedEngine, pool_first, sizes
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


def fail_in_a_capture(device: torch.device) -> None:
    """And see that this thread is on the stream that it was on."""

    def forbidden(features: Tensor, before: Tensor) -> Tensor:
        torch.cuda.synchronize()
        return features

    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="captur"):
        graphs_of(Body(forbidden), device)
    assert torch.cuda.current_stream() == before


def test_a_capture_that_fails_leaves_its_thread_on_the_stream_it_had(device: torch.device) -> None:
    """Or all that this thread does later would run beside the work of the others, on the same memory.

    On a GPU in a process of its own, for torch before 2.12 captures nothing more in this one.
    """
    if device.type != "cuda":
        fail_in_a_capture(device)
        return
    script = (
        "import torch\nfrom tests.unit.test_graphed import fail_in_a_capture\nfail_in_a_capture(torch.device('cuda'))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


POOLED: dict[str, tuple[nn.Conv2d, nn.MaxPool2d]] = {
    "as VGG's": (nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2)),
    "unpadded": (nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)),
    "an odd side left over": (nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True)),
    "windows that overlap": (nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.MaxPool2d(3, stride=2, padding=1)),
    "groups": (nn.Conv2d(3, 9, 3, dilation=2, groups=3), nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("conv", "pool"), POOLED.values(), ids=POOLED)
def test_pooling_first_gives_the_same_numbers(conv: nn.Conv2d, pool: nn.MaxPool2d, dtype: torch.dtype) -> None:
    """To the bit, where the bias is added by itself as on CUDA; within rounding where it is added on the way."""
    torch.manual_seed(1)
    body = nn.Sequential(conv, nn.ReLU(), pool).requires_grad_(False).to(dtype)
    pixels = torch.randn(3, 3, 23, 31).to(dtype).contiguous(memory_format=torch.channels_last)
    first = pool_first(body)
    assert len(first) == 1
    made = first(pixels)
    sums = nn.functional.conv2d(pixels, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    assert torch.equal(made, pool(torch.relu(sums + conv.bias.view(1, -1, 1, 1))))
    rounding = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(made, body(pixels), rtol=rounding, atol=rounding)
    pixels[1] = torch.nan
    assert first(pixels)[1].isnan().all() and not first(pixels)[::2].isnan().any()


def test_only_what_is_pooled_is_turned_round() -> None:
    """VGG-11's five pools, each with the convolution before it; all else, and the body that is given, stay."""
    with torch.device("meta"):
        trunk, tail = networks.get("vgg11").split(networks.get("vgg11").build())
        kinds = [type(layer) for layer in trunk[0]]
        turned = pool_first(nn.Sequential(trunk, *tail))
    assert [type(layer).__name__ for layer in turned[0][0]] == [
        "_PoolFirst", "_PoolFirst", *["Conv2d", "ReLU", "_PoolFirst"] * 3
    ]  # fmt: skip
    assert list(turned[1:]) == list(tail)
    assert [type(layer) for layer in trunk[0]] == kinds
    conv, relu, pool = nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2)
    mirrored = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
    for alone in ([conv, relu, pool], [mirrored, relu, pool], [relu, pool], [nn.Conv2d(3, 8, 3), pool], [pool]):
        assert list(pool_first(nn.Sequential(*alone))) == alone


def test_a_body_that_pools_gives_the_same_as_graphs(device: torch.device) -> None:
    """Beside the eager one, which pools last."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 7, 4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(1),
    )  # fmt: skip
    eager = EagerEngine(on(device, "bf16", body), device, "bf16", Preprocessing())
    graphed = GraphedEngine(on(device, "bf16", body), device, "bf16", Preprocessing(), MOST)
    with torch.inference_mode():
        for count in (1, MOST, 5):
            batch = frames(count, count)
            torch.testing.assert_close(graphed.features(batch), eager.features(batch), rtol=0.02, atol=0.02)
