"""A network of 400 parameters in VGG-11's place: the same structure, trunk, tail and head, in a millisecond."""

import torch
from torch import Tensor, nn

from worker.model import network


class Tiny(nn.Module):
    """Means over a 4 x 4 grid (48 features), then a classifier with dropout, like VGG's."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(4))
        self.classifier = nn.Sequential(nn.Linear(48, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 3] logits."""
        logits: Tensor = self.classifier(torch.flatten(self.features(pixels), 1))
        return logits


def _split(module: nn.Module) -> tuple[nn.Module, nn.Sequential]:
    assert isinstance(module, Tiny)
    return nn.Sequential(module.features, nn.Flatten(1)), module.classifier


TINY = network.Network(name="tiny", build=Tiny, split=_split, head="classifier.3")
"""Call `network.register(TINY)` before a store or a classifier is to know it."""
