"""A network's tensors by name: put together, digested, and as the bytes of a safetensors file.

Knows no folders, versions or networks.
"""

import hashlib
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from worker.errors import WeightsError


def state_dict(base: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole network's tensors: the base's, with those that training changed in their place."""
    return {**base, **delta}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hex digits) over name, type, shape and bytes of each tensor in the names' order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = _plain(tensors[name])
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file."""
    return safetensors.torch.save({name: _plain(tensor) for name, tensor in tensors.items()})


def decode(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. WeightsError, which names `where`, unless it is one."""
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{where} is no safetensors file: copy it into the store again") from error


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
