"""The int8 body: quantised by fixed ranges, and made of nothing but operators that a compiled library can call."""

import numpy as np
import pytest
import torch
from torch import nn

from worker.errors import WeightsError
from worker.model import int8
from worker.model.preprocessing import Preprocessing

EDGE = 20


def body() -> nn.Sequential:
    """Convolutions with pools between them: even sizes, an odd one, and one that overlaps."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 1), nn.ReLU(), nn.MaxPool2d(3, stride=1),
        nn.Flatten(1), nn.Linear(16, 5), nn.ReLU(),
    ).eval()  # fmt: skip


def quantised(subject: nn.Module, ranges: int8.Ranges) -> nn.Module:
    example = torch.zeros(4, 3, EDGE, EDGE).contiguous(memory_format=torch.channels_last)
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    return int8.quantised(subject, example, shapes, ranges)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, EDGE, EDGE, 3), np.uint8)


def test_pools_are_spelt_out_and_give_what_pools_give(frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantised pool has no C interface. The same body with pools put back, value by value, is the reference."""
    subject = body()
    ranges = int8.calibrate(subject, frames, Preprocessing(resize=EDGE, crop=EDGE))
    made = quantised(subject, ranges)
    assert not list(made.graph.find_nodes(op="call_function", target=torch.ops.aten.max_pool2d.default))
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.225
    with torch.no_grad():
        given, exact = made(pixels), subject(pixels)
    assert given.shape == exact.shape == (32, 5)
    assert float((given - exact).abs().max()) < 0.1 * float(exact.abs().max())
    monkeypatch.setattr(int8, "_spell_out_pools", lambda converted: None)
    with torch.no_grad():
        assert torch.equal(given, quantised(subject, ranges)(pixels))


def test_a_body_without_ranges_is_refused_with_the_layers_name() -> None:
    with pytest.raises(WeightsError, match="no int8 range for"):
        quantised(body(), {int8.INPUT: (-2.0, 2.0)})
