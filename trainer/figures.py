"""Probabilities and labels of one set of pictures in, every figure of the report out. Rules only.

`evaluate` has the figures that stand in a manifest; here are those that a person looks at: how sure they are
(intervals), curves, calibration, slices, and the worst mistakes. All of it is plain numbers and lists, ready for JSON.
Knows nothing of files, networks or how anything is drawn.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

import numpy as np
from sklearn import metrics as sk

from trainer import intervals
from trainer.arrays import BoolArray, DoubleArray, IntArray
from trainer.costs import at
from trainer.dataset import Facts
from trainer.evaluate import banned, decided
from worker.model.labels import LABELS, RISKED

BINS: Final = 10
"""Bins of confidence of equal width; with more, a few hundred pictures leave bins of two or three."""

CURVE_POINTS_MAX: Final = 200
"""Points kept of a curve: more cannot be told apart on a page."""

MISTAKES_MAX: Final = 12

SIZES: Final = ((256, "below 256"), (512, "256 to 511"), (1024, "512 to 1023"), (None, "1024 and more"))
"""Classes of a picture's shorter side in pixels: the network looks at 256."""


def with_intervals(probabilities: DoubleArray, labels: IntArray, ban_threshold: float | None) -> dict[str, Any]:
    """The expected calibration error, and 95 % intervals of what a manifest says of these pictures.

    Shares have exact binomial intervals; log loss and calibration error percentile bootstraps over pictures.
    """
    called = decided(probabilities, ban_threshold)
    losses = -np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-15, 1.0))
    right = called == labels
    made: dict[str, Any] = {
        "calibration_error": calibration_error(probabilities, labels),
        "intervals": {
            "accuracy": list(intervals.share(int(right.sum()), len(labels))),
            "log_loss": _list(intervals.bootstrapped(lambda drawn: float(losses[drawn].mean()), len(labels))),
            "calibration_error": _list(
                intervals.bootstrapped(
                    lambda drawn: calibration_error(probabilities[drawn], labels[drawn]), len(labels)
                )
            ),
        },
    }
    for i, name in enumerate(LABELS):
        hits, supplied, named = int((right & (labels == i)).sum()), int((labels == i).sum()), int((called == i).sum())
        made["intervals"][f"recall_{name}"] = list(intervals.share(hits, supplied))
        made["intervals"][f"precision_{name}"] = list(intervals.share(hits, named))
    bans = banned(probabilities, ban_threshold)
    right_bans = int((bans & (labels == RISKED)).sum())
    made["intervals"]["ban_precision"] = list(intervals.share(right_bans, int(bans.sum())))
    return made


def calibration_error(probabilities: DoubleArray, labels: IntArray) -> float:
    """The expected calibration error of the likeliest label over BINS bins (Naeini et al. 2015; Guo et al. 2017):
    the mean distance between confidence and share right, weighted by the pictures in a bin. 0 is perfect."""
    rows = reliability(probabilities, labels)
    return float(sum(row["pictures"] * abs(row["confidence"] - row["right"]) for row in rows) / max(len(labels), 1))


