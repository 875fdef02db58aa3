"""Wide 3 x 3 convolutions in float32 with fewer multiplications, on processors where that is the quicker way.

oneDNN convolves directly below AVX-512. NNPACK, which PyTorch carries, uses Winograd's and Fourier's algorithms: half
the work for VGG's wide layers, in float32 and to its precision. Knows nothing of what is convolved.
"""

from typing import Final

import torch
from torch import Tensor, nn

CHANNELS_FROM: Final = 128
"""Input channels from which it is quicker: VGG-11's second layer, with 64, takes as long either way."""

BATCH_FROM: Final = 16
"""PyTorch takes NNPACK for batches of at least so many, and something slow for smaller ones."""


def pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether wide convolutions are quicker that way on `device` in `dtype`."""
    available: bool = torch.backends.nnpack.is_available()
    if device.type != "cpu" or dtype != torch.float32 or not available:
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx2")) and not capabilities.get("avx512_f")


def install(module: nn.Module) -> None:
    """Replace the wide 3 x 3 convolutions inside `module`, which is for inference only."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and _is_wide(child):
            setattr(module, name, _Wide(child))
        else:
            install(child)


def _is_wide(layer: nn.Conv2d) -> bool:
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    return plain and layer.kernel_size == (3, 3) and layer.in_channels >= CHANNELS_FROM


class _Wide(nn.Module):
    """A convolution that lets NNPACK have batches which are large enough."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer.to(memory_format=torch.contiguous_format)

    def forward(self, inputs: Tensor) -> Tensor:
        # The switch is the process's, not the thread's: another thread's layers are only slower meanwhile. The
        # context manager for it would also touch a switch that warns on stderr.
        before = bool(torch.backends.mkldnn.enabled)
        _switch_onednn(before and len(inputs) < BATCH_FROM)
        try:
            outputs: Tensor = self.layer(inputs.contiguous())
        finally:
            _switch_onednn(before)
        return outputs


def _switch_onednn(on: bool) -> None:
    torch.backends.mkldnn.enabled = on  # type: ignore[assignment]  # a descriptor of torch's, whose setter has no type
