"""Wide convolutions by another algorithm: the same numbers, whatever the batch."""

import pytest
import torch
from torch import nn

from trainer import winograd


@pytest.mark.parametrize("batch", [3, 20])
def test_the_numbers_are_those_of_the_direct_convolution(batch: int) -> None:
    """To float32's precision for batches that NNPACK takes and for smaller ones; oneDNN stays switched on."""
    torch.manual_seed(0)
    direct = nn.Sequential(nn.Conv2d(128, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, stride=2)).eval()
    other = nn.Sequential(nn.Conv2d(128, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, stride=2)).eval()
    other.load_state_dict(direct.state_dict())
    winograd.install(other)
    inputs = torch.randn(batch, 128, 14, 14).to(memory_format=torch.channels_last)
    before = torch.backends.mkldnn.enabled
    with torch.inference_mode():
        torch.testing.assert_close(other(inputs), direct(inputs), rtol=1e-4, atol=1e-5)
    assert torch.backends.mkldnn.enabled == before


def test_narrow_strided_and_grouped_convolutions_stay_as_they_are() -> None:
    layers = [nn.Conv2d(64, 8, 3), nn.Conv2d(128, 8, 3, stride=2), nn.Conv2d(128, 8, 1), nn.Conv2d(128, 8, 3, groups=2)]
    module = nn.Sequential(*layers, nn.Conv2d(128, 8, 3))
    winograd.install(module)
    assert [child is layer for child, layer in zip(module, layers, strict=False)] == [True] * 4
    assert not isinstance(module[4], nn.Conv2d)


def test_it_pays_on_no_accelerator_and_in_no_other_type() -> None:
    assert not winograd.pays(torch.device("cuda"), torch.float32)
    assert not winograd.pays(torch.device("cpu"), torch.bfloat16)
