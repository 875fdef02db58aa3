"""What the trainer promises in figures, as ratios of what is measured side by side in this one run.

The plain loop runs all its ten epochs on a small set of photographs as they are uploaded (1,280 x 960 JPEG). Where a
larger set is compared, its seconds a picture are multiplied by the larger counts, and nothing else is extrapolated.
That both ways end in the same tensors, dropout included, is shown to the last digits by a unit test
(`test_trainer_recipes`); here a small set can only show that the accuracies agree.
"""

import hashlib
import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.benchmarks import plain_loop
from tests.benchmarks.conftest import Record
from tests.benchmarks.plain_loop import Timed
from tests.support.pictures import photograph
from trainer import fit, prepare, recipes
from trainer.bases import random_base
from trainer.cache import FeatureCache
from trainer.dataset import Picture
from trainer.decoding import decoder_pool
from trainer.features import computer
from trainer.frozen import FrozenPart
from trainer.plan import Plan
from trainer.progress import Reporter
from worker.model import network as networks
from worker.model.labels import LABELS
from worker.model.preprocessing import Preprocessing
from worker.model.weights import WeightsStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

EPOCHS = recipes.ARTICLE_EPOCHS
SMALL_TRAIN, SMALL_VALIDATION = 72, 24
LARGE_TRAIN, LARGE_TEST, NEW_SHARE = 600, 150, 0.1


def photographs(folder: Path, count: int, seed: int) -> list[Picture]:
    rng, made = np.random.default_rng(seed), []
    for i in range(count):
        label = i % len(LABELS)
        path = folder / LABELS[label] / f"{seed}x{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = photograph(rng, label)
        path.write_bytes(content)
        made.append(Picture(path, label, hashlib.sha256(content).hexdigest()))
    return made


@dataclass(frozen=True)
class Small:
    """The small set, and what the plain loop took for ten epochs of it."""

    train: list[Picture]
    validation: list[Picture]
    plain: Timed


@pytest.fixture(scope="module")
def base() -> dict[str, Tensor]:
    return random_base(networks.get("vgg11"), 0)


@pytest.fixture(scope="module")
def part(base: dict[str, Tensor]) -> FrozenPart:
    part = FrozenPart(networks.get("vgg11"), base, Preprocessing(), torch.device("cpu"))
    part.forward(np.zeros((32, 224, 224, 3), np.uint8))  # the first pass of a process also sets up its kernels
    return part


