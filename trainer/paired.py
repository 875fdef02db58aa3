"""Two versions judged on the same pictures: how much worse may the new one be? Counts in, an exact bound out.

`gained` pictures only the new version gets right, `lost` only the old one; the difference of their accuracies is
(gained - lost) / pictures. The bound is Buehler's (1957, "Confidence intervals for the product of two binomial
parameters"), carried over to this difference by Lloyd and Moldovan (2007, "Exact one-sided confidence limits for the
difference between two correlated proportions", Statistics in Medicine 26:3369-3384): tables are ordered by an
approximate limit, here the inversion of the score test of Tango (1998, Statistics in Medicine 17:891-908), and the
bound is the smallest difference under which a table ranked at least as high as the one seen has a chance above the
error, whatever the share of pictures on which the versions disagree, up to that share's own bound. Berger and Boos
(1994, "P values maximized over a confidence set for the nuisance parameter", JASA 89:1012-1016) show that this stays
exact where the chance of that bound being wrong is added. Without it two versions that agree on 150 pictures would
show less than on 149, for what would be likely if they disagreed on all of them. Knows nothing of labels, versions or
files.
"""

import math
from typing import Final

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import bdtrc, gammaln, xlog1py, xlogy
from scipy.stats import norm

from trainer import intervals
from trainer.arrays import DoubleArray

ERROR: Final = 0.05
"""How often the bound may lie above the true difference."""

UNLIKELY: Final = 0.001
"""How often the bound of the share of disagreement may be wrong; a part of the error, as Berger and Boos advise."""

SHARES: Final = 64
"""Shares of disagreement tried for the worst one, before the neighbourhood of the worst is searched."""

NEGLECTED: Final = 1e-9
"""Chance of counts of `lost` that are left out of a sum; it is added to the chance, so the bound only gets lower."""

BOUND_TOLERANCE: Final = 1e-6
PICTURES_MAX: Final = 1_000_000
"""Where the search for enough pictures ends."""

_ORDER_TOLERANCE: Final = 1e-9


def lower_bound(gained: int, lost: int, pictures: int, error: float = ERROR) -> float:
    """The exact one-sided lower bound of (gained - lost) / pictures, between -1 and 1.

    Raises ValueError for counts that cannot be.
    """
    if min(gained, lost) < 0 or gained + lost > pictures:
        raise ValueError(f"{gained} gained and {lost} lost cannot be counts of {pictures} pictures")
    if pictures == 0 or lost == pictures:
        return -1.0
    least, most = _least_gained(gained, lost, pictures, error), _most_disagreement(gained, lost, pictures)

    def excess(difference: float) -> float:
        return _worst_chance(least, pictures, difference, most) - error

    # The chance grows with the difference (the set has every table with more gained or fewer lost); under the one seen
    # such tables alone come about at least once in four times.
    low, high = -1 + 1e-9, (gained - lost) / pictures
    return max(-1.0, float(brentq(excess, low, high, xtol=BOUND_TOLERANCE)) - BOUND_TOLERANCE)


def enough_pictures(gained: int, lost: int, pictures: int, margin: float, error: float = ERROR) -> int | None:
    """About how many pictures with the same shares gained and lost would put the bound above -margin.

    None where no number of them would: the difference seen is itself not above -margin, or beyond PICTURES_MAX.
    """
    seen = max(pictures, 1)
    if (gained - lost) / seen <= -margin:
        return None

    def shown(count: int) -> bool:
        # Rounded against the new version.
        more, fewer = math.floor(gained * count / seen), math.ceil(lost * count / seen)
        least, most = _least_gained(more, fewer, count, error), _most_disagreement(more, fewer, count)
        return _worst_chance(least, count, -margin, most) < error

    high = seen
    while not shown(high):
        high *= 2
        if high > PICTURES_MAX:
            return None
    low = high // 2
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def _least_gained(gained: int, lost: int, pictures: int, error: float) -> DoubleArray:
    """For each count of lost, the least gained that ranks a table as high as the one seen; above the possible: none.

    float64 [pictures + 1]. The score statistic grows with `gained` and falls with `lost`, so this describes the set.
    """
    quantile = float(norm.ppf(1 - error))
    limit = _approximate_limit(gained, lost, pictures, quantile)
    lost_counts = np.arange(pictures + 1, dtype=np.float64)
    low, high = np.full(pictures + 1, -1.0), pictures - lost_counts + 1
    while np.any(high - low > 1):
        middle = np.floor((low + high) / 2)
        ranked = _score(middle, lost_counts, pictures, limit) >= quantile - _ORDER_TOLERANCE
        high = np.where((high - low > 1) & ranked, middle, high)
        low = np.where((high - low > 1) & ~ranked, middle, low)
    # The table seen belongs to the set, whatever the last bits say.
    high[: lost + 1] = np.minimum(high[: lost + 1], gained)
    return high


