"""The exact bound of the difference between two versions on the same pictures."""

import numpy as np
import pytest
from scipy.stats import multinomial

from trainer import paired


@pytest.mark.parametrize("pictures", [1, 3, 5])
def test_the_bound_is_right_at_least_95_times_in_100_whatever_the_truth(pictures: int) -> None:
    """Every table of so many pictures is enumerated, under a grid of true chances to gain and to lose one."""
    bounds = {
        (gained, lost): paired.lower_bound(gained, lost, pictures)
        for gained in range(pictures + 1)
        for lost in range(pictures + 1 - gained)
    }
    tables = np.array([(gained, lost, pictures - gained - lost) for gained, lost in bounds])
    limits = np.array(list(bounds.values()))
    coverage = [
        multinomial.pmf(tables, pictures, [gain, loss, 1 - gain - loss])[limits <= gain - loss + 1e-9].sum()
        for gain in np.linspace(0, 1, 21)
        for loss in np.linspace(0, 1, 21)
        if gain + loss <= 1
    ]
    assert min(coverage) >= 0.95 - 1e-6


def test_the_bound_wastes_little() -> None:
    """On three pictures some truth makes it right hardly more often than 95 times in 100: no larger one would do."""
    tables = [(gained, lost) for gained in range(4) for lost in range(4 - gained)]
    bounds = {table: paired.lower_bound(*table, 3) for table in tables}
    coverage = [
        sum(
            multinomial.pmf([b, c, 3 - b - c], 3, [p, q, 1 - p - q])
            for (b, c), bound in bounds.items()
            if bound <= p - q
        )
        for p in np.linspace(0.01, 0.97, 33)
        for q in np.linspace(0.01, 0.97, 33)
        if p + q <= 1
    ]
    assert min(coverage) < 0.96


def test_versions_that_agree_on_every_picture_differ_by_less_than_three_divided_by_their_number() -> None:
    """Where a loss in 1 - 0.049^(1/n) of all pictures were true, n agreements would come about 4.9 times in 100; 0.1
    goes to the share of disagreement."""
    bound = paired.lower_bound(0, 0, 175)
    assert bound == pytest.approx(-(1 - 0.049 ** (1 / 175)), abs=2e-5)


@pytest.mark.parametrize(("gained", "lost", "first"), [(0, 0, 149), (1, 1, 182), (2, 2, 218)])
def test_more_pictures_on_which_the_versions_agree_show_no_less(gained: int, lost: int, first: int) -> None:
    """Or the gate, with its margin of 0.02, would promote on the first number of pictures and refuse on the next."""
    bounds = [paired.lower_bound(gained, lost, pictures) for pictures in range(first, first + 30)]
    assert bounds == sorted(bounds)
    assert bounds[1] > -0.02


@pytest.mark.parametrize(("gained", "lost"), [(120, 100), (100, 120), (30, 10)])
def test_on_many_pictures_the_bound_is_that_of_the_normal_distribution(gained: int, lost: int) -> None:
    deviation = np.sqrt(gained + lost - (gained - lost) ** 2 / 2000)
    expected = (gained - lost - 1.645 * deviation) / 2000
    assert paired.lower_bound(gained, lost, 2000) == pytest.approx(expected, abs=0.0006)


def test_the_bound_grows_with_what_is_gained_and_falls_with_what_is_lost() -> None:
    bounds = [paired.lower_bound(gained, 4, 60) for gained in range(17)]
    assert bounds == sorted(bounds)
    bounds = [paired.lower_bound(4, lost, 60) for lost in reversed(range(17))]
    assert bounds == sorted(bounds)
    assert paired.lower_bound(0, 10, 10) == paired.lower_bound(0, 0, 0) == -1.0
    assert paired.lower_bound(10, 0, 10) > 0.3


def test_enough_pictures_are_enough_and_hardly_too_many() -> None:
    needed = paired.enough_pictures(0, 0, 58, 0.02)
    assert needed is not None
    assert paired.lower_bound(0, 0, needed) > -0.02
    assert paired.lower_bound(0, 0, needed - needed // 50) <= -0.02


def test_no_number_of_pictures_is_enough_for_a_version_that_is_worse_by_the_margin() -> None:
    assert paired.enough_pictures(0, 2, 50, 0.02) is None


@pytest.mark.parametrize("counts", [(-1, 0, 5), (0, -1, 5), (3, 3, 5)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be counts"):
        paired.lower_bound(*counts)
