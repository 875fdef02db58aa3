"""A body on CUDA captured as graphs: one launch a batch instead of one a kernel, and copies beside the work.

uint8 frames go into pinned memory, over a stream of their own to the device, and into the graph of the next larger
size; the float32 inputs of the last layer come out. A batch is padded by what the memory holds from before, which no
row of the others depends on. (CUDA graphs: docs.nvidia.com, CUDA C++ Programming Guide, section CUDA Graphs.)
"""

import itertools
import threading
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from worker.model import network as networks
from worker.model.engine import DTYPES, Frames
from worker.model.preprocessing import Preprocessing

IN_FLIGHT: Final = 2
"""Batches on the device at a time: one is copied while the other is computed."""

WARM_UPS: Final = 3
"""Runs before a capture, which libraries use to set themselves up."""

ASTRAY_MAX: Final = 0.05
"""How far a graph's features of one image may lie from the body's own, as a share of their length: far more than bf16
rounds, and far less than what a graph that reads wrong memory gives."""

BLOCKS: Final = 8
"""A side of the pictures that graphs are compared on: few large blocks of any colours. Noise is the same grey to the
convolutions wherever it lies, so that nobody would see two pictures of it exchanged."""


def sizes(most: int) -> list[int]:
    """The batch sizes that graphs are captured for, ascending: powers of two up to `most`, and `most`."""
    powers = itertools.takewhile(lambda size: size < most, (2**power for power in itertools.count()))
    return [*powers, most]


@dataclass(frozen=True)
class _Graph:
    graph: "torch.cuda.CUDAGraph"
    frames: Tensor  # uint8 [size, crop, crop, 3], read by the graph
    features: Tensor  # float32 [size, width], overwritten by every replay


