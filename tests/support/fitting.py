"""Drawn pictures and a plan to fit a small network on them, in VGG-11's place."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from trainer.plan import Plan
from worker.model import network as networks
from worker.model.labels import LABELS
from worker.model.network import Network


def build() -> nn.Module:
    tail = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
    return nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), tail)


SMALL = Network("small", build, lambda m: (m[0], m[1]), "1.5")
networks.register(SMALL)


def draw(root: Path, per_label: int, seed: int, noise: float) -> Path:
    """Noisy pictures of one colour a label; the first of each label is a GIF."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(LABELS):
        (root / name).mkdir(parents=True)
        for i in range(per_label):
            colour = np.full((24, 32, 3), 90.0)
            colour[..., label] += 60
            pixels = np.clip(colour + rng.normal(0, noise) + rng.normal(0, noise, colour.shape), 0, 255)
            suffix = "gif" if i == 0 else "png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{name[:2]}{seed}_{i}.{suffix}")
    return root


def draw_both(root: Path, train: int, test: int, seed: int) -> Path:
    """train/ and test/ with so many easy pictures a label."""
    draw(root / "train", train, seed, noise=6)
    draw(root / "test", test, seed + 1, noise=6)
    return root


def plan(root: Path, base: str = "random:0", by: str = "ada") -> Plan:
    return Plan(train=root / "train", test=root / "test", by=by, base=base, network="small", device="cpu")
