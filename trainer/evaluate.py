"""Logits and labels in, figures out: by the worker's rules, so that a figure speaks of what users will see.

A picture's probabilities are those of its most dangerous frame, and its label is the contract's: `risked`
where p(risked) reaches the ban threshold, else the likeliest. Knows nothing of files, networks or how a head
was fitted.
"""

from typing import Any

import numpy as np
from sklearn import metrics as sk

from trainer.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from worker.model.labels import LABELS, RISKED
from worker.model.reference import histogram


def softmax(logits: FloatArray, temperature: float) -> DoubleArray:
    """softmax(logits / temperature), float64 [frames, 3]."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    result: DoubleArray = powers / powers.sum(axis=1, keepdims=True)
    return result


def decisive(logits: FloatArray, owner: IntArray, temperature: float) -> DoubleArray:
    """The probabilities [pictures, 3] of each picture's frame with the highest p(risked), the first of equals.

    `logits` is [frames, 3]; `owner` [frames] names every picture 0 … pictures - 1 at least once.
    """
    probabilities = softmax(logits, temperature)
    order = np.lexsort((-probabilities[:, RISKED], owner))
    firsts = np.unique(owner[order], return_index=True)[1]
    result: DoubleArray = probabilities[order[firsts]]
    return result


def decided(probabilities: DoubleArray, ban_threshold: float | None) -> IntArray:
    """The label index [pictures] by the contract: risked from the ban threshold on, else the likeliest."""
    labels: IntArray = probabilities.argmax(axis=1).astype(np.int64)
    if ban_threshold is not None:
        labels[probabilities[:, RISKED] >= ban_threshold] = RISKED
    return labels


def banned(probabilities: DoubleArray, ban_threshold: float | None) -> BoolArray:
    """Whether a picture is banned, bool [pictures]: p(risked) at or above the threshold; never without one."""
    if ban_threshold is None:
        return np.zeros(len(probabilities), np.bool_)
    result: BoolArray = probabilities[:, RISKED] >= ban_threshold
    return result


def reviewed(probabilities: DoubleArray, ban_threshold: float | None, review_threshold: float | None) -> BoolArray:
    """Whether a person sees a picture, bool [pictures]: no ban, and called risked or at or above the threshold."""
    called = decided(probabilities, ban_threshold) == RISKED
    if review_threshold is not None:
        called |= probabilities[:, RISKED] >= review_threshold
    result: BoolArray = called & ~banned(probabilities, ban_threshold)
    return result


def log_loss(probabilities: DoubleArray, labels: IntArray, weights: DoubleArray | None = None) -> float:
    """Mean of -ln p(true label), each p kept from 0 by 1e-15; `weights` [pictures] are what each counts."""
    of_truth = probabilities[np.arange(len(labels)), labels]
    return float(np.average(-np.log(np.clip(of_truth, 1e-15, 1.0)), weights=weights))


def count(
    probabilities: DoubleArray, labels: IntArray, ban_threshold: float | None, review_threshold: float | None
) -> dict[str, Any]:
    """The figures of one set of pictures, as they stand in a manifest, from probabilities [pictures, 3].

    `accuracy` and everything per label speak of the contract's label; `accuracy_likeliest` ignores the ban
    threshold (the two differ only where a person set one below 0.5). `confusion` has a row for each true label, and
    so has `risked_probability`: pictures by bins of p(risked), for the worker's drift reference.
    """
    predicted = decided(probabilities, ban_threshold)
    every = list(range(len(LABELS)))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0.0
    )
    bans = banned(probabilities, ban_threshold)
    return {
        "pictures": len(labels),
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "accuracy_likeliest": float(sk.accuracy_score(labels, decided(probabilities, None))),
        "log_loss": log_loss(probabilities, labels),
        "labels": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "pictures": int(support[i]),
            }
            for i, name in enumerate(LABELS)
        },
        "confusion": sk.confusion_matrix(labels, predicted, labels=every).tolist(),
        "bans": int(bans.sum()),
        "false_bans": int((bans & (labels != RISKED)).sum()),
        "reviews": int(reviewed(probabilities, ban_threshold, review_threshold).sum()),
        "risked_probability": histogram(probabilities[:, RISKED], labels),
    }