class _Slot:
    """Where one batch waits for its turn; `free` once the graph has its frames."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.frames = torch.empty(shape, dtype=torch.uint8, device=device)
        self.copied = torch.cuda.Event()
        self.free = torch.cuda.Event(blocking=True)  # a thread that waits in a loop takes a core that decodes


class GraphedEngine:
    """`most`: images in one forward pass; more are run in several. May be asked by several threads, one at a time.

    Raises RuntimeError where the body cannot be captured, or its graphs do not give what it gives itself, and
    torch.OutOfMemoryError where they do not fit.
    """

    def __init__(
        self, body: nn.Module, device: torch.device, precision: str, preprocessing: Preprocessing, most: int
    ) -> None:
        self.name = f"{device.type}-{precision}"
        self._device, self._most = device, most
        self._body = pool_first(body)  # kept, for a graph knows addresses only, and holds no weights
        self._preprocessing, self._dtype = preprocessing, DTYPES[precision]
        self._lock = threading.Lock()
        self._shape = (most, preprocessing.crop, preprocessing.crop, 3)
        self._graphs: dict[int, _Graph] = {}
        with torch.cuda.device(device), torch.no_grad():
            self._copying = torch.cuda.Stream()
            self._replayed = torch.cuda.Event()
            self._slots = itertools.cycle([_Slot(self._shape, device) for _ in range(IN_FLIGHT)])
            self._capture_all()
            self._compare_all(body)

    @property
    def captured(self) -> list[int]:
        """Images of each graph, ascending."""
        return sorted(self._graphs)

    def features(self, frames: Frames) -> Tensor:
        """As `Engine.features`; returns before the device has computed them."""
        with self._lock, torch.cuda.device(self._device):
            parts = [self._replay(frames[at : at + self._most]) for at in range(0, len(frames), self._most)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _replay(self, frames: Frames) -> Tensor:
        count, slot, work = len(frames), next(self._slots), torch.cuda.current_stream()
        slot.free.synchronize()
        slot.pinned[:count].copy_(torch.from_numpy(frames))
        with torch.cuda.stream(self._copying):
            slot.frames[:count].copy_(slot.pinned[:count], non_blocking=True)
            slot.copied.record()
        work.wait_event(slot.copied)
        work.wait_event(self._replayed)  # threads may ask on streams of their own; the graphs' memory is one for all
        one = self._graphs[min(size for size in self._graphs if size >= count)]
        one.frames[:count].copy_(slot.frames[:count])
        slot.free.record(work)
        one.graph.replay()
        features = one.features[:count].clone()
        self._replayed.record(work)
        return features

    def _capture_all(self) -> None:
        aside = torch.cuda.Stream()  # one for all: what one graph frees, only another on its stream may use
        aside.wait_stream(torch.cuda.current_stream())
        # Entered here, for torch leaves a thread on the stream of a capture that fails.
        with torch.cuda.stream(aside):
            for size in reversed(sizes(self._most)):  # the largest first: the others find room in its memory
                frames = torch.randint(0, 256, (size, *self._shape[1:]), dtype=torch.uint8, device=self._device)
                for _ in range(WARM_UPS):
                    self._run(self._body, frames)
                self._graphs[size] = self._capture(frames, aside)
        torch.cuda.current_stream().wait_stream(aside)

    def _capture(self, frames: Tensor, aside: "torch.cuda.Stream") -> _Graph:
        graph = torch.cuda.CUDAGraph()
        first = next(iter(self._graphs.values()), None)
        pool = first.graph.pool() if first is not None else None
        # thread_local: the batches that are served meanwhile by another thread are none of the capture's business.
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            features = self._run(self._body, frames)
        return _Graph(graph, frames, features)

    def _run(self, body: nn.Module, frames: Tensor) -> Tensor:
        features: Tensor = body(networks.normalise(frames, self._preprocessing, self._dtype)).float()
        return features

    def _compare_all(self, body: nn.Module) -> None:
        """With `body` itself: every graph full, and with a row of padding, on frames that were not there at its
        capture, row by row and the way that batches take. Once all are captured, for they share memory."""
        rng = np.random.default_rng(0)
        for size in self._graphs:
            for count in {size, max(1, size - 1)}:
                frames = blocks(rng, count, self._preprocessing.crop)
                expected = self._run(body, torch.from_numpy(frames).to(self._device))
                astray = (self.features(frames) - expected).norm(dim=1)
                if not bool((astray <= ASTRAY_MAX * expected.norm(dim=1)).all()):  # nor where it is no number
                    raise RuntimeError(f"the graph of {size} images does not give what the network gives for {count}")


class _PoolFirst(nn.Module):
    """pool(relu(conv(x))), pooled before the bias is added and what is negative cut off: of a quarter of the numbers.

    cuDNN's convolutions leave the bias to a kernel of its own, so nothing else changes: to round, to add the same and
    to cut off keep the order of numbers, and so may as well follow the maximum.
    """

    def __init__(self, conv: nn.Conv2d, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.conv, self.pool = conv, pool

    def forward(self, pixels: Tensor) -> Tensor:
        conv = self.conv
        assert conv.bias is not None
        sums = nn.functional.conv2d(pixels, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        pooled: Tensor = self.pool(sums)
        return pooled.add_(conv.bias.view(1, -1, 1, 1)).relu_()


def pool_first(body: nn.Module) -> nn.Module:
    """`body`, sharing its tensors, with each convolution, ReLU and max pooling in a row as one `_PoolFirst`."""
    if not isinstance(body, nn.Sequential):
        return body
    layers: list[nn.Module] = []
    for layer in map(pool_first, body):
        match [*layers[-2:], layer]:
            case [nn.Conv2d(padding_mode="zeros", bias=Tensor()) as conv, nn.ReLU(), nn.MaxPool2d() as pool]:
                layers[-2:] = [_PoolFirst(conv, pool)]
            case _:
                layers.append(layer)
    return nn.Sequential(*layers)


def blocks(rng: np.random.Generator, count: int, crop: int) -> Frames:
    """Pictures [count, crop, crop, 3] to compare engines on."""
    side = -(-crop // BLOCKS)
    grid = rng.integers(0, 256, (count, BLOCKS, BLOCKS, 3), np.uint8)
    return np.ascontiguousarray(grid.repeat(side, axis=1).repeat(side, axis=2)[:, :crop, :crop])
