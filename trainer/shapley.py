"""Why a network says what it says of a picture: Shapley maps of the two likeliest labels.

    background, frames ─► layers before the chosen one ─► shap's GradientExplainer on the layers from it on ─► Maps

The explainer is given the cut network and what reaches it, not the pair (network, layer) that shap also takes for
PyTorch: the pair weighs a gradient with the layer's input itself instead of its distance from the background, so its
maps do not add up to anything, and it runs the whole network for every sample. Cut, a map's sum is the label's logit
less its mean over the background, as near as the samples allow, and only the late layers are run.

Knows no files, stores or drawings.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from trainer.arrays import DoubleArray, FloatArray, Frames
from trainer.evaluate import softmax
from trainer.frozen import BATCH_FRAMES, load_base
from trainer.recipes import FittedHead
from worker.errors import UsageError
from worker.model import network as networks
from worker.model.labels import LABELS
from worker.model.network import Network
from worker.model.preprocessing import Preprocessing

SEED: Final = 0
"""Where the explainer's samples start from: the same picture, version and background give the same maps."""

SAMPLES_BATCH: Final = 25
"""Samples in one pass forward and back; memory is this times what the late layers remember of a picture."""

CELLS: Final = 28
"""The default layer is the last whose input is still so many cells wide: VGG-11's features.15, the pooling after the
fourth block, behind which an eighth of the network's work lies."""


@dataclass(frozen=True)
class Map:
    """One label of a picture: its index, its probability, and what each cell speaks for it (positive) or against it,
    in logits: float32 [cells, cells]."""

    label: int
    probability: float
    values: FloatArray


@dataclass(frozen=True)
class Head:
    """A last layer, the temperature its logits are divided by, and what a reader is told that it is."""

    said: str
    fitted: FittedHead
    temperature: float = 1.0


class Cut:
    """A network in float32, cut before one of its layers. `layer` is the layer's name.

    `layer` None is the last whose input is at least `cells` wide. Raises UsageError for a layer that there is not, or
    that sees no picture any more; WeightsError for a base of another network.
    """

    def __init__(
        self,
        network: Network,
        base: Mapping[str, Tensor],
        preprocessing: Preprocessing,
        device: torch.device,
        layer: str | None = None,
        cells: int = CELLS,
    ) -> None:
        module = network.build()
        # Assigned, not copied: the base is half a gigabyte, and whoever calls has it in memory already.
        load_base(module, network, base, assign=True)
        module = module.to(device).eval().requires_grad_(False)
        for part in module.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = False  # what is overwritten has no gradient
        trunk, tail = network.split(module)
        leaves = list(_leaves(trunk))
        names = {id(part): name for name, part in module.named_modules()}
        sides = _input_sides(leaves, preprocessing.crop, device)
        found = {names[id(leaf)]: at for at, leaf in enumerate(leaves) if id(leaf) in names and sides[at]}
        if layer is None:
            layer = [name for name, at in found.items() if sides[at] >= cells or at == 0][-1]
        if layer not in found:
            raise UsageError(f"The network {network.name} has no layer {layer!r} to explain: name {', '.join(found)}.")
        self.layer = layer
        self._before = nn.Sequential(*leaves[: found[layer]])
        self._after = nn.Sequential(*leaves[found[layer] :], *list(tail)[:-1])
        self._preprocessing = preprocessing
        self._device = device

    @torch.no_grad()
    def activations(self, frames: Frames) -> Tensor:
        """uint8 [N, H, W, 3] to what reaches the layer: float32 [N, channels, cells, cells], on the device."""
        parts = torch.split(torch.from_numpy(frames), BATCH_FRAMES)
        return torch.cat(
            [
                self._before(networks.normalise(part.to(self._device), self._preprocessing, torch.float32)).contiguous()
                for part in parts
            ]
        )

    @torch.no_grad()
    def probabilities(self, head: Head, activations: Tensor) -> DoubleArray:
        """float64 [N, 3] of what reaches the layer."""
        return softmax(self._whole(head)(activations).cpu().numpy(), head.temperature)

    def maps(self, head: Head, reached: Tensor, background: Tensor, samples: int) -> list[tuple[Map, Map]]:
        """The maps of the two likeliest labels of each picture, the likelier one first.

        `reached` and `background` are `activations` [N, …] of the pictures and [M, …] of what they are held against.

        Expected gradients (Erion et al. 2021, "Improving performance of deep learning models with axiomatic
        attribution priors and expected gradients"): the mean, over `samples` random points on the lines from random
        pictures of the background to the picture, of gradient times distance; channels are summed.
        """
        # Imported here: it takes seconds, which whoever explains nothing should not pay.
        import shap

        probabilities = self.probabilities(head, reached)
        with _numpy_seed_kept():
            explainer = shap.GradientExplainer(self._whole(head), background, SAMPLES_BATCH)
            values, ranks = explainer.shap_values(reached, nsamples=samples, ranked_outputs=2, rseed=SEED)
        cells = values.sum(axis=1).astype(np.float32)  # [N, channels, cells, cells, 2] over the channels
        chosen = ranks.cpu().numpy()

        def of(picture: int, rank: int) -> Map:
            label = int(chosen[picture, rank])
            return Map(label, float(probabilities[picture, label]), cells[picture, :, :, rank])

        return [(of(i, 0), of(i, 1)) for i in range(len(reached))]

    def _whole(self, head: Head) -> nn.Sequential:
        last = nn.Linear(head.fitted.weight.shape[1], len(LABELS), device="meta")
        tensors = {"weight": torch.from_numpy(head.fitted.weight), "bias": torch.from_numpy(head.fitted.bias)}
        last.load_state_dict(tensors, assign=True)
        return nn.Sequential(*self._after, last.to(self._device).requires_grad_(False)).eval()


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _leaves(child)
    else:
        yield module


@torch.no_grad()
def _input_sides(leaves: Sequence[nn.Module], crop: int, device: torch.device) -> list[int]:
    """How many cells wide the input of each layer is; 0 where it is no picture any more."""
    sides, now = [], torch.zeros((1, 3, crop, crop), device=device)
    for leaf in leaves:
        sides.append(now.shape[-1] if now.dim() == 4 else 0)
        now = leaf(now)
    return sides


@contextmanager
def _numpy_seed_kept() -> Iterator[None]:
    """shap seeds numpy's global generator; whoever else draws from it goes on as if nothing had happened."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
