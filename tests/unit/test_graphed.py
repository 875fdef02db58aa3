"""CUDA graphs of a small body, where there is a CUDA device; and what they are captured for, anywhere."""

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worker.model.engine import EagerEngine
from worker.model.graphed import GraphedEngine, sizes
from worker.model.preprocessing import Preprocessing

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device: this is a GPU's")
MOST = 12


class Body(nn.Module):
    """Two convolutions and a pool: what a capture has to get right, small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(2))

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 64]."""
        return self.layers(pixels).flatten(1)


def made(precision: str) -> tuple[EagerEngine, GraphedEngine]:
    """The same body run eagerly and as graphs."""
    device, how = torch.device("cuda"), Preprocessing()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    body = nn.Sequential(Body(), nn.Identity()).eval().requires_grad_(False)
    body = body.to(device, dtype, memory_format=torch.channels_last)
    return EagerEngine(body, device, precision, how), GraphedEngine(body, device, precision, how, MOST)


def frames(count: int, seed: int) -> np.ndarray:
    """So many random frames."""
    return np.random.default_rng(seed).integers(0, 256, (count, 224, 224, 3), np.uint8)


@pytest.mark.parametrize(
    ("most", "captured"), [(1, [1]), (2, [1, 2]), (12, [1, 2, 4, 8, 12]), (64, [2**p for p in range(7)])]
)
def test_sizes_are_powers_of_two_and_the_largest(most: int, captured: list[int]) -> None:
    """So that padding at most doubles a batch, and a full one is not padded."""
    assert sizes(most) == captured


@on_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_give_what_the_body_gives(precision: str) -> None:
    """For every size up to the largest, those between two graphs and those beyond, in any order."""
    eager, graphed = made(precision)
    with torch.inference_mode():
        for seed, count in enumerate([1, MOST, 3, MOST + 5, 2, 7, 3 * MOST, 1]):
            batch = frames(count, seed)
            torch.testing.assert_close(graphed.features(batch), eager.features(batch), rtol=0.02, atol=0.02)


@on_a_gpu
def test_batches_in_flight_do_not_mix() -> None:
    """What was begun keeps its own features while others are begun, by this thread and by another."""
    eager, graphed = made("fp32")
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
