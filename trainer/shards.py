"""Features of some pictures as one file, and back: what is read is what was written, or it is refused.

    Entry, Entry, ... ─► safetensors bytes, named by their own SHA-256 ─► Entry, Entry, ...

A few hundred pictures share a file: one file a picture would be 24,500 files to open for the article's set. Nothing
is unpickled, and nothing is believed before the digest has been compared. Knows nothing of folders or runs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trainer.arrays import FloatArray, Frames
from trainer.dataset import Facts
from trainer.looks import LOOK_BYTES

FORMAT_BYTES: Final = 8
FRAMES_MAX: Final = 64
"""No preprocessing judges more frames of a picture."""


class DamagedError(Exception):
    """The file is not what was written; whoever reads the cache removes it and computes again."""


@dataclass(frozen=True)
class Entry:
    """One picture: `values` float32 [frames, width]; `whole` says whether all judged frames are there or only the
    middle one; `look` is uint8 [LOOK_BYTES] of the middle frame; `sha256` is the hex digest of the file's bytes."""

    sha256: str
    values: FloatArray
    whole: bool
    look: Frames
    facts: Facts


@dataclass(frozen=True)
class Listed:
    """A picture in a file, as its header says; not yet verified."""

    sha256: str
    frames: int
    whole: bool


def pack(entries: Sequence[Entry], dtype: torch.dtype) -> bytes:
    """The bytes of one file. `dtype` is what the values were computed in, so storing them in it loses nothing."""
    formats = [entry.facts.format.encode("ascii")[:FORMAT_BYTES].ljust(FORMAT_BYTES, b"\0") for entry in entries]
    content = b"".join(bytes.fromhex(entry.sha256) for entry in entries)
    tensors = {
        "values": torch.from_numpy(np.concatenate([entry.values for entry in entries])).to(dtype),
        "content": _bytes(content, 32),
        "frames": torch.tensor([len(entry.values) for entry in entries], dtype=torch.int64),
        "whole": torch.tensor([entry.whole for entry in entries], dtype=torch.uint8),
        "look": torch.from_numpy(np.stack([entry.look for entry in entries])),
        "format": _bytes(b"".join(formats), FORMAT_BYTES),
        "size": torch.tensor([[entry.facts.width, entry.facts.height] for entry in entries], dtype=torch.int64),
    }
    return safetensors.torch.save(tensors)


def name_of(content: bytes) -> str:
    """The name of the file that holds `content`."""
    return f"{hashlib.sha256(content).hexdigest()}.safetensors"


def peek(path: Path) -> list[Listed]:
    """What the file says it holds, without reading the values. DamagedError where it is no such file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            content, frames, whole = (file.get_tensor(name) for name in ("content", "frames", "whole"))
            rows = int(file.get_slice("values").get_shape()[0])
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
        raise DamagedError(str(error)) from error
    _check(content, frames, whole, rows)
    hexes = content.numpy().tobytes().hex()
    each = zip(frames.tolist(), whole.tolist(), strict=True)
    return [Listed(hexes[64 * i : 64 * (i + 1)], count, bool(all_)) for i, (count, all_) in enumerate(each)]


def read(path: Path) -> list[Entry]:
    """All of a file, once its digest is seen to be its name. Raises DamagedError, FileNotFoundError, OSError."""
    content = path.read_bytes()
    if name_of(content) != path.name:
        raise DamagedError("its SHA-256 is not its name")
    try:
        tensors = safetensors.torch.load(content)
        return _entries(tensors)
    except (safetensors.SafetensorError, RuntimeError, ValueError, TypeError, LookupError) as error:
        raise DamagedError(str(error)) from error


def _entries(tensors: dict[str, Tensor]) -> list[Entry]:
    _check(tensors["content"], tensors["frames"], tensors["whole"], len(tensors["values"]))
    values = tensors["values"].float().numpy()
    ends = np.cumsum(tensors["frames"].numpy())
    parts = np.split(values, ends[:-1])
    content, look, formats = (tensors[name].numpy() for name in ("content", "look", "format"))
    if look.shape != (len(content), LOOK_BYTES) or look.dtype != np.uint8:
        raise DamagedError("its looks are of another form")
    entries = zip(content, parts, tensors["whole"].tolist(), look, formats, tensors["size"].tolist(), strict=True)
    return [
        Entry(digest.tobytes().hex(), part, bool(whole), seen, Facts(_text(name), width, height))
        for digest, part, whole, seen, name, (width, height) in entries
    ]


def _check(content: Tensor, frames: Tensor, whole: Tensor, rows: int) -> None:
    """DamagedError unless the columns fit each other: what follows allocates memory by them."""
    fits = content.dtype == torch.uint8 and content.dim() == 2 and content.shape[1] == 32
    fits = fits and frames.dtype == torch.int64 and frames.shape == whole.shape == (len(content),)
    if not fits or bool((frames < 1).any()) or bool((frames > FRAMES_MAX).any()) or int(frames.sum()) != rows:
        raise DamagedError("its columns do not fit each other")


def _bytes(content: bytes, width: int) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, width)


def _text(name: Frames) -> str:
    return name.tobytes().rstrip(b"\0").decode("ascii", "replace")