def _approximate_limit(gained: int, lost: int, pictures: int, quantile: float) -> float:
    """Tango's lower limit: the difference at which the score statistic of the table is `quantile`."""

    def excess(difference: float) -> float:
        return float(_score(np.array([float(gained)]), np.array([float(lost)]), pictures, difference)[0]) - quantile

    low, high = -1 + 1e-9, (gained - lost) / pictures
    return low if excess(low) < 0 else float(brentq(excess, low, max(high, low + 1e-9), xtol=1e-10))


def _score(gained: DoubleArray, lost: DoubleArray, pictures: int, difference: float) -> DoubleArray:
    """Tango's score statistic of tables under `difference` d: (b - c - n d) / sqrt(n (2 q + d (1 - d))).

    q is the restricted maximum likelihood estimate of the chance of a loss, the larger root of
    2 n q^2 + (d (2 n - b + c) - b - c) q - c d (1 - d) = 0.
    """
    linear = difference * (2 * pictures - gained + lost) - gained - lost
    constant = -lost * difference * (1 - difference)
    root = (np.sqrt(np.maximum(linear**2 - 8 * pictures * constant, 0)) - linear) / (4 * pictures)
    chance_lost = np.clip(root, max(0.0, -difference), 1.0)
    variance = np.maximum(pictures * (2 * chance_lost + difference * (1 - difference)), 0)
    distance = gained - lost - pictures * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / np.sqrt(variance))


def _most_disagreement(gained: int, lost: int, pictures: int) -> float:
    """The exact upper bound of the share of pictures on which the versions disagree."""
    return intervals.upper_bound(gained + lost, pictures, UNLIKELY)


def _worst_chance(least: DoubleArray, pictures: int, difference: float, most: float) -> float:
    """The greatest chance of the set under `difference`, over all chances of a loss with which the versions disagree on
    a share of at most `most`, and the chance that they do on more."""
    low = max(0.0, -difference)
    high = max(low, (most - difference) / 2)

    # Close together where losses are rare: there the chance changes fastest.
    tried = low + (high - low) * np.linspace(0, 1, SHARES) ** 3
    chances = [_chance(least, pictures, difference, lost) for lost in tried]
    at = int(np.argmax(chances))
    around = (float(tried[max(0, at - 1)]), float(tried[min(SHARES - 1, at + 1)]))
    if around[1] - around[0] < 1e-12:
        return chances[at] + UNLIKELY
    refined = minimize_scalar(
        lambda lost: -_chance(least, pictures, difference, lost),
        bounds=around,
        method="bounded",
        options={"xatol": 1e-3 * (around[1] - around[0])},
    )
    return max(chances[at], -float(refined.fun)) + UNLIKELY


def _chance(least: DoubleArray, pictures: int, difference: float, chance_lost: float) -> float:
    """P(gained >= least[lost]) where a picture is lost with `chance_lost` and gained with that plus `difference`."""
    # Bernstein's inequality: counts further from their mean come with a chance of at most NEGLECTED.
    exponent, mean = math.log(2 / NEGLECTED), pictures * chance_lost
    reach = exponent / 3 + math.sqrt(exponent**2 / 9 + 2 * exponent * mean * (1 - chance_lost))
    lost = np.arange(max(0, math.floor(mean - reach)), min(pictures, math.ceil(mean + reach)) + 1)
    chance_gained = min(1.0, max(0.0, chance_lost + difference))
    if_not_lost = min(1.0, chance_gained / (1 - chance_lost)) if chance_lost < 1 else 0.0
    # scipy.special, not scipy.stats: its checks of arguments take ten times as long as the sums themselves.
    most = pictures - lost
    below = np.minimum(least[lost] - 1, most)
    ranked = np.where(below < most, bdtrc(below, most, if_not_lost), 0.0)
    ways = gammaln(pictures + 1) - gammaln(lost + 1) - gammaln(most + 1)
    seen = np.exp(ways + xlogy(lost, chance_lost) + xlog1py(most, -chance_lost))
    return float(seen @ ranked) + NEGLECTED
