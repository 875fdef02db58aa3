"""Held-out logits in, temperature and thresholds out. Rules only: no files, no network, no pictures.

Everything here sees the held-out split of the training pictures, which no head was fitted on; the test
pictures are never looked at.

How much a ban threshold is claimed to be depends on what was asked. Without a prevalence it is one at which the
precision seen on the split, which has the training shares, reaches what is wanted on enough pictures: a figure of that
split, told with its interval, not a promise about a stream. With a prevalence it is one at which that precision is
*shown*: the exact lower bound reaches it, all thresholds tried taken together.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from scipy.optimize import minimize_scalar

from trainer import intervals, operating
from trainer.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from trainer.evaluate import decisive, reviewed
from trainer.operating import Prevalence, Rates
from worker.errors import UsageError
from worker.model.labels import LABELS, RISKED

BAN_PRECISION: Final = 0.95
"""The share of banned pictures that must be risked, where nothing else is asked for."""

MIN_BANNED_RIGHTLY: Final = 10
"""Risked pictures that must lie above the ban threshold before a precision counts as shown. The best few of any
classifier may be right by luck: ten out of ten leave a one-sided lower 95 % bound of 0.74 (the tenth root of
0.05), five out of five only 0.55, hardly more than a coin's toss."""

BAN_FLOOR: Final = 0.5
"""No ban threshold lies below: a ban must be more likely right than wrong by the picture's own probability. A
split without mistakes would otherwise allow a threshold near 0, down among pictures it has seen none of."""

REVIEW_RECALL: Final = 0.95
"""The share of held-out risked pictures at or above the review threshold, where nothing else is asked for."""

BAN_CANDIDATES: Final = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""The ban thresholds, 0.5 to 0.95, that a precision is to be shown for at a given prevalence. Fixed beforehand and
few: trying every threshold and keeping the best would make its bound wrong far more often than it says."""

REVIEW_BELOW_BAN: Final = 0.98
"""The review threshold is at most this part of the ban threshold, so that near misses reach a person."""

TEMPERATURES: Final = (0.05, 20.0)
"""Where the temperature is looked for."""

DECIMALS: Final = 6
"""Digits kept of temperature and thresholds: they stand in the identity, and more are noise."""


@dataclass(frozen=True)
class Calibration:
    """What a version takes from its held-out split; `explanation` says in one sentence how it came about."""

    temperature: float
    ban_threshold: float | None
    ban_threshold_proven: bool
    review_threshold: float
    explanation: str
    operating: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Aims:
    """What is asked of the thresholds: precision of bans, recall of risked by review, for how many uploads a day.

    Raises UsageError for a share that does not lie between 0 and 1, and below one upload.
    """

    ban_precision: float = BAN_PRECISION
    review_recall: float = REVIEW_RECALL
    uploads_per_day: int = operating.UPLOADS_PER_DAY

    def __post_init__(self) -> None:
        for name, share in (("ban precision", self.ban_precision), ("review recall", self.review_recall)):
            if not 0 < share < 1:
                raise UsageError(f"The {name} {share:g} is no share to aim at: give one above 0 and below 1.")
        if self.uploads_per_day < 1:
            raise UsageError(f"{self.uploads_per_day} uploads a day are none: give 1 or more.")


def calibrate(
    logits: FloatArray,
    owner: IntArray,
    labels: IntArray,
    given: float | None = None,
    aims: Aims | None = None,
    at: Prevalence | None = None,
) -> Calibration:
    """Temperature and thresholds from logits [frames, 3], owner [frames] and labels [pictures] of the split.

    `given` is a ban threshold that a person sets instead, recorded as unproven. `at` is the prevalence to reckon
    with; without one, or with one that nobody gave, the shares of the split. Raises UsageError where `given` does not
    lie between 0 and 1.
    """
    aims = aims or Aims()
    at = at or operating.prevalence(None, dict(zip(LABELS, np.bincount(labels, minlength=3).tolist(), strict=True)))
    if given is not None:
        check_ban_threshold(given)
    temperature = fit_temperature(logits, owner, labels)
    probabilities = decisive(logits, owner, temperature)
    risked = probabilities[:, RISKED]
    is_risked = labels == RISKED
    if given is not None:
        ban: float | None = given
        above = risked >= given
        explanation = (
            f"The ban threshold {given:g} was set by hand and is not proven: on the held-out pictures "
            f"{int((above & is_risked).sum())} of {int(above.sum())} at or above it are risked."
        )
    elif at.given:
        ban, explanation = ban_threshold_at(risked, labels, at, aims.ban_precision)
    else:
        ban, explanation = ban_threshold(risked, is_risked, aims.ban_precision)
    review = review_threshold(risked, is_risked, ban, aims.review_recall)
    proven = ban is not None and given is None
    figures = operating.describe(risked, labels, reviewed(probabilities, ban, review), ban, at, aims.uploads_per_day)
    claim = "none" if not proven else "shown at the given prevalence" if at.given else "seen on the held-out pictures"
    figures |= {"aims": {"ban_precision": aims.ban_precision, "review_recall": aims.review_recall}, "claim": claim}
    return Calibration(temperature, ban, proven, review, explanation, figures)


def check_ban_threshold(value: float) -> None:
    """Raise UsageError unless `value` lies strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise UsageError(f"The ban threshold {value:g} is no probability: give one above 0 and below 1.")


