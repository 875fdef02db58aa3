"""Where a network starts from, and on which device: a base's name in, its tensors and their origin out.

Knows no pictures, recipes or stores; the reading and checking of files is `worker.model.network`'s.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from trainer.progress import Reporter
from worker.errors import UsageError
from worker.model import network as networks
from worker.model.network import Network

TRIAL_SOURCE: Final = "random:{seed} (for trials only)"


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is a device. Raises UsageError where CUDA is asked for and absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device here: set MODERATION_DEVICE to cpu or auto.")
    return torch.device(name)


def load_base(name: str, network: Network, reporter: Reporter) -> tuple[dict[str, Tensor], str]:
    """The tensors of a base and the sentence fragment that says where they come from."""
    kind, _, rest = name.partition(":")
    if kind == "random":
        if not (rest.isascii() and rest.isdigit() and int(rest) < 2**63):
            raise UsageError(f"The base {name!r} names no seed: write random:0 or another whole number.")
        reporter.say(
            f"WARNING: the base {name} is drawn at random and has learned nothing: it is FOR TRIALS ONLY, "
            "never for judging people's pictures."
        )
        return networks.random_base(network, int(rest)), TRIAL_SOURCE.format(seed=int(rest))
    if name == "imagenet":
        if network.name != "vgg11":
            raise UsageError(f"There is no ImageNet base for {network.name!r}: give --base FILE.")
        return networks.imagenet_base(), f"imagenet ({networks.imagenet_url().rpartition('/')[2]})"
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"There is no base {name!r}: give imagenet, random:SEED, or the path of a weights file.")
    return networks.file_base(path, network), path.name
