"""Counts in, bounds out: how far a share seen on few pictures may lie from the truth. Rules only.

Shares get exact binomial bounds (Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in
the case of the binomial"): they hold for every number of pictures. What is no share, a mean loss or a calibration
error, gets a percentile bootstrap (Efron 1979), which is approximate and says little below a few dozen pictures.
Knows nothing of labels, thresholds or files.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from scipy.stats import beta, bootstrap

from trainer.arrays import IntArray

LEVEL: Final = 0.95
"""Confidence of every two-sided interval and every one-sided bound that is not told another."""

RESAMPLES: Final = 1000
"""Bootstrap resamples: the ends of a 95 % interval then wobble by about a tenth of its length."""

DRAWN_AT_ONCE: Final = 4_000_000
"""Indices, 8 bytes each and copied once: all resamples together would take 3 GB for 200,000 pictures."""

Interval = tuple[float, float]


def lower_bound(hits: int, of: int, error: float = 1 - LEVEL) -> float:
    """The exact one-sided lower bound of a share: it lies above the true one at most `error` of the time."""
    return float(beta.ppf(error, hits, of - hits + 1)) if hits > 0 else 0.0


def upper_bound(hits: int, of: int, error: float = 1 - LEVEL) -> float:
    """The exact one-sided upper bound of a share; 1.0 where nothing was counted."""
    return float(beta.ppf(1 - error, hits + 1, of - hits)) if hits < of else 1.0


def share(hits: int, of: int, level: float = LEVEL) -> Interval:
    """The exact two-sided interval of a share: `hits` of `of` independent pictures."""
    error = (1 - level) / 2
    return lower_bound(hits, of, error), upper_bound(hits, of, error)


def bootstrapped(statistic: Callable[[IntArray], float], pictures: int, level: float = LEVEL) -> Interval | None:
    """The percentile interval of `statistic`, called with indices [pictures] drawn with replacement.

    The draws start from a fixed seed: the same pictures give the same interval. None below two pictures.
    """
    if pictures < 2:
        return None
    found = bootstrap(
        (np.arange(pictures),),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // pictures),
        vectorized=False,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