def reliability(probabilities: DoubleArray, labels: IntArray) -> list[dict[str, Any]]:
    """For each bin of the likeliest label's probability that holds pictures: their number, mean confidence, the share
    that is right."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    counted = np.bincount(bins, minlength=BINS)
    sums, hits = (np.bincount(bins, weights=values, minlength=BINS) for values in (confidence, right))
    return [
        {
            "from": i / BINS,
            "to": (i + 1) / BINS,
            "pictures": int(counted[i]),
            "confidence": float(sums[i] / counted[i]),
            "right": float(hits[i] / counted[i]),
        }
        for i in np.flatnonzero(counted)
    ]


def curves(probabilities: DoubleArray, labels: IntArray) -> dict[str, Any]:
    """For each label against the rest: precision over recall, hits over false alarms, and the areas under both."""
    made = {}
    for i, name in enumerate(LABELS):
        truth, scores = labels == i, probabilities[:, i]
        if truth.all() or not truth.any():
            continue
        precision, recall, _ = sk.precision_recall_curve(truth, scores)
        false_alarms, hits, _ = sk.roc_curve(truth, scores)
        made[name] = {
            "precision_recall": _thinned(recall, precision),
            "roc": _thinned(false_alarms, hits),
            "average_precision": float(sk.average_precision_score(truth, scores)),
            "roc_area": float(sk.roc_auc_score(truth, scores)),
            "share": float(truth.mean()),
        }
    return made


def _thinned(x: DoubleArray, y: DoubleArray) -> list[list[float]]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), CURVE_POINTS_MAX)).round().astype(np.int64))
    return [[round(float(x[i]), 5), round(float(y[i]), 5)] for i in kept]


def slices(
    probabilities: DoubleArray, labels: IntArray, ban_threshold: float | None, facts: Sequence[Facts]
) -> dict[str, list[dict[str, Any]]]:
    """Accuracy and recall of risked, with exact 95 % intervals, by file format and by the shorter side in pixels.

    `facts` are [pictures].
    """
    right = decided(probabilities, ban_threshold) == labels
    by_format = np.array([one.format for one in facts])
    by_size = np.array([_size_class(min(one.width, one.height)) for one in facts])
    sizes = [name for _, name in SIZES if name in by_size]
    return {
        "format": [_slice(name, right, labels, by_format == name) for name in sorted(set(by_format.tolist()))],
        "shorter_side": [_slice(name, right, labels, by_size == name) for name in sizes],
    }


def _size_class(shorter: int) -> str:
    return next(name for below, name in SIZES if below is None or shorter < below)


def _slice(name: str, right: BoolArray, labels: IntArray, inside: BoolArray) -> dict[str, Any]:
    risked = inside & (labels == RISKED)
    hits, of, risked_hits, risked_of = (int(which.sum()) for which in (right & inside, inside, right & risked, risked))
    return {
        "name": name,
        "pictures": of,
        "accuracy": hits / of,
        "accuracy_interval": list(intervals.share(hits, of)),
        "risked": risked_of,
        "recall_of_risked": risked_hits / risked_of if risked_of else None,
        "recall_of_risked_interval": list(intervals.share(risked_hits, risked_of)) if risked_of else None,
    }


def worst_mistakes(probabilities: DoubleArray, labels: IntArray, ban_threshold: float | None) -> IntArray:
    """Indices of the pictures called wrongly, the ones with the least probability of their true label first."""
    wrong = np.flatnonzero(decided(probabilities, ban_threshold) != labels)
    order = np.argsort(probabilities[wrong, labels[wrong]], kind="stable")
    result: IntArray = wrong[order][:MISTAKES_MAX]
    return result


def to_explain(probabilities: DoubleArray, labels: IntArray, ban_threshold: float | None, count: int) -> IntArray:
    """Indices of `count` pictures worth explaining: by turns the surest right one of each label, and the worst
    mistakes; fewer where there are no more of both."""
    right = np.flatnonzero(decided(probabilities, ban_threshold) == labels)
    right = right[np.argsort(-probabilities[right, labels[right]], kind="stable")]
    surest = right[np.sort(np.unique(labels[right], return_index=True)[1])]
    pair = (surest.tolist(), worst_mistakes(probabilities, labels, ban_threshold).tolist())
    turns = [one for both in zip_longest(*pair) for one in both if one is not None]
    result: IntArray = np.array(turns[:count], np.int64)
    return result


def comparison(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of (name, before, now, digits) of two versions' test figures, as far as both have them."""
    rows: list[tuple[str, tuple[str, ...]]] = []
    rows += [("accuracy", ("accuracy",)), ("log loss", ("log_loss",)), ("calibration error", ("calibration_error",))]
    rows += [(f"recall of {name}", ("labels", name, "recall")) for name in LABELS]
    rows += [(f"precision of {name}", ("labels", name, "precision")) for name in LABELS]
    made = [{"name": name, "before": at(before, path), "now": at(now, path), "digits": 3} for name, path in rows]
    return [row for row in made if row["now"] is not None]


def _list(interval: intervals.Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