@pytest.fixture(scope="module")
def small(base: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Small:
    root = tmp_path_factory.mktemp("small")
    train = photographs(root / "train", SMALL_TRAIN, 1)
    validation = photographs(root / "validation", SMALL_VALIDATION, 2)
    return Small(train, validation, plain_loop.run(base, train, validation, EPOCHS))


def quiet() -> Reporter:
    return Reporter(io.StringIO())


def test_ten_epochs_of_the_articles_recipe_against_the_plain_loop(
    small: Small, part: FrozenPart, folder: Path, record: Record
) -> None:
    """From an empty cache: decoding, features and ten epochs, against ten epochs of everything."""
    started_s, worked_s = time.perf_counter(), plain_loop.cores_s()
    with (
        FeatureCache(folder / "cache", part.key, part.dtype, print) as cache,
        decoder_pool(Preprocessing()) as decoders,
    ):
        compute = computer(part, decoders, quiet(), cache)
        train, validation = compute(small.train, "middle", "train"), compute(small.validation, "middle", "validation")
    featured_s = time.perf_counter() - started_s
    head = recipes.fit_article(part, train, validation, EPOCHS, 0, quiet())
    cached_s = time.perf_counter() - started_s
    plain_s = small.plain.training_s + small.plain.validation_s
    needed = 20 if part.dtype == torch.bfloat16 else 15
    accuracy = max(epoch["validation_accuracy"] for epoch in head.hyperparameters["epochs"])
    record(
        "article, 10 epochs: plain loop / cached",
        plain_s / cached_s,
        f">= {needed}",
        plain_s=round(plain_s, 1),
        cached_s=round(cached_s, 1),
        of_it_features_s=round(featured_s, 1),
        in_seconds_of_cores=round(small.plain.cores_s / (plain_loop.cores_s() - worked_s), 1),
        pictures=SMALL_TRAIN + SMALL_VALIDATION,
        engine=part.key["engine"],
    )
    difference = abs(accuracy - small.plain.accuracy)
    record("article: difference of best validation accuracy", difference, "<= 0.05", plain=small.plain.accuracy)
    assert difference <= 0.05
    assert plain_s / cached_s >= needed


def test_a_retrain_with_a_tenth_new_pictures_against_the_plain_loop(
    small: Small, part: FrozenPart, folder: Path, record: Record
) -> None:
    """Checks, features of what is new, cross-validated fit, calibration and evaluation, against ten plain epochs."""
    roots = {"train": LARGE_TRAIN, "test": LARGE_TEST}
    for name, count in roots.items():
        photographs(folder / name, round(count * (1 - NEW_SHARE)), 3 if name == "train" else 4)
    plan = Plan(train=folder / "train", test=folder / "test", by="bench")

    def train_once() -> tuple[float, float, int]:
        started_s, worked_s = time.perf_counter(), plain_loop.cores_s()
        parts = prepare.gather(plan.train, plan.test, quiet())
        with (
            FeatureCache(folder / "cache", part.key, part.dtype, print) as cache,
            decoder_pool(Preprocessing()) as decoders,
        ):
            features = prepare.compute_all(parts, computer(part, decoders, quiet(), cache), quiet())
            head = fit.fit_head(plan, part, features, quiet())
            fit.judge(plan, part, head, features)
        count = sum(len(of.pictures) for of in (features.fitted_on, features.held_out, features.test))
        return time.perf_counter() - started_s, plain_loop.cores_s() - worked_s, count

    _, _, before = train_once()
    for name, count in roots.items():
        photographs(folder / name, round(count * NEW_SHARE), 5 if name == "train" else 6)
    retrain_s, retrain_cores_s, after = train_once()
    assert (before, after) == (round(0.9 * (LARGE_TRAIN + LARGE_TEST)), LARGE_TRAIN + LARGE_TEST)
    plain_s = (
        small.plain.training_s / SMALL_TRAIN * LARGE_TRAIN + small.plain.validation_s / SMALL_VALIDATION * LARGE_TEST
    )
    plain_cores_s = small.plain.cores_s * plain_s / (small.plain.training_s + small.plain.validation_s)
    record(
        "default, retrain with 10 % new: plain loop / retrain",
        plain_s / retrain_s,
        ">= 100",
        plain_s_by_count=round(plain_s, 1),
        retrain_s=round(retrain_s, 1),
        in_seconds_of_cores=round(plain_cores_s / retrain_cores_s, 1),
        pictures=LARGE_TRAIN + LARGE_TEST,
        engine=part.key["engine"],
    )
    assert plain_s / retrain_s >= 100


def test_the_default_recipe_against_the_articles_on_the_stand_in_pictures(
    shared_data: Path, folder: Path, record: Record
) -> None:
    """Two whole runs on a random base, the second on the first one's cache: accuracy, log loss and size."""
    root = shared_data / "standin"
    store = WeightsStore(folder / "weights")
    accuracy = {}
    for recipe in ("default", "article"):
        plan = Plan(
            train=root / "train" / "interim",
            test=root / "test" / "interim",
            by="bench",
            base="random:0",
            recipe=recipe,
            device="cpu",
            cache=folder / "cache",
        )
        manifest = fit.fit(plan, store, quiet())
        metrics = manifest.metrics
        accuracy[recipe] = metrics["test"]["accuracy"]
        before, after = metrics["held_out"]["log_loss_uncalibrated"], metrics["held_out"]["log_loss"]
        record(f"{recipe}: log loss of the split, after - before", after - before, "<= 0", before=round(before, 4))
        assert after <= before
        sizes = {file.name: file.stat().st_size for file in (store.root / "versions" / manifest.id).iterdir()}
        report = sizes.pop("report.html")
        size = sum(sizes.values()) / 1024
        record(f"{recipe}: a version in KB, report apart", size, "<= 100", report_kb=report // 1024)
        assert size <= 100
    ahead = accuracy["default"] - accuracy["article"]
    record("stand-in: accuracy of default - article", ahead, ">= 0.20", **accuracy)
    assert ahead >= 0.20
