"""Networks by name, and uint8 frames as a network's input.

Knows shapes, layers and numbers; nothing of files, of thresholds, or of pictures' formats.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from worker.errors import WeightsError
from worker.model.labels import LABELS
from worker.model.preprocessing import Preprocessing


@dataclass(frozen=True)
class Network:
    """A network that versions are made of: float32 [N, 3, crop, crop] in, [N, 3] logits in the labels' order out.

    `build` returns it with uninitialised values. `split` returns views (trunk, tail) of one module, with
    module(x) == tail(trunk(x)) and the trunk's output [N, features]. `head` is the dotted name of the Linear
    that ends the tail, which training replaces.
    """

    name: str
    build: Callable[[], nn.Module]
    split: Callable[[nn.Module], tuple[nn.Module, nn.Sequential]]
    head: str

    def shapes(self) -> Mapping[str, torch.Size]:
        """The shape of each tensor of the state dict, by name; allocates nothing."""
        return _shapes(self.build)

    def head_names(self) -> frozenset[str]:
        """The names of the head's tensors, "classifier.6.weight" and "classifier.6.bias" for VGG-11."""
        return frozenset(name for name in self.shapes() if name.rpartition(".")[0] == self.head)


@functools.cache  # 13 ms for VGG-11, several times a champion swap, beside the batch in work
def _shapes(build: Callable[[], nn.Module]) -> Mapping[str, torch.Size]:
    with torch.device("meta"):
        return MappingProxyType({name: tensor.shape for name, tensor in build().state_dict().items()})


_networks: Final[dict[str, Network]] = {}


def register(network: Network) -> None:
    """Makes `network` known under its name; the same name again replaces it."""
    _networks[network.name] = network


def get(name: str) -> Network:
    """The network of that name. Raises WeightsError where there is none."""
    try:
        return _networks[name]
    except KeyError:
        known = ", ".join(sorted(_networks))
        raise WeightsError(f"the network {name!r} is not known here ({known}): update the worker") from None


# Configuration A of Simonyan and Zisserman 2014 (arXiv 1409.1556): channels of each convolution, 0 a max pooling.
_VGG11_LAYERS: Final = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)


class _Vgg11(nn.Module):
    """torchvision's vgg11 tensor for tensor, so that its files fit, without the seconds its import takes."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _VGG11_LAYERS:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, len(LABELS)),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 3] logits."""
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(pixels)), 1))
        return logits


def _build_vgg11() -> nn.Module:
    # Built on meta and then given memory: drawing 129 M random numbers only to overwrite them takes seconds.
    with torch.device("meta"):
        module = _Vgg11()
    return module.to_empty(device="cpu")


def _split_vgg11(module: nn.Module) -> tuple[nn.Module, nn.Sequential]:
    """(trunk to the 25,088 features, classifier with its dropout); both share the module's tensors."""
    features, avgpool, tail = (module.get_submodule(name) for name in ("features", "avgpool", "classifier"))
    if not isinstance(tail, nn.Sequential):
        raise WeightsError("this module is no VGG-11: build it with network.get('vgg11').build()")
    return nn.Sequential(features, avgpool, nn.Flatten(1)), tail


register(Network(name="vgg11", build=_build_vgg11, split=_split_vgg11, head="classifier.6"))


def normalise(frames: Tensor, preprocessing: Preprocessing, dtype: torch.dtype) -> Tensor:
    """uint8 [N, H, W, 3] to (x / 255 - mean) / std of `dtype`, [N, 3, H, W] in channels_last, on the same device.

    Computed in float32 whatever `dtype` is: the same numbers as torchvision's ToTensor and Normalize.
    """
    mean, std = _channels(preprocessing.mean, frames.device), _channels(preprocessing.std, frames.device)
    # NHWC bytes permuted to NCHW already lie in channels_last, so nothing is rearranged.
    pixels = frames.permute(0, 3, 1, 2).to(torch.float32).div_(255).sub_(mean).div_(std)
    return pixels.to(dtype).contiguous(memory_format=torch.channels_last)


@functools.cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[1, 3, 1, 1], once a device: a copy from the host would wait for it in every batch, and ends a graph capture."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1)


def check_tensors(network: Network, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises WeightsError unless each tensor is one of the network's, of its shape, and finite.

    `where` names the file in the error's sentence.
    """
    shapes = network.shapes()
    for name, tensor in tensors.items():
        if tensor.shape != shapes.get(name):
            expected = tuple(shapes[name]) if name in shapes else "no such tensor"
            raise WeightsError(
                f"{where} has {name} of shape {tuple(tensor.shape)} where {network.name} has {expected}: it "
                "belongs to another network"
            )
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{where} has values in {name} that are not finite: train or copy it again")
