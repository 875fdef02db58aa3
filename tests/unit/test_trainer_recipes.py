"""Fitting the last layer, on a small network in VGG-11's place."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from trainer import recipes
from trainer.bases import random_base
from trainer.dataset import Picture
from trainer.evaluate import log_loss
from trainer.features import Features
from trainer.frozen import FrozenPart
from trainer.logistic import LogisticFit, balanced, fit_logistic
from trainer.progress import Reporter
from trainer.tables import Tables
from worker.model import devices
from worker.model import network as networks
from worker.model.network import Network
from worker.model.preprocessing import Preprocessing

WIDTH = 24


def build(dropout: float) -> nn.Module:
    tail = nn.Sequential(
        nn.Linear(48, WIDTH), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(WIDTH, 16), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(16, 3),
    )  # fmt: skip
    return nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), tail)


def small(dropout: float) -> Network:
    return Network("small", lambda: build(dropout), lambda m: (m[0], m[1]), "1.6")


def frozen(dropout: float = 0.5) -> FrozenPart:
    network = small(dropout)
    return FrozenPart(network, random_base(network, 1), Preprocessing(), torch.device("cpu"))


def quiet() -> Reporter:
    return Reporter(io.StringIO())


def clusters(count: int, width: int, seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping groups of `count` points each, float32 [3 * count, width], and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), count)
    centres = np.random.default_rng(99).normal(size=(3, width))
    points = (scale * (centres[labels] + rng.normal(size=(len(labels), width)))).astype(np.float32)
    return points, labels


def fit_one(points: np.ndarray, labels: np.ndarray, c: float) -> LogisticFit:
    return fit_logistic(points, np.arange(len(labels)), labels, (c,), Tables())[0]


def features(values: np.ndarray, labels: np.ndarray) -> Features:
    pictures = tuple(Picture(Path(f"{i}.png"), int(label), f"{i:064x}") for i, label in enumerate(labels))
    return Features(values, np.arange(len(labels)), pictures, ())


@pytest.mark.parametrize("count", [10, 60], ids=["fewer pictures than features", "more pictures than features"])
def test_the_folded_layer_gives_the_logits_of_the_pipeline(count: int) -> None:
    """One Linear on raw features equals scikit-learn's scaler and regression, near-constant features included."""
    points, labels = clusters(count, 40)
    points = points * np.geomspace(1e-3, 1e3, 40, dtype=np.float32) + 5
    points[:, 7] = 0.1
    weight, bias = fit_one(points, labels, 0.01).folded()
    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", tol=1e-8, max_iter=10_000)
    )
    expected = pipeline.fit(points.astype(np.float64), labels).decision_function(points.astype(np.float64))
    head = recipes.FittedHead(weight, bias, {})
    np.testing.assert_allclose(head.logits(points), expected, atol=2e-3)


def test_a_feature_that_never_changes_gets_no_weight() -> None:
    """Its deviation is rounding noise; dividing by it would let that noise decide."""
    points, labels = clusters(30, 8)
    points[:, 0] = 1000 + np.random.default_rng(1).choice([0.0, 6.1e-5], 90).astype(np.float32)
    points[:, 1] = 0
    weight, bias = fit_one(points, labels, 1.0).folded()
    assert (weight[:, :2] == 0).all()
    assert np.isfinite(weight).all() and np.isfinite(bias).all()


def test_the_default_recipe_separates_what_can_be_separated_and_records_what_it_tried() -> None:
    points, labels = clusters(40, 30)
    head = recipes.fit_default(points, labels, 0, quiet())
    unseen, truth = clusters(40, 30, seed=5)
    assert (head.logits(unseen).argmax(axis=1) == truth).mean() > 0.9
    assert head.hyperparameters["c"] in recipes.C_VALUES
    assert set(head.hyperparameters["cross_validation"]) == {f"{c:g}" for c in recipes.C_VALUES}
    assert head.hyperparameters["converged"]


def test_a_rare_label_is_not_drowned_by_a_common_one() -> None:
    points, labels = clusters(60, 10)
    kept = np.concatenate([np.arange(120), np.arange(120, 126)])
    head = recipes.fit_default(points[kept], labels[kept], 0, quiet())
    unseen, truth = clusters(60, 10, seed=5)
    assert (head.logits(unseen).argmax(axis=1)[truth == 2] == 2).mean() > 0.5


