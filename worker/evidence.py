"""What two engines made of the same pictures: features of fp32 and of a candidate, for any last layer to be judged on.

No picture is kept, only its features and a fingerprint, in memory and in one file beside the compiled engine. Knows no
store and no threads.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch

from worker.model import files
from worker.model.agreement import UNLABELLED, Agreement, Labels, Rule, compare
from worker.model.engine import Frames, Head

logger = logging.getLogger(__name__)

Features = npt.NDArray[np.float32]

PICTURES_MAX: Final = 1200
"""Pictures kept at most: what int8 must be judged on and some more. Two times 4,096 numbers each: 39 MB for VGG-11."""

GRID: Final = 16
"""A fingerprint sees every 16th pixel in 16 shades, so that the frames of one animation count once."""


class Evidence:
    """Grows by `add` up to PICTURES_MAX pictures, each once; `judge` puts a last layer on it."""

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._reference: list[Features] = []
        self._candidate: list[Features] = []
        self._labels: list[int] = []

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def full(self) -> bool:
        """Whether nothing more is taken, so that nothing will change what it shows."""
        return len(self._seen) >= PICTURES_MAX

    def news(self, frames: Frames) -> npt.NDArray[np.intp]:
        """Indices of those frames [n, crop, crop, 3] whose likes were not seen yet, as many as there is room for."""
        seen, fresh = set(self._seen), []
        for index, frame in enumerate(frames):
            print_ = _fingerprint(frame)
            if print_ not in seen and len(seen) < PICTURES_MAX:
                seen.add(print_)
                fresh.append(index)
        return np.array(fresh, np.intp)

    def add(self, frames: Frames, reference: Features, candidate: Features, labels: Labels | None = None) -> None:
        """Takes features [n, width] of frames that `news` named."""
        known = np.full(len(frames), UNLABELLED) if labels is None else labels
        self._seen += [_fingerprint(frame) for frame in frames]
        self._reference += list(reference)
        self._candidate += list(candidate)
        self._labels += [int(label) for label in known]

    def judge(self, rule: Rule, head: Head, ban_threshold: float | None) -> Agreement:
        """What the rule says where `head` is the last layer."""
        if not self._seen:
            nothing = np.zeros((0, 3))
            return compare(rule, nothing, nothing)
        head = head.to(torch.device("cpu"))
        with torch.inference_mode():
            reference, candidate = (
                head.probabilities(torch.from_numpy(np.stack(features))).double().numpy()
                for features in (self._reference, self._candidate)
            )
        return compare(rule, reference, candidate, labels=np.array(self._labels), ban_threshold=ban_threshold)

    def save(self, path: Path) -> None:
        """Replaces the file; a full disk only costs the next start a comparison."""
        if not self._seen:
            return
        content: dict[str, npt.NDArray[Any]] = {
            "seen": np.array(self._seen, np.int64),
            "labels": np.array(self._labels, np.int64),
            "reference": np.stack(self._reference),
            "candidate": np.stack(self._candidate),
        }
        try:
            files.replace(path, safetensors.numpy.save(content))
        except OSError as error:
            logger.warning("what engines were compared on cannot be kept: %s", error)

    @classmethod
    def load(cls, path: Path, width: int) -> "Evidence":
        """What an earlier process kept for features of that width; empty where there is nothing of use."""
        evidence = cls()
        try:
            tensors = safetensors.numpy.load(path.read_bytes())
            reference, candidate = tensors["reference"], tensors["candidate"]
            seen, labels = tensors["seen"], tensors["labels"]
        except (OSError, safetensors.SafetensorError, KeyError):
            return evidence
        if reference.shape == candidate.shape == (len(seen), width) and len(labels) == len(seen) <= PICTURES_MAX:
            evidence._seen, evidence._labels = seen.tolist(), labels.tolist()
            evidence._reference, evidence._candidate = list(reference), list(candidate)
        return evidence


def _fingerprint(frame: Frames) -> int:
    coarse = np.ascontiguousarray(frame[::GRID, ::GRID] >> 4).tobytes()
    return int.from_bytes(hashlib.blake2b(coarse, digest_size=8).digest(), signed=True)
