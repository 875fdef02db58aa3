"""Ways to run VGG-11's body on one GPU, by turns: the table that decides which of them goes into service.

Served is *pool first*. Another takes its place where it is at least 3 % faster at the batch sizes that a worker has
under load (64 and more), its pictures are right, and its set-up does not keep a start waiting; a Triton kernel also
has to earn a second implementation to be kept right. Each variant is a captured graph, held against float32 on
pictures it has not seen before anything is timed, picture by picture; what is wrong or fails is named, and not timed.
Then all take turns, so that the card's clock hits all of them, and the median of the rounds counts.

python -m tests.benchmarks.gpu_variants [JSON]                 on a GPU
TRITON_INTERPRET=1 python -m tests.benchmarks.gpu_variants --dry    thin, on a CPU: what is right, and no figure
"""

import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pad

from trainer.bases import random_base
from worker.model import devices
from worker.model import engine as engines
from worker.model import network as networks
from worker.model.graphed import ASTRAY_MAX, WARM_UPS, blocks, pool_first
from worker.model.preprocessing import Preprocessing

DRY: Final = "--dry" in sys.argv
DEVICE: Final = torch.device("cpu" if DRY else "cuda")
DTYPE: Final = torch.float32 if DRY else torch.bfloat16
CROP: Final = 16 if DRY else 224
BATCHES: Final = (2,) if DRY else (64, 128, 256)
ROUNDS, ROUND_S = 7, 0.1
VGG11_FLOP: Final = 2 * 7.605e9
MATRIX, PRODUCTS = 8192, 500
PREPARED: Final = Preprocessing(resize=CROP, crop=CROP)
MEAN, STD = (torch.tensor(values, device=DEVICE) for values in (PREPARED.mean, PREPARED.std))

Run = Callable[[Tensor], Tensor]


@functools.cache
def body_of(dtype: torch.dtype) -> nn.Sequential:
    """VGG-11's on random numbers; in the dry form one of its structure with few channels."""
    if not DRY:
        network = networks.get("vgg11")
        return engines.body_of(network, random_base(network, 0), DEVICE, dtype)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, width, pooled in ((3, 8, True), (8, 16, True), (16, 16, False), (16, 16, True)):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if pooled else [])]
    trunk = nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2), nn.Flatten(1))
    body = nn.Sequential(trunk, nn.Linear(64, 32), nn.ReLU()).eval().requires_grad_(False)
    return body.to(dtype, memory_format=torch.channels_last)


