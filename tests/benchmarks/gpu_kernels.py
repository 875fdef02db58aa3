"""What cuDNN leaves to kernels of their own around VGG's convolutions, as Triton kernels: each reads and writes once.

Tensors are [N, C, H, W] in channels_last, so that a pixel's channels, a power of two of them, lie side by side. Sums
are taken in float32 and rounded once. For `gpu_variants` alone: no worker runs them.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE: Final = 4096
"""Numbers that one program writes: 8 a thread, 16 bytes of bf16, with as many loads under way as a pool has inputs."""
CHANNELS: Final = 8
"""Of a picture on the device, three of them used: what tensor cores take at a time."""


@triton.jit
def _prepare(frames, pixels, mean, std, count, PIXELS: tl.constexpr, WIDE: tl.constexpr):
    pixel = (tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS))[:, None]
    channel = tl.arange(0, WIDE)[None, :]
    colour = (channel < 3) & (pixel < count)
    value = tl.load(frames + pixel * 3 + channel, mask=colour, other=0).to(tl.float32)
    less = tl.load(mean + channel, mask=channel < 3, other=0.0)
    by = tl.load(std + channel, mask=channel < 3, other=1.0)
    value = tl.div_rn(tl.div_rn(value, 255.0) - less, by)  # rounded as torch divides, not a product by the inverse
    value = tl.where(channel < 3, value, 0.0).to(pixels.dtype.element_ty)
    tl.store(pixels + pixel * WIDE + channel, value, mask=pixel < count)


@triton.jit
def _larger(one, other):
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _pool_bias_relu(x, bias, y, count, WIDTH: tl.constexpr, C: tl.constexpr, PIXELS: tl.constexpr):
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, C)[None, :]
    row, column = pixel // WIDTH, pixel % WIDTH  # a row of y among those of all images
    upper = x + ((row * 2 * WIDTH + column) * 2 * C)[:, None] + channel
    lower = upper + 2 * WIDTH * C
    mask = (pixel < count)[:, None]
    above = _larger(tl.load(upper, mask=mask), tl.load(upper + C, mask=mask))
    below = _larger(tl.load(lower, mask=mask), tl.load(lower + C, mask=mask))
    value = _larger(above, below).to(tl.float32) + tl.load(bias + channel).to(tl.float32)
    tl.store(y + pixel[:, None] * C + channel, _larger(value, 0.0).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _bias_relu(x, bias, count, C: tl.constexpr, PIXELS: tl.constexpr):
    pixel = (tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS))[:, None]
    channel = tl.arange(0, C)[None, :]
    at = x + pixel * C + channel
    value = tl.load(at, mask=pixel < count).to(tl.float32) + tl.load(bias + channel).to(tl.float32)
    tl.store(at, _larger(value, 0.0).to(x.dtype.element_ty), mask=pixel < count)


def prepare(frames: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [N, H, W, 3] to (x / 255 - mean) / std, [N, 8, H, W]: five channels of zeros behind the colours."""
    count, pixels = frames.numel() // 3, TILE // CHANNELS
    made = torch.empty((*frames.shape[:3], CHANNELS), dtype=dtype, device=frames.device)
    _prepare[(triton.cdiv(count, pixels),)](frames, made, mean, std, count, PIXELS=pixels, WIDE=CHANNELS)
    return made.permute(0, 3, 1, 2)


def pool_bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    """relu(max_pool2d(x, 2) + bias), for even sides."""
    n, c, h, w = x.shape
    assert h % 2 == w % 2 == 0 and x.is_contiguous(memory_format=torch.channels_last)
    made = torch.empty((n, h // 2, w // 2, c), dtype=x.dtype, device=x.device)
    count, pixels = made.numel() // c, max(1, TILE // c)
    _pool_bias_relu[(triton.cdiv(count, pixels),)](x, bias, made, count, WIDTH=w // 2, C=c, PIXELS=pixels)
    return made.permute(0, 3, 1, 2)


def bias_relu_(x: Tensor, bias: Tensor) -> Tensor:
    """relu(x + bias), in place."""
    assert x.is_contiguous(memory_format=torch.channels_last)
    c = x.shape[1]
    count, pixels = x.numel() // c, max(1, TILE // c)
    _bias_relu[(triton.cdiv(count, pixels),)](x, bias, count, C=c, PIXELS=pixels)
    return x
