"""A network's body, run fast: uint8 frames in, the float32 inputs of its last layer out; and that last layer.

Every engine stops before the last layer, which stays in float32. So a version that changed only that layer needs no
new engine, and a comparison of two engines' outputs holds for any last layer that is put on them later.
Knows no store, no labels, no queue.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from worker.errors import WeightsError
from worker.model import network as networks
from worker.model.manifest import Manifest
from worker.model.network import Network
from worker.model.preprocessing import Preprocessing
from worker.model.tensors import tensors_digest

Frames = npt.NDArray[np.uint8]

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Engine(Protocol):
    """Runs one body on one device in one precision; `name` is what verdicts say, such as `cpu-bf16`."""

    name: str

    def features(self, frames: Frames) -> Tensor:
        """uint8 [N, crop, crop, 3] to float32 [N, width] on the engine's device, inside torch.inference_mode."""
        ...


class EagerEngine:
    """The body as PyTorch runs it, channels_last, without any preparation: what a worker serves with first.

    On a CPU the convolutions take as many images at a time as there are threads. With two threads, VGG-11 then leaves
    no block in memory that is too large to be used again (see `worker.memory`; in fp32 an image's largest is 13 MB);
    with more it is as if all went at once. The fully connected layers, whose weights are most of the network, always
    take all images at once.
    """

    def __init__(self, body: nn.Sequential, device: torch.device, precision: str, preprocessing: Preprocessing) -> None:
        self.name = f"{device.type}-{precision}"
        self._body = body
        self._device = device
        self._at_once = torch.get_num_threads() if device.type == "cpu" else None
        self._dtype = DTYPES[precision]
        self._preprocessing = preprocessing

    def features(self, frames: Frames) -> Tensor:
        """As `Engine.features`."""
        batch = torch.from_numpy(frames)
        if self._device.type == "cuda":
            # Pinned, so that the copy need not wait for the forward pass of the batch before.
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        if self._at_once is None or len(batch) <= self._at_once:
            features: Tensor = self._body(self._pixels(batch))
        else:
            trunk, tail = self._body[0], self._body[1:]
            features = tail(torch.cat([trunk(self._pixels(part)) for part in batch.split(self._at_once)]))
        return features.float()

    def _pixels(self, frames: Tensor) -> Tensor:
        return networks.normalise(frames, self._preprocessing, self._dtype)


@dataclass(frozen=True)
class Head:
    """The last layer, float32: weight [3, width] and bias [3]; `temperature` divides its logits."""

    weight: Tensor
    bias: Tensor
    temperature: float

    def probabilities(self, features: Tensor) -> Tensor:
        """float32 [N, width] to [N, 3]."""
        return torch.softmax(nn.functional.linear(features, self.weight, self.bias) / self.temperature, dim=1)

    def to(self, device: torch.device) -> "Head":
        """The same on another device."""
        return Head(self.weight.to(device), self.bias.to(device), self.temperature)


def body_key(network: Network, manifest: Manifest, delta: Mapping[str, Tensor], preprocessing: Preprocessing) -> str:
    """Names everything that decides a body's outputs; versions with equal keys differ in their last layer alone."""
    head = network.head_names()
    changed = {name: tensor for name, tensor in delta.items() if name not in head}
    deeper = tensors_digest(changed) if changed else "base"
    # Not how a picture becomes frames, and how many: another way of that needs no other engine.
    only_frames = ("jpeg_margins", "on_black", "as_tagged", "long_from")
    prepared = {name: value for name, value in preprocessing.to_json().items() if name not in only_frames}
    return f"{network.name} {manifest.base.sha256} {deeper} {prepared}"


def body_of(network: Network, state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> nn.Sequential:
    """The network without its last layer, for inference, made of `state`'s tensors; the head's may be missing.

    The trunk, then the layers of the tail.

    Tensors that fit already are shared, not copied. Raises WeightsError where one is missing or does not fit.
    """
    with torch.device("meta"):
        module = network.build()
    head = network.head_names()
    prepared = {name: _prepared(tensor, device, dtype) for name, tensor in state.items() if name not in head}
    missing, unexpected = module.load_state_dict(prepared, strict=False, assign=True)
    if unexpected or set(missing) - head:
        raise WeightsError(f"these tensors are no whole {network.name}: publish the version again")
    trunk, tail = network.split(module.eval().requires_grad_(False))
    return nn.Sequential(trunk, *list(tail)[:-1])


def head_of(network: Network, state: Mapping[str, Tensor], temperature: float, device: torch.device) -> Head:
    """The last layer among `state`'s tensors. Raises WeightsError where it is not there."""
    try:
        weight, bias = state[f"{network.head}.weight"], state[f"{network.head}.bias"]
    except KeyError as error:
        raise WeightsError(
            f"{error} is missing, so this is no whole {network.name}: publish the version again"
        ) from None
    return Head(weight.float(), bias.float(), temperature).to(device)


def _prepared(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.to(device)
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return tensor.to(device, dtype).contiguous(memory_format=layout)