class Layers:
    """A VGG's body taken apart: its convolutions, each with whether a pool follows, and what comes after them; the
    first takes eight channels, of which five are nothing."""

    def __init__(self, body: nn.Sequential) -> None:
        kinds = [*body[0][0], None]
        pairs = itertools.pairwise(layer for layer in kinds if not isinstance(layer, nn.ReLU))
        self.convs = [
            (_wide(one.weight), one.bias, isinstance(after, nn.MaxPool2d))
            for one, after in pairs
            if isinstance(one, nn.Conv2d)
        ]
        self.tail = nn.Sequential(*body[0][1:], *body[1:])

    def run(self, prepare: Run, pooled: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Run:
        """The body with these for frames, and for a convolution with a pool behind it and without."""

        def run(frames: Tensor) -> Tensor:
            x = prepare(frames)
            for weight, bias, pool in self.convs:
                x = (pooled if pool else plain)(x, weight, bias)
            features: Tensor = self.tail(x).float()
            return features

        return run


def _wide(weight: Tensor) -> Tensor:
    missing = 8 - weight.shape[1]
    return (
        pad(weight, (0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last) if missing > 0 else weight
    )


def normalised(frames: Tensor) -> Tensor:
    """As a worker has it."""
    return networks.normalise(frames, PREPARED, DTYPE)


def traced(frames: Tensor) -> Tensor:
    """The same in words that a compiler follows."""
    mean, std = (values.view(1, 3, 1, 1) for values in (MEAN, STD))
    pixels = (frames.permute(0, 3, 1, 2).to(torch.float32) / 255 - mean) / std
    return pixels.to(DTYPE).contiguous(memory_format=torch.channels_last)


def eight_channels(frames: Tensor) -> Tensor:
    """The same, and five channels of zeros."""
    return pad(normalised(frames), (0, 0, 0, 0, 0, 5)).contiguous(memory_format=torch.channels_last)


def torch_pooled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `pool_first`."""
    return max_pool2d(conv2d(x, weight, None, padding=1), 2).add_(bias.view(1, -1, 1, 1)).relu_()


def torch_plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As torch's own layers on CUDA."""
    return conv2d(x, weight, None, padding=1).add_(bias.view(1, -1, 1, 1)).relu_()


def cudnn_plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Bias and ReLU in cuDNN's convolution itself."""
    return torch.cudnn_convolution_relu(x, weight, bias, [1, 1], [1, 1], [1, 1], 1)


def variants() -> Iterator[tuple[str, Callable[[], Run]]]:
    """Names, and what makes each ready to run."""
    body = body_of(DTYPE)
    turned, layers = pool_first(body), Layers(body)
    yield "usual order", lambda: lambda frames: body(normalised(frames)).float()
    yield "pool first (served)", lambda: lambda frames: turned(normalised(frames)).float()
    yield "8 channels", lambda: layers.run(eight_channels, torch_pooled, torch_plain)
    if not DRY:
        yield "8 channels, cuDNN's bias and ReLU", lambda: layers.run(eight_channels, torch_pooled, cudnn_plain)
        yield "inductor", lambda: torch.compile(lambda frames: body(traced(frames)).float(), dynamic=False)
        yield "inductor, pool first", lambda: torch.compile(lambda f: turned(traced(f)).float(), dynamic=False)
    try:
        from tests.benchmarks import gpu_kernels as kernels
    except ImportError as error:
        print(f"no Triton here, so none of its variants: {error}")
        return

    def prepare(frames: Tensor) -> Tensor:
        return kernels.prepare(frames, MEAN, STD, DTYPE)

    def pooled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.pool_bias_relu(conv2d(x, weight, None, padding=1), bias)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.bias_relu_(conv2d(x, weight, None, padding=1), bias)

    yield "Triton", lambda: layers.run(prepare, pooled, plain)
    if not DRY:
        yield "Triton, cuDNN's bias and ReLU", lambda: layers.run(prepare, pooled, cudnn_plain)


class Memory:
    """One pool for all graphs of a batch size, which are replayed one after the other, and the stream it belongs to."""

    def __init__(self) -> None:
        if not DRY:
            self._aside, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def capture(self, run: Run, frames: Tensor) -> tuple[Callable[[], object], Tensor]:
        """A graph's replay, and where it leaves its features; without a GPU the call itself."""
        if DRY:
            made = run(frames)
            return lambda: made.copy_(run(frames)), made
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            for _ in range(WARM_UPS):
                run(frames)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._aside):
                made = run(frames)
        torch.cuda.current_stream().wait_stream(self._aside)
        return graph.replay, made


class Subject:
    """A variant at a batch size and its line of the table: `astray` is the picture's that is furthest from float32."""

    def __init__(
        self, name: str, make: Callable[[], Run], memory: Memory, frames: Tensor, fresh: Tensor, expected: Tensor
    ) -> None:
        self.line: dict[str, object] = {"variant": name, "batch": len(frames)}
        self.seconds: list[float] = []
        self.replay: Callable[[], object] | None = None
        started_s = time.perf_counter()
        try:
            replay, made = memory.capture(make(), frames)
            frames.copy_(fresh)
            replay()
            astray = float(((made - expected).norm(dim=1) / expected.norm(dim=1)).max())
        except Exception as error:  # the others may work
            self.line["error"] = f"{type(error).__name__}: {error}"[:300]
            return
        self.line |= {"astray": round(astray, 5), "set_up_s": round(time.perf_counter() - started_s, 1)}
        if not astray <= ASTRAY_MAX:
            self.line["error"] = "wrong"
            return
        self.replay = replay
        first_s = _seconds_each(replay, 3)
        self._times = max(1, round(ROUND_S / first_s))
        self.line["first_ms"] = round(1000 * first_s, 3)

    def turn(self) -> None:
        """One round, where it works."""
        if self.replay is not None:
            self.seconds.append(_seconds_each(self.replay, self._times))

    def result(self, card_flops: float) -> dict[str, object]:
        """Its line, with the share of the card's rate."""
        if self.replay is not None:
            each_s, batch = statistics.median(self.seconds), int(str(self.line["batch"]))
            spread = (max(self.seconds) - min(self.seconds)) / each_s
            self.line |= {"ms": round(1000 * each_s, 3), "images_s": round(batch / each_s), "spread": round(spread, 3),
                          "share": round(batch / each_s * VGG11_FLOP / card_flops, 3)}  # fmt: skip
        return self.line


def _seconds_each(work: Callable[[], object], times: int) -> float:
    _wait()
    started_s = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return (time.perf_counter() - started_s) / times


def _wait() -> None:
    if not DRY:
        torch.cuda.synchronize()


def card_flops() -> float:
    """The card's own rate in bf16: one large product, over and over."""
    side, times = (64, 1) if DRY else (MATRIX, PRODUCTS)
    a, b = (torch.randn((side, side), device=DEVICE, dtype=DTYPE) for _ in range(2))
    _seconds_each(lambda: a @ b, min(10, times))
    return 2 * side**3 / _seconds_each(lambda: a @ b, times)


def compare(batch: int) -> list[dict[str, object]]:
    """The lines of one batch size."""
    exact = body_of(torch.float32)
    frames, fresh = (torch.from_numpy(blocks(np.random.default_rng(seed), batch, CROP)).to(DEVICE) for seed in range(2))
    parts = [exact(networks.normalise(part, PREPARED, torch.float32)) for part in fresh.split(32)]
    expected = torch.cat(parts)
    subjects, memory = [], Memory()
    for searched in (False,) if DRY else (False, True):
        torch.backends.cudnn.benchmark = searched
        for name, make in variants():
            named = f"{name}, cuDNN searches" if searched else name
            subjects.append(Subject(named, make, memory, frames.clone(), fresh, expected))
            # Compilers take minutes, and whoever ends this before the turns has these.
            print(json.dumps(subjects[-1].line), file=sys.stderr, flush=True)
    before = card_flops()
    for _ in range(1 if DRY else ROUNDS):
        for subject in subjects:
            subject.turn()
    card = (before + card_flops()) / 2
    return [subject.result(card) | {"tflops": card // 1e12} for subject in subjects]


def main() -> int:
    """0 where no variant failed or was wrong, which a dry form must show; on a GPU the table may have gaps."""
    if not DRY:
        devices.choose("cuda")
    (path, *_) = [*(Path(word) for word in sys.argv[1:] if not word.startswith("--")), None]
    lines: list[dict[str, object]] = []
    for batch in BATCHES:
        with torch.no_grad():
            found = compare(batch)
        for line in found:
            print(json.dumps(line), flush=True)
        lines += found
        if path is not None:
            path.write_text(json.dumps({"torch": torch.__version__, "lines": lines}, indent=1) + "\n")
        torch.compiler.reset()
    return int(DRY and any("error" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