def fit_temperature(logits: FloatArray, owner: IntArray, labels: IntArray) -> float:
    """The T for softmax(logits / T) that is best on the split (Guo et al. 2017), 1.0 where none is better.

    Best against targets that leave room for what the split is too small to show, as in Platt 1999: the true label
    is worth (n + 1) / (n + 3) on n pictures and the others share the rest. A split without mistakes would
    otherwise make every probability 0 or 1.
    """
    low, high = (math.log(bound) for bound in TEMPERATURES)
    targets = np.full((len(labels), len(LABELS)), 1 / (len(labels) + len(LABELS)))
    targets[np.arange(len(labels)), labels] = (len(labels) + 1) / (len(labels) + len(LABELS))

    def loss(log_temperature: float) -> float:
        probabilities = decisive(logits, owner, math.exp(log_temperature))
        return float(-(targets * np.log(np.clip(probabilities, 1e-15, 1.0))).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    # Held against those targets, too: by the labels alone a split without mistakes never asks for less certainty.
    return round(math.exp(float(found.x)), DECIMALS) if loss(float(found.x)) < loss(0.0) else 1.0


def ban_threshold(risked: DoubleArray, is_risked: BoolArray, wanted: float = BAN_PRECISION) -> tuple[float | None, str]:
    """The smallest threshold with the precision `wanted` on the split; the sentence that says so or why there is none.

    `risked` is p(risked) [pictures], `is_risked` bool [pictures].
    """
    order = np.argsort(-risked, kind="stable")
    ranked = risked[order]
    right = np.cumsum(is_risked[order])
    above = np.arange(1, len(ranked) + 1)
    # Equal probabilities stand or fall together: only the last of them can be where the threshold lies.
    is_last = np.append(ranked[1:] < ranked[:-1], True)
    good = is_last & (right / above >= wanted) & (right >= MIN_BANNED_RIGHTLY) & (ranked >= BAN_FLOOR)
    if not good.any():
        return None, (
            f"No ban threshold reaches a precision of {wanted:g} with at least {MIN_BANNED_RIGHTLY} "
            f"risked pictures above it on {len(ranked)} held-out pictures ({int(is_risked.sum())} risked), so "
            "this version never bans: what it calls risked is held for a person."
        )
    at = int(np.flatnonzero(good)[-1])
    below = float(ranked[at + 1]) if at + 1 < len(ranked) else 0.0
    # Halfway to the next picture: the last bits of another machine's arithmetic then change nothing.
    halfway = max(BAN_FLOOR, (float(ranked[at]) + below) / 2)
    threshold = round(halfway, DECIMALS) if below < round(halfway, DECIMALS) <= ranked[at] else halfway
    low, high = intervals.share(int(right[at]), at + 1)
    return threshold, (
        f"Ban threshold {threshold:g}: {int(right[at])} of {at + 1} held-out pictures above it are risked, "
        f"of {int(is_risked.sum())} risked among {len(ranked)}. With the training shares (no others were given) "
        f"the precision of bans lies between {low:.3f} and {high:.3f} with 95 % confidence, not corrected for the "
        "threshold having been chosen on the same pictures; where fewer uploads are risked it is lower."
    )


def ban_threshold_at(risked: DoubleArray, labels: IntArray, at: Prevalence, wanted: float) -> tuple[float | None, str]:
    """The smallest of BAN_CANDIDATES with a precision of `wanted` shown at a prevalence, and the sentence about it.

    Shown: the exact lower bound reaches it, each candidate at its part of the 5 % error, so that the bounds of all
    hold together 95 times in 100. `risked` is p(risked) [pictures], `labels` their indices.
    """
    error = (1 - intervals.LEVEL) / len(BAN_CANDIDATES)
    rates = {value: Rates.count(risked >= value, labels) for value in BAN_CANDIDATES}
    bounds = {value: operating.precision_bounds(found, at, error)[0] for value, found in rates.items()}
    best = max(bounds, key=lambda value: bounds[value])
    harmless = int((labels != RISKED).sum())
    for value, bound in bounds.items():
        if bound >= wanted:
            return value, (
                f"Ban threshold {value:g}: where {at.risked:.4g} of uploads are risked, at least {bound:.3f} of bans "
                f"are right with 95 % confidence ({int(rates[value].hits[RISKED])} of {int((labels == RISKED).sum())} "
                f"risked and {int(rates[value].hits.sum() - rates[value].hits[RISKED])} of {harmless} other held-out "
                "pictures lie above it)."
            )
    needed = operating.harmless_needed(rates[best], at, wanted, error)
    more = (
        f"about {needed:,} held-out pictures that are not risked, none of them above it, would; there are {harmless:,}"
        if needed is not None and needed > harmless
        else "the network must tell them apart better first"
    )
    return None, (
        f"Too little is known for a ban threshold: where {at.risked:.4g} of uploads are risked, the held-out pictures "
        f"show a precision of at least {bounds[best]:.3f} at best (threshold {best:g}), not {wanted:g}: {more}. "
        "So this version never bans: what it calls risked is held for a person."
    )


def review_threshold(
    risked: DoubleArray, is_risked: BoolArray, ban: float | None, wanted: float = REVIEW_RECALL
) -> float:
    """The largest threshold that recalls `wanted` of the risked pictures, kept below the ban threshold."""
    descending = np.sort(risked[is_risked])[::-1]
    threshold = float(descending[math.ceil(wanted * len(descending)) - 1])
    if ban is not None:
        threshold = min(threshold, REVIEW_BELOW_BAN * ban)
    # Rounded down, so that the picture the threshold was taken from stays above it.
    return math.floor(threshold * 10**DECIMALS) / 10**DECIMALS
