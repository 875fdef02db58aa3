"""The tiny network with one picture that kills the process that judges it: magenta from edge to edge."""

import os
import signal

import torch
from torch import Tensor, nn

from tests.tiny_network import TINY
from worker.app import app
from worker.model import network

DEADLY = (255, 0, 255)


class _Deadly(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        means = pixels.amin(dim=(2, 3))
        if torch.any((means[:, 0] > 2) & (means[:, 1] < -1) & (means[:, 2] > 2)):
            os.kill(os.getpid(), signal.SIGKILL)
        return pixels


def _split(module: nn.Module) -> tuple[nn.Module, nn.Sequential]:
    trunk, tail = TINY.split(module)
    return nn.Sequential(_Deadly(), trunk), tail


network.register(network.Network(name="tiny", build=TINY.build, split=_split, head=TINY.head))

__all__ = ["app"]
