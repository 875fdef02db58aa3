"""Networks by name, their starting tensors, and frames as their input."""

import pytest
import torch
from torch import nn
from torchvision.models import vgg11
from torchvision.transforms import Compose, Normalize, ToTensor

from tests.tiny_network import TINY
from trainer.bases import random_base
from worker.errors import WeightsError
from worker.model import network
from worker.model.preprocessing import Preprocessing

CPU = torch.device("cpu")


def test_vgg11_is_its_trunk_and_tail() -> None:
    """The trunk yields 25,088 features, the tail three logits, and together they are the network."""
    vgg = network.get("vgg11")
    module = vgg.build()
    head = {"classifier.6.weight": torch.ones(3, 4096), "classifier.6.bias": torch.zeros(3)}
    module.load_state_dict({**random_base(vgg, seed=1), **head}, assign=True)
    module.eval()
    trunk, tail = vgg.split(module)
    pixels = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        features = trunk(pixels)
        assert features.shape == (2, 25_088)
        assert torch.equal(tail(features), module(pixels))
    assert any(isinstance(layer, nn.Dropout) for layer in tail)
    last = list(tail)[-1]
    assert isinstance(last, nn.Linear)
    assert (last.in_features, last.out_features) == (4096, 3)
    assert last is module.get_submodule(vgg.head)


def test_vgg11_is_torchvisions() -> None:
    """Same tensors, same layers in the same order, same logits: its files fit and mean the same."""
    theirs = vgg11(weights=None, init_weights=False, num_classes=3).eval()
    ours = network.get("vgg11").build().eval()
    assert [str(layer) for layer in ours.modules()][1:] == [str(layer) for layer in theirs.modules()][1:]
    ours.load_state_dict(theirs.state_dict(), assign=True)
    pixels = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(ours(pixels), theirs(pixels))


def test_shapes_name_every_tensor_without_memory() -> None:
    """The shapes are those of the state dict; VGG-11 has 128.8 million parameters."""
    shapes = network.get("vgg11").shapes()
    assert sum(shape.numel() for shape in shapes.values()) == 128_778_627
    assert network.get("vgg11").head_names() == {"classifier.6.weight", "classifier.6.bias"}


def test_an_unknown_network_is_refused() -> None:
    """A version of a network that this code does not know is not served."""
    with pytest.raises(WeightsError, match="vgg99"):
        network.get("vgg99")


def test_a_registered_network_is_found() -> None:
    """Networks are added by registering them."""
    network.register(TINY)
    assert network.get("tiny") is TINY


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise_gives_torchvisions_numbers(dtype: torch.dtype) -> None:
    """ToTensor and Normalize of torchvision, in channels_last, from uint8 frames that stay as they are."""
    preprocessing = Preprocessing()
    frames = torch.randint(0, 256, (3, 20, 24, 3), dtype=torch.uint8)
    before = frames.clone()
    pixels = network.normalise(frames, preprocessing, dtype)
    reference = Compose([ToTensor(), Normalize(preprocessing.mean, preprocessing.std)])
    expected = torch.stack([reference(frame.numpy()) for frame in frames]).to(dtype)
    assert pixels.dtype == dtype
    assert torch.equal(pixels, expected)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(frames, before)
