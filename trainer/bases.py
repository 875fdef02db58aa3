"""Where a network starts from: a base's name in, its tensors and their origin out.

A file is checked before it is opened, and nothing in it is unpickled that could run. Knows no pictures, recipes or
stores.
"""

import hashlib
import http.client
import pickle
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from trainer.progress import Reporter
from worker.errors import UnavailableError, UsageError, WeightsError
from worker.model import network as networks
from worker.model.network import Network

TRIAL: Final = "random:"
TRIAL_SOURCE: Final = f"{TRIAL}{{seed}} (for trials only)"

CHAMPION: Final = "champion"
"""The base that the champion stands on, which its store holds; ImageNet where there is no champion."""


def load_base(name: str, network: Network, reporter: Reporter) -> tuple[dict[str, Tensor], str]:
    """The tensors of a base and the sentence fragment that says where they come from."""
    kind, _, rest = name.partition(":")
    if kind == "random":
        if not (rest.isascii() and rest.isdigit() and int(rest) < 2**63):
            raise UsageError(f"The base {name!r} names no seed: write random:0 or another whole number.")
        warn_of_trial(name, reporter)
        return random_base(network, int(rest)), TRIAL_SOURCE.format(seed=int(rest))
    if name == "imagenet":
        if network.name != "vgg11":
            raise UsageError(f"There is no ImageNet base for {network.name!r}: give --base FILE.")
        return imagenet_base(), f"imagenet ({imagenet_url().rpartition('/')[2]})"
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"There is no base {name!r}: give imagenet, random:SEED, or the path of a weights file.")
    return file_base(path, network), path.name


def warn_of_trial(source: str, reporter: Reporter) -> None:
    """Says it loudly where a base is drawn at random."""
    if source.startswith(TRIAL):
        reporter.say(
            f"WARNING: the base {source.partition(' ')[0]} is drawn at random and has learned nothing: it is FOR "
            "TRIALS ONLY, never for judging people's pictures."
        )


def random_base(network: Network, seed: int) -> dict[str, Tensor]:
    """A state dict without the head's tensors, drawn from `seed`; the same on every call with the same torch.

    Weights of two and more dimensions: He et al. 2015 (arXiv 1502.01852), uniform in ±sqrt(6 / fan_in), which
    keeps the variance of activations from layer to layer, so that features carry information. Other tensors are
    0, except where their layer says otherwise (normalisation layers reset themselves to 1 and 0).
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = network.build()
        torch.manual_seed(seed)
        for tensor in module.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() >= 2:
                nn.init.kaiming_uniform_(tensor, nonlinearity="relu")
            else:
                tensor.zero_()
        for layer in module.modules():
            # Not every layer that can: Conv and Linear would draw again, from a narrower distribution.
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
                layer.reset_parameters()
    head = network.head_names()
    return {name: tensor for name, tensor in module.state_dict().items() if name not in head}


def imagenet_url() -> str:
    """Where torchvision keeps its VGG-11; the file's name ends in the first digits of its SHA-256."""
    # Imported here: it takes seconds, which no other base needs.
    from torchvision.models import VGG11_Weights

    return str(VGG11_Weights.IMAGENET1K_V1.url)


def imagenet_base(url: str | None = None, folder: Path | None = None) -> dict[str, Tensor]:
    """torchvision's VGG-11 trained on ImageNet, without its head: float32 on the CPU.

    Downloaded once from `url` (`imagenet_url()` where None) into `folder` (torch.hub's own checkpoint folder where
    None). The file's SHA-256 is compared with the digits in its name on every call, before it is opened with
    `weights_only=True`. Raises UnavailableError where it cannot be fetched, WeightsError where it is not what its
    name says.
    """
    url = imagenet_url() if url is None else url
    name = url.rpartition("/")[2]
    digits = re.search(r"-([0-9a-f]{8,64})\.pth$", name)
    if digits is None:
        raise WeightsError(f"the file name {name} carries no SHA-256 digits to check: use --base FILE")
    folder = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else folder
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            torch.hub.download_url_to_file(url, str(path), digits[1], progress=sys.stderr.isatty())
    except RuntimeError as error:
        # torch.hub's word for a digest that differs; a download that broke off is one, and is not kept.
        raise WeightsError(
            f"{url} sent another file than its name says ({error}): try again, or use --base FILE"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(
            f"{name} could not be downloaded ({error}): allow it, or fetch it elsewhere and use --base FILE"
        ) from error
    return _read_base(path, networks.get("vgg11"), digits[1])


def file_base(path: Path, network: Network | None = None) -> dict[str, Tensor]:
    """The tensors of `network` (VGG-11 where None) in a .safetensors or torchvision .pth file, without its head.

    The head may have any number of outputs, or be absent. float32 on the CPU. Nothing is unpickled beyond what
    `weights_only=True` allows. Raises WeightsError where the file is none, or holds another network.
    """
    return _read_base(Path(path), networks.get("vgg11") if network is None else network, "")


def _read_base(path: Path, network: Network, sha256_prefix: str) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            # One open file for both, so that what is loaded is what was hashed.
            if sha256_prefix and not hashlib.file_digest(file, "sha256").hexdigest().startswith(sha256_prefix):
                raise WeightsError(
                    f"{path} is not the file its name says (its SHA-256 does not begin with {sha256_prefix}): "
                    "delete it and try again"
                )
            file.seek(0)
            if path.suffix == ".safetensors":
                content: object = safetensors.torch.load(file.read())
            else:
                content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error}): name another file") from error
    except (
        safetensors.SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        MemoryError,
        struct.error,
    ) as error:
        raise WeightsError(
            f"{path} is no state dict that opens without running code: give a .safetensors file or a .pth that "
            "torch.load(weights_only=True) reads"
        ) from error
    return _without_head(content, network, path)


def _without_head(content: object, network: Network, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no state dict: save model.state_dict(), not the model")
    head = network.head_names()
    tensors = {name: value.to(torch.float32) for name, value in content.items() if name not in head}
    networks.check_tensors(network, tensors, f"{path}")
    if missing := network.shapes().keys() - head - tensors.keys():
        raise WeightsError(f"{path} lacks {min(missing)}: it is not a whole {network.name}, name another file")
    return tensors
