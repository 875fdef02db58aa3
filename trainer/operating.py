"""What thresholds mean where they are used: held-out p(risked) and a prevalence in, bans and reviews a day out.

    held-out pictures by label ─► shares at or above a threshold ─► weighted by prevalence ─► precision, a day's figures

A training set is balanced and the stream is not: of a hundred uploads two may be risked where a third of the training
pictures are, and every picture wrongly banned then weighs sixteen times as much. Shares are of each true label, which
does not depend on how many of them were supplied (label shift). Every interval is exact or wider than exact: bounds of
shares are Clopper and Pearson's, and what combines several takes each at its part of the error (Bonferroni), in the
least favourable direction. Rules only: no files, no network, no pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from trainer import intervals
from trainer.arrays import BoolArray, DoubleArray, IntArray
from worker.errors import UsageError
from worker.model.labels import LABELS, RISKED

UPLOADS_PER_DAY: Final = 1_000_000
"""The volume that expected figures are told for where none is given."""

RECALL_PART: Final = 0.1
"""The part of a precision bound's error that goes to the recall; the rest goes to the rare false bans, on which the
precision of a rare label hangs."""

_HARMLESS: Final = tuple(label for label in range(len(LABELS)) if label != RISKED)
_SUM_TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class Prevalence:
    """The share of each label among uploads, in the order of LABELS, summing to 1; `given` where a person said so."""

    shares: tuple[float, ...]
    given: bool

    @property
    def risked(self) -> float:
        """The share of risked uploads."""
        return self.shares[RISKED]

    def named(self) -> dict[str, float]:
        """The shares by label, for a manifest."""
        return {name: round(share, 8) for name, share in zip(LABELS, self.shares, strict=True)}


def prevalence(given: Mapping[str, float] | None, training_counts: Mapping[str, int]) -> Prevalence:
    """The shares to reckon with: those `given`, labels left out sharing the rest as in training; else training's.

    Raises UsageError for an unknown label, shares that are none or do not leave something for each label.
    """
    counts = np.array([training_counts[name] for name in LABELS], np.float64)
    if not given:
        return Prevalence(tuple(float(share) for share in counts / counts.sum()), given=False)
    check_given(given)
    left = [i for i, name in enumerate(LABELS) if name not in given]
    rest = 1 - sum(given.values())
    shares = [given.get(name, 0.0) for name in LABELS]
    for i in left:
        shares[i] = rest * float(counts[i] / counts[left].sum())
    return Prevalence(tuple(shares), given=True)


def check_given(given: Mapping[str, float]) -> None:
    """Raise UsageError unless each share lies between 0 and 1 and together they leave what belongs to the others."""
    for name, share in given.items():
        if name not in LABELS:
            raise UsageError(f"--prevalence names {name[:40]!r}, which is no label: they are {', '.join(LABELS)}.")
        if not 0 < share < 1:
            raise UsageError(f"The prevalence {share:g} of {name} is no share: give one above 0 and below 1.")
    total = sum(given.values())
    if "risked" not in given:
        raise UsageError("--prevalence needs the share of risked: write --prevalence risked=0.02.")
    if len(given) == len(LABELS) and abs(total - 1) > _SUM_TOLERANCE:
        raise UsageError(f"The three prevalences sum to {total:g}: they must sum to 1, or leave one out.")
    if len(given) < len(LABELS) and total >= 1:
        raise UsageError(f"The prevalences sum to {total:g} and leave nothing for the other labels: lower them.")


@dataclass(frozen=True)
class Rates:
    """How many held-out pictures of each label, int64 [3], are hit by some rule, of how many, int64 [3]."""

    hits: IntArray
    of: IntArray

    @classmethod
    def count(cls, hit: BoolArray, labels: IntArray) -> "Rates":
        """From `hit` bool [pictures] and label indices [pictures]."""
        every = len(LABELS)
        return cls(np.bincount(labels[hit], minlength=every), np.bincount(labels, minlength=every))

    def share(self, label: int) -> float:
        """The share of a label's pictures that is hit; 0 where there are none."""
        return float(self.hits[label] / self.of[label]) if self.of[label] else 0.0

    def mean(self, weights: DoubleArray) -> float:
        """The share of all pictures where labels have `weights` [3]."""
        return float(sum(weight * self.share(label) for label, weight in enumerate(weights)))

    def bounds(self, weights: DoubleArray, error: float) -> intervals.Interval:
        """Lower and upper bound of `mean(weights)`, each wrong at most `error` of the time.

        Pictures of labels that are weighted as they were counted are pooled: a sum of binomials is no wider than the
        binomial of their mean share (Hoeffding 1956). Otherwise each label's bound takes its part of the error.
        """
        used = [label for label, weight in enumerate(weights) if weight > 0]
        of, weighted = self.of[used], weights[used]
        if of.sum() and np.allclose(of / of.sum(), weighted / weighted.sum(), rtol=0.02):
            hits, total, scale = int(self.hits[used].sum()), int(of.sum()), float(weighted.sum())
            return (
                scale * intervals.lower_bound(hits, total, error),
                scale * intervals.upper_bound(hits, total, error),
            )
        part = error / len(used)
        pairs = [(int(self.hits[i]), int(self.of[i])) for i in used]
        low = sum(w * intervals.lower_bound(*pair, part) for w, pair in zip(weighted, pairs, strict=True))
        high = sum(w * intervals.upper_bound(*pair, part) for w, pair in zip(weighted, pairs, strict=True))
        return float(low), float(high)


