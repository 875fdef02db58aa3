"""The tiny network on a device that stops answering once it has warmed up."""

import threading

from torch import Tensor, nn

from tests.tiny_network import TINY
from worker.app import app
from worker.model import network


class _Hanging(nn.Module):
    passes = 0

    def forward(self, pixels: Tensor) -> Tensor:
        _Hanging.passes += 1
        if _Hanging.passes > 1:
            threading.Event().wait()
        return pixels


def _split(module: nn.Module) -> tuple[nn.Module, nn.Sequential]:
    trunk, tail = TINY.split(module)
    return nn.Sequential(_Hanging(), trunk), tail


network.register(network.Network(name="tiny", build=TINY.build, split=_split, head=TINY.head))

__all__ = ["app"]
