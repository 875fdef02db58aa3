"""The source article's training loop as one writes it first: every picture through the whole network, every epoch.

All layers frozen but a new last one, torchvision's usual transforms, Adam 1e-4, batches of 100. It uses as many
loader workers as there are cores instead of the article's 20, which on few cores only get in each other's way.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trainer.dataset import Picture
from trainer.recipes import ARTICLE_BATCH, ARTICLE_LEARNING_RATE, seeded
from worker.model import network as networks
from worker.model.preprocessing import Preprocessing


@dataclass(frozen=True)
class Timed:
    """Seconds for all epochs: of training, of validation, of all cores; the best validation accuracy."""

    training_s: float
    validation_s: float
    cores_s: float
    accuracy: float


def cores_s() -> float:
    """Seconds that cores have worked for this process and its ended children: other work beside it counts little."""
    return sum(os.times()[:4])


class Folder(Dataset[tuple[Tensor, int]]):
    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = pictures
        usual = Preprocessing()
        self.transform = transforms.Compose(
            [
                transforms.Resize(usual.resize),
                transforms.CenterCrop(usual.crop),
                transforms.ToTensor(),
                transforms.Normalize(usual.mean, usual.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.pictures[index].path) as image:
            return self.transform(image.convert("RGB")), self.pictures[index].label


def run(base: dict[str, Tensor], train: Sequence[Picture], validation: Sequence[Picture], epochs: int) -> Timed:
    """Train and validate for `epochs`; building the network is not timed."""
    network = networks.get("vgg11")
    module = network.build()
    module.load_state_dict(base, strict=False)
    module.requires_grad_(False)
    workers = os.cpu_count() or 1
    training_s = validation_s = best = 0.0
    before_s = cores_s()
    with seeded(0, torch.device("cpu")):
        head = nn.Linear(4096, 3)
        module.get_submodule("classifier")[6] = head
        optimizer = torch.optim.Adam(head.parameters(), lr=ARTICLE_LEARNING_RATE)
        batches = DataLoader(Folder(train), ARTICLE_BATCH, shuffle=True, num_workers=workers)
        unseen = DataLoader(Folder(validation), ARTICLE_BATCH, num_workers=workers)
        for _ in range(epochs):
            started_s = time.perf_counter()
            module.train()
            for pixels, labels in batches:
                loss = nn.functional.cross_entropy(module(pixels), labels)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            trained_s = time.perf_counter()
            module.eval()
            with torch.no_grad():
                hits = sum(int((module(pixels).argmax(dim=1) == labels).sum()) for pixels, labels in unseen)
            best = max(best, hits / len(validation))
            training_s += trained_s - started_s
            validation_s += time.perf_counter() - trained_s
    return Timed(training_s, validation_s, cores_s() - before_s, best)