def precision(rates: Rates, at: Prevalence) -> float | None:
    """The share of risked among what is hit, at a prevalence; None where nothing is hit."""
    right, wrong = rates.mean(_only_risked(at)), rates.mean(_harmless(at))
    return right / (right + wrong) if right + wrong > 0 else None


def precision_bounds(rates: Rates, at: Prevalence, error: float) -> intervals.Interval:
    """Lower and upper bound of `precision`, each wrong at most `error` of the time.

    Precision is p r / (p r + w): it grows with the recall r and falls with the weighted share w of false bans, so a
    bound follows from one of each; RECALL_PART of the error goes to r.
    """
    right = rates.bounds(_only_risked(at), RECALL_PART * error)
    wrong = rates.bounds(_harmless(at), (1 - RECALL_PART) * error)
    low = right[0] / (right[0] + wrong[1]) if right[0] + wrong[1] > 0 else 0.0
    high = right[1] / (right[1] + wrong[0]) if right[1] + wrong[0] > 0 else 1.0
    return low, high


def harmless_needed(rates: Rates, at: Prevalence, wanted: float, error: float) -> int | None:
    """About how many harmless held-out pictures, none wrongly banned, would show a precision of `wanted`.

    None where not even that would: no risked picture is hit.
    """
    right = rates.bounds(_only_risked(at), RECALL_PART * error)[0]
    allowed = right * (1 - wanted) / wanted / (1 - at.risked)
    if allowed <= 0:
        return None
    return int(np.ceil(np.log((1 - RECALL_PART) * error) / np.log1p(-min(allowed, 0.999))))


def per_day(rates: Rates, at: Prevalence, uploads: int) -> dict[str, Any]:
    """Pictures a day that are hit and are not risked, and all that are hit, with 95 % intervals."""
    error = (1 - intervals.LEVEL) / 2
    wrong = rates.bounds(_harmless(at), error)
    # Two bounds make one of the sum: each at half its error.
    right, also_wrong = rates.bounds(_only_risked(at), error / 2), rates.bounds(_harmless(at), error / 2)
    return {
        "all": round(uploads * rates.mean(np.array(at.shares)), 1),
        "all_interval": [round(uploads * (right[i] + also_wrong[i]), 1) for i in (0, 1)],
        "not_risked": round(uploads * rates.mean(_harmless(at)), 1),
        "not_risked_interval": [round(uploads * wrong[i], 1) for i in (0, 1)],
    }


def describe(
    risked: DoubleArray, labels: IntArray, reviewed: BoolArray, ban: float | None, at: Prevalence, uploads: int
) -> dict[str, Any]:
    """What is to be expected of thresholds at a prevalence, for a manifest; intervals are two-sided, 95 %.

    `risked` is p(risked) [pictures], `labels` their indices, `reviewed` what a person would see.
    """
    banned = risked >= ban if ban is not None else np.zeros(len(labels), np.bool_)
    bans, reviews, seen = (Rates.count(hit, labels) for hit in (banned, reviewed, banned | reviewed))
    made: dict[str, Any] = {
        "prevalence": at.named(),
        "prevalence_from": "given" if at.given else "the training pictures",
        "uploads_per_day": uploads,
        "reviews_per_day": per_day(reviews, at, uploads),
        "recall_of_bans_and_reviews": _with_interval(seen, RISKED),
    }
    if ban is not None:
        bounds = precision_bounds(bans, at, (1 - intervals.LEVEL) / 2)
        made |= {
            "bans_per_day": per_day(bans, at, uploads),
            "ban_precision": {"value": precision(bans, at), "interval": [round(bound, 6) for bound in bounds]},
            "recall_of_bans": _with_interval(bans, RISKED),
        }
    return made


def _with_interval(rates: Rates, label: int) -> dict[str, Any]:
    hits, of = int(rates.hits[label]), int(rates.of[label])
    return {"hits": hits, "of": of, "value": rates.share(label), "interval": list(intervals.share(hits, of))}


def _only_risked(at: Prevalence) -> DoubleArray:
    return np.array([at.shares[label] if label == RISKED else 0.0 for label in range(len(LABELS))])


def _harmless(at: Prevalence) -> DoubleArray:
    return np.array([at.shares[label] if label in _HARMLESS else 0.0 for label in range(len(LABELS))])