def test_the_strength_of_regularisation_suits_every_label_not_the_commonest() -> None:
    """Counted by the picture, the weakest tried has the least log loss here, and hardly a rare picture right."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [500, 75, 25])
    centres = 0.11 * rng.normal(size=(3, 256))
    points = (centres[labels] + rng.normal(size=(len(labels), 256))).astype(np.float32)
    tried = recipes.cross_validate(points, labels, 7, quiet(), Tables())
    assert min(tried, key=lambda c: tried[c]["log_loss"]) < 0.1
    assert max(tried, key=lambda c: tried[c]["accuracy"]) == 0.1


def test_a_weighted_log_loss_counts_each_label_the_same() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [50, 8, 3])
    probabilities = rng.dirichlet([1, 1, 1], len(labels))
    each = [log_loss(probabilities[labels == label], labels[labels == label]) for label in range(3)]
    assert log_loss(probabilities, labels, balanced(labels)) == pytest.approx(np.mean(each))


def test_the_article_recipe_keeps_its_best_epoch() -> None:
    part = frozen()
    values, labels = clusters(60, WIDTH)
    head = recipes.fit_article(part, features(values, labels), features(values, labels), 6, 0, quiet())
    accuracies = [epoch["validation_accuracy"] for epoch in head.hyperparameters["epochs"]]
    assert len(accuracies) == 6
    assert accuracies[head.hyperparameters["best_epoch"] - 1] == max(accuracies)
    reached = (head.logits(part.head_input(values)).argmax(axis=1) == labels).mean()
    assert reached == pytest.approx(max(accuracies), abs=1e-5)


def test_the_article_recipe_repeats_itself_and_leaves_torchs_random_numbers_alone() -> None:
    values, labels = clusters(40, WIDTH)
    part = frozen()
    before = torch.random.get_rng_state()
    heads = [
        recipes.fit_article(part, features(values, labels), features(values, labels), 3, 0, quiet()) for _ in range(2)
    ]
    np.testing.assert_array_equal(heads[0].weight, heads[1].weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_dropout_is_active_while_the_article_recipe_fits() -> None:
    """With dropout that drops nothing, the same data and seed give another layer."""
    values, labels = clusters(40, WIDTH)
    heads = [
        recipes.fit_article(frozen(p), features(values, labels), features(values, labels), 2, 0, quiet())
        for p in (0.5, 0.0)
    ]
    assert not np.allclose(heads[0].weight, heads[1].weight)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_article_recipe_on_features_is_the_plain_loop(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sums, and with dropout the same random numbers in the same order: both end in the same tensors.

    The plain loop sends every picture through the whole network in every epoch and trains its last layer, in float32.
    """
    monkeypatch.setattr(devices, "native_bf16", lambda device: False)
    part = frozen(dropout)
    pictures = np.random.default_rng(0).integers(0, 256, (230, 32, 32, 3), np.uint8)
    labels = np.arange(230) % 3
    made = features(part.forward(pictures), labels)
    head = recipes.fit_article(part, made, made, 4, 0, quiet())

    module = build(dropout)
    module.load_state_dict(random_base(small(dropout), 1), strict=False)
    inputs = networks.normalise(torch.from_numpy(pictures), Preprocessing(), torch.float32)
    truth = torch.from_numpy(labels)
    accuracies, best_weight = [], np.zeros(0)
    with recipes.seeded(0, torch.device("cpu")):
        module[1][6] = nn.Linear(16, 3)
        optimizer = torch.optim.Adam(module[1][6].parameters(), lr=1e-4)
        for _ in range(4):
            module.train()
            for batch in torch.randperm(230).split(100):
                loss = nn.functional.cross_entropy(module(inputs[batch]), truth[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            with torch.no_grad():
                hits = module.eval()(inputs).argmax(dim=1) == truth
            accuracies.append(hits.float().mean().item())
            if accuracies[-1] > max(accuracies[:-1], default=-1.0):
                best_weight = module[1][6].weight.detach().clone().numpy()
    np.testing.assert_allclose(head.weight, best_weight, atol=1e-6)
    curve = [epoch["validation_accuracy"] for epoch in head.hyperparameters["epochs"]]
    assert curve == pytest.approx(accuracies, abs=1e-5)


def test_tables_mapped_from_disk_give_the_layer_that_tables_in_memory_give(tmp_path: Path) -> None:
    points, labels = clusters(400, 30)
    on_disk = Tables(tmp_path, in_memory_bytes=0)
    table = on_disk.new(*points.shape)
    table[:] = points
    heads = [
        recipes.fit_default(points, labels, 0, quiet()),
        recipes.fit_default(table, labels, 0, quiet(), on_disk),
    ]
    np.testing.assert_array_equal(heads[0].weight, heads[1].weight)
    np.testing.assert_array_equal(heads[0].bias, heads[1].bias)
