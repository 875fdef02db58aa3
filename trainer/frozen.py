"""A network without its head, cut in two: what is the same in every epoch, and what dropout changes each time.

    uint8 frames ─► fixed: trunk, and the tail up to its first dropout ─► repeated: the rest ─► the head's input

The cut lies at the first dropout because everything before it is the same in every epoch, dropout or not. For
VGG-11 that is classifier[0:2]: 4,096 numbers a frame instead of the trunk's 25,088, a sixth of the memory,
and each of the article's epochs repeats a 4,096 x 4,096 product instead of one six times that. Both recipes
start from the same cut. Knows nothing of pictures' files, caches or recipes.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from trainer import winograd
from trainer.arrays import FloatArray, Frames
from trainer.tables import Tables, chunks
from worker.errors import WeightsError
from worker.model import devices
from worker.model import network as networks
from worker.model.network import Network
from worker.model.preprocessing import Preprocessing
from worker.model.tensors import tensors_digest

BATCH_FRAMES: Final = 16
"""Frames in one forward pass: what full speed takes (NNPACK's convolutions begin at 16), and no more, for the last pass
of a lot is filled up with frames that nobody asked for."""


class FrozenPart:
    """A network without its head, cut at the first dropout of its tail.

    `fixed` runs once a picture, in bfloat16 where the device multiplies that natively, else in float32.
    `repeated` (the dropout and what follows it, in float32, possibly empty) turns its output into the head's
    input. `key` names all that decides the output of `fixed`; `tables` is where large results are put.
    """

    def __init__(
        self,
        network: Network,
        base: Mapping[str, Tensor],
        preprocessing: Preprocessing,
        device: torch.device,
        tables: Tables | None = None,
    ) -> None:
        module = network.build().to(device)
        load_base(module, network, base)
        trunk, tail = network.split(module.eval().requires_grad_(False))
        layers = list(tail)
        self.device = device
        self.preprocessing = preprocessing
        self.dtype = torch.bfloat16 if devices.native_bf16(device) else torch.float32
        cut = next((i for i, layer in enumerate(layers) if isinstance(layer, nn.Dropout)), len(layers) - 1)
        self.fixed = nn.Sequential(trunk, *layers[:cut]).to(self.dtype).to(memory_format=torch.channels_last)
        direct = not winograd.pays(device, self.dtype)
        if not direct:
            winograd.install(self.fixed)
        self.repeated = nn.Sequential(*layers[cut:-1])
        head = layers[-1]
        if not isinstance(head, nn.Linear):
            raise WeightsError(f"the tail of {network.name!r} ends in no Linear layer: use another network")
        self.head_width = head.in_features
        self.tables = tables or Tables()
        self.key: dict[str, Any] = {
            "network": network.name,
            "base": tensors_digest(base),
            "preprocessing": preprocessing.to_json(),
            "engine": f"{device.type}-{'bf16' if self.dtype == torch.bfloat16 else 'fp32'}",
            "convolutions": "direct" if direct else "winograd",
            "cut": cut,
            "pass": BATCH_FRAMES,  # by its length libraries choose their way, and so the last bits
        }

    @torch.inference_mode()
    def forward(self, frames: Frames) -> FloatArray:
        """uint8 [N, H, W, 3] to float32 [N, width] at the cut. Raises WeightsError where that are no finite numbers.

        What a frame gives does not depend on those beside it: every pass is BATCH_FRAMES long, filled up with black.
        """
        parts = [frames[start : start + BATCH_FRAMES] for start in range(0, len(frames), BATCH_FRAMES)]
        values: FloatArray = np.concatenate([self._pass(part) for part in parts])
        return self._finite(values)

    def _pass(self, frames: Frames) -> FloatArray:
        # Libraries choose their way by the batch's length, and each rounds otherwise: a run that went on from a cache
        # would make another version than one that did not.
        whole = np.zeros((BATCH_FRAMES, *frames.shape[1:]), np.uint8)
        whole[: len(frames)] = frames
        batch = networks.normalise(torch.from_numpy(whole).to(self.device), self.preprocessing, self.dtype)
        values: FloatArray = self.fixed(batch)[: len(frames)].float().cpu().numpy()
        return values

    @torch.inference_mode()
    def head_input(self, values: FloatArray) -> FloatArray:
        """float32 [N, width] at the cut to float32 [N, head_width], dropout switched off. Errors as `forward`."""
        self.repeated.eval()
        result = self.tables.new(len(values), self.head_width)
        for part in chunks(len(values)):
            result[part] = self._finite(self.repeated(torch.from_numpy(values[part]).to(self.device)).cpu().numpy())
        return result

    def _finite(self, values: FloatArray) -> FloatArray:
        # Before they are kept or fitted on: a single one that is none makes every figure none, or a crash.
        if not np.isfinite(values).all():
            raise WeightsError(
                f"the base of {self.key['network']} turns a picture into values that are not finite: try again where "
                "it has served so far, for the device may be at fault, else name another with --base"
            )
        return values


def load_base(module: nn.Module, network: Network, base: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Load `base`; the head, which it lacks, stays whatever it is: nobody reads it.

    `assign` takes its tensors themselves instead of copies. Raises WeightsError where it is of another network.
    """
    missing, unexpected = module.load_state_dict(dict(base), strict=False, assign=assign)
    if unexpected or set(missing) != set(network.head_names()):
        raise WeightsError(f"the base does not fit the network {network.name!r}: name a base made for it")
