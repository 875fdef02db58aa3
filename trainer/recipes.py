"""Two ways to fit the last layer on features that a frozen network computed once.

    default   head inputs ─► C by cross-validation ─► regularised logistic regression, solved to its end
    article   features at the cut ─► dropout and what follows it, in every epoch anew ─► Adam ─► best epoch

Both return the weight and bias of the network's last layer. Knows nothing of files, thresholds or the store.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from trainer.arrays import FloatArray, IntArray
from trainer.evaluate import decided, decisive, log_loss
from trainer.features import Features
from trainer.frozen import FrozenPart
from trainer.logistic import TRIAL_TOLERANCE, balanced, fit_logistic
from trainer.progress import Reporter
from trainer.tables import Tables
from worker.model.labels import LABELS

C_VALUES: Final = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)
"""Inverse strengths of the L2 penalty (scikit-learn's C) that cross-validation chooses from."""

FOLDS: Final = 5

SEED: Final = 0
"""Where random numbers of a recipe start; fixed, so that the same pictures and base give the same version."""

ARTICLE_LEARNING_RATE: Final = 1e-4
ARTICLE_BATCH: Final = 100
ARTICLE_EPOCHS: Final = 10


@dataclass(frozen=True)
class FittedHead:
    """The last layer: `weight` float32 [3, head_width], `bias` float32 [3]; how it was found, for the manifest."""

    weight: FloatArray
    bias: FloatArray
    hyperparameters: dict[str, Any]

    def logits(self, head_input: FloatArray) -> FloatArray:
        """float32 [N, head_width] to float32 [N, 3], in the arithmetic the worker uses."""
        result: FloatArray = nn.functional.linear(
            torch.from_numpy(head_input), torch.from_numpy(self.weight), torch.from_numpy(self.bias)
        ).numpy()
        return result


def fit_default(
    inputs: FloatArray, labels: IntArray, seed: int, reporter: Reporter, tables: Tables | None = None
) -> FittedHead:
    """Fit on head inputs [N, head_width] and labels [N]; C is the one with the least cross-validated log loss.

    The log loss rather than accuracy, because thresholds are set on the probabilities, and because a few
    dozen pictures a fold leave accuracy full of ties. `tables` takes what is large.
    """
    tables = tables or Tables()
    tried = cross_validate(inputs, labels, seed, reporter, tables)
    c = min(C_VALUES, key=lambda value: tried[value]["log_loss"])
    fit = fit_logistic(inputs, np.arange(len(labels)), labels, (c,), tables)[0]
    weight, bias = fit.folded()
    chosen = {
        "c": c,
        "cross_validation": {f"{value:g}": figures for value, figures in tried.items()},
        "class_weight": "balanced",
        "features_used": int(np.isfinite(fit.scale.deviation).sum()),
        "solver_steps": fit.steps,
        "converged": fit.converged,
    }
    return FittedHead(weight, bias, chosen)


def cross_validate(
    inputs: FloatArray, labels: IntArray, seed: int, reporter: Reporter, tables: Tables
) -> dict[float, dict[str, float]]:
    """Mean log loss and accuracy of each of C_VALUES over stratified folds; scaling is fitted within the fold.

    Each label counts the same in the log loss, as in the fit: else the C would suit the label with the most pictures.
    """
    weights = balanced(labels)
    smallest = int(np.bincount(labels, minlength=len(LABELS)).min())
    folds = StratifiedKFold(n_splits=min(FOLDS, smallest), shuffle=True, random_state=seed)
    losses: dict[float, list[float]] = {c: [] for c in C_VALUES}
    hits: dict[float, list[float]] = {c: [] for c in C_VALUES}
    with reporter.track("Cross-validation folds", folds.get_n_splits()) as advance:
        for inside, outside in folds.split(np.zeros(len(labels)), labels):
            trials = fit_logistic(inputs, inside, labels, C_VALUES, tables, TRIAL_TOLERANCE)
            for c, fit in zip(C_VALUES, trials, strict=True):
                logits = fit.logits(inputs, outside)
                probabilities = decisive(logits, np.arange(len(outside)), 1.0)
                losses[c].append(log_loss(probabilities, labels[outside], weights[outside]))
                hits[c].append(float((decided(probabilities, None) == labels[outside]).mean()))
            advance(1)
    return {
        c: {"log_loss": round(float(np.mean(losses[c])), 6), "accuracy": round(float(np.mean(hits[c])), 6)}
        for c in C_VALUES
    }


def fit_article(
    part: FrozenPart, fitted_on: Features, validation: Features, epochs: int, seed: int, reporter: Reporter
) -> FittedHead:
    """The source article's loop: cross-entropy, Adam at 1e-4, batches of 100, dropout active, best epoch kept.

    As published, the best epoch is the one with the best accuracy on `validation`, which is the test folder:
    the test figures of this recipe are flattered by that choice.
    """
    inputs = torch.from_numpy(fitted_on.values)  # stays where it is, which may be a disk; batches go to the device
    labels = torch.from_numpy(fitted_on.labels)
    validated = part.head_input(validation.values)
    curve: list[dict[str, float]] = []
    best: FittedHead | None = None
    best_epoch = 0
    with seeded(seed, part.device), reporter.track("Epochs", epochs) as advance:
        head = _untrained(part.head_width).to(part.device)
        optimizer = torch.optim.Adam(head.parameters(), lr=ARTICLE_LEARNING_RATE)
        for _ in range(epochs):
            loss = _epoch(part, head, optimizer, inputs, labels)
            now = FittedHead(_array(head.weight), _array(head.bias), {})
            logits = now.logits(validated)
            hit = decided(decisive(logits, validation.owner, 1.0), None) == validation.labels
            curve.append({"train_loss": round(loss, 6), "validation_accuracy": round(float(hit.mean()), 6)})
            if best is None or curve[-1]["validation_accuracy"] > curve[best_epoch - 1]["validation_accuracy"]:
                best, best_epoch = now, len(curve)
            advance(1)
    if best is None:
        raise ValueError("epochs must be at least 1")
    chosen = {
        "best_epoch": best_epoch,
        "learning_rate": ARTICLE_LEARNING_RATE,
        "batch": ARTICLE_BATCH,
        "epochs": curve,
    }
    return FittedHead(best.weight, best.bias, chosen)


def untrained_head(head_width: int, seed: int) -> FittedHead:
    """The last layer that the article's recipe starts from with that seed, before it has seen a picture."""
    with seeded(seed, torch.device("cpu")):
        head = _untrained(head_width)
    return FittedHead(_array(head.weight), _array(head.bias), {})


def _untrained(head_width: int) -> nn.Linear:
    return nn.Linear(head_width, len(LABELS))


def _epoch(
    part: FrozenPart, head: nn.Linear, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor
) -> float:
    """One pass over shuffled `inputs` [N, width]; returns the mean loss a picture."""
    part.repeated.train()
    total = 0.0
    for batch in torch.split(torch.randperm(len(inputs)), ARTICLE_BATCH):
        with torch.no_grad():
            head_input = part.repeated(inputs[batch].to(part.device))
        loss = nn.functional.cross_entropy(head(head_input), labels[batch].to(part.device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.item() * len(batch)
    return total / len(inputs)


def _array(tensor: Tensor) -> FloatArray:
    result: FloatArray = tensor.detach().cpu().clone().numpy()
    return result


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers start from `seed` inside, and go on as if nothing had happened afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
