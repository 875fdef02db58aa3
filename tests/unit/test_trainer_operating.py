"""What thresholds mean at the prevalence of a real stream."""

import numpy as np
import pytest

from trainer import calibrate, intervals, operating
from trainer.operating import Rates
from worker.errors import UsageError
from worker.model.labels import RISKED

TRAINING = {"approved": 300, "not_suitable": 100, "risked": 400}


def rates(hits: list[int], of: list[int]) -> Rates:
    return Rates(np.array(hits), np.array(of))


def test_without_a_prevalence_the_training_shares_are_taken_and_it_is_known() -> None:
    at = operating.prevalence(None, TRAINING)
    assert at.shares == pytest.approx((0.375, 0.125, 0.5))
    assert not at.given


def test_labels_left_out_share_the_rest_as_in_training() -> None:
    at = operating.prevalence({"risked": 0.02}, TRAINING)
    assert at.shares == pytest.approx((0.735, 0.245, 0.02))
    assert at.given
    at = operating.prevalence({"risked": 0.02, "approved": 0.9}, TRAINING)
    assert at.shares == pytest.approx((0.9, 0.08, 0.02))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"spam": 0.1}, "no label"),
        ({"risked": 0.0}, "no share"),
        ({"risked": 1.5}, "no share"),
        ({"risked": float("nan")}, "no share"),
        ({"approved": 0.5}, "needs the share of risked"),
        ({"risked": 0.5, "approved": 0.5}, "leave nothing"),
        ({"risked": 0.5, "approved": 0.2, "not_suitable": 0.2}, "sum to 1"),
    ],
)
def test_a_prevalence_that_is_none_is_refused(given: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        operating.prevalence(given, TRAINING)


def test_precision_falls_with_prevalence_as_bayes_says() -> None:
    """Half of the risked and 1 in 100 of the others are hit: 0.02 x 0.5 against 0.98 x 0.01."""
    found = rates([1, 1, 50], [100, 100, 100])
    at = operating.prevalence({"risked": 0.02}, {"approved": 1, "not_suitable": 1, "risked": 1})
    assert operating.precision(found, at) == pytest.approx(0.01 / (0.01 + 0.0098))
    assert operating.precision(rates([0, 0, 0], [9, 9, 9]), at) is None


def test_the_bound_of_precision_is_right_at_least_95_times_in_100() -> None:
    """Simulated: true rates of 0.6 and 0.004, 150 risked and 600 other pictures of which two labels differ."""
    rng = np.random.default_rng(0)
    of = np.array([300, 300, 150])
    at = operating.prevalence({"risked": 0.05}, {"approved": 1, "not_suitable": 1, "risked": 1})
    truth = 0.05 * 0.6 / (0.05 * 0.6 + 0.95 * 0.004)
    drawn = [Rates(rng.binomial(of, [0.002, 0.006, 0.6]), of) for _ in range(2000)]
    bounds = np.array([operating.precision_bounds(found, at, 0.05) for found in drawn])
    assert (bounds[:, 0] <= truth).mean() >= 0.95
    assert (bounds[:, 1] >= truth).mean() >= 0.95


def test_labels_weighted_unlike_their_numbers_get_wider_bounds_than_pooled_ones() -> None:
    found = rates([2, 2, 0], [500, 500, 500])
    same = np.array([0.5, 0.5, 0.0])
    narrow = found.bounds(same, 0.05)
    assert narrow[0] < found.mean(same) < narrow[1]
    for other in (np.array([0.9, 0.1, 0.0]), np.array([0.6, 0.4, 0.0])):
        wide = found.bounds(other, 0.05)
        assert wide[1] - wide[0] > narrow[1] - narrow[0]


def split(per_label: int, found: float, false: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """p(risked) and labels of a split: a share of the risked at 0.97, `false` others too, the rest low."""
    labels = np.repeat([0, 1, RISKED], per_label)
    risked = np.full(3 * per_label, 0.05)
    risked[2 * per_label : 2 * per_label + round(found * per_label)] = 0.97
    risked[:false] = 0.97
    return risked, labels


def at_two_percent(per_label: int) -> operating.Prevalence:
    return operating.prevalence({"risked": 0.02}, dict.fromkeys(TRAINING, per_label))


def test_a_ban_threshold_at_a_prevalence_is_one_whose_precision_is_shown() -> None:
    risked, labels = split(8000, 0.9)
    threshold, sentence = calibrate.ban_threshold_at(risked, labels, at_two_percent(8000), 0.95)
    assert threshold == 0.5
    assert "at least 0.98" in sentence and "0 of 16000 other" in sentence


def test_a_claim_holds_for_all_the_thresholds_that_were_tried_together() -> None:
    """5,000 harmless pictures would show the precision at one threshold; of ten, one may show it by luck."""
    risked, labels = split(2500, 0.9)
    at = at_two_percent(2500)
    alone = operating.precision_bounds(Rates.count(risked >= 0.5, labels), at, 0.05)[0]
    together = operating.precision_bounds(Rates.count(risked >= 0.5, labels), at, 0.005)[0]
    wanted = (alone + together) / 2
    assert alone - together > 0.01
    assert calibrate.ban_threshold_at(risked, labels, at, wanted)[0] is None
    assert calibrate.ban_threshold_at(risked, labels, at, together)[0] == 0.5


def test_pictures_at_the_very_threshold_are_banned_and_count() -> None:
    risked, labels = split(8000, 0.9)
    risked[:100] = 0.5
    assert calibrate.ban_threshold_at(risked, labels, at_two_percent(8000), 0.95)[0] == 0.55


def test_few_pictures_without_a_mistake_are_too_little_for_a_claim_and_it_is_said_how_many_would_do() -> None:
    risked, labels = split(40, 0.9)
    threshold, sentence = calibrate.ban_threshold_at(risked, labels, at_two_percent(40), 0.95)
    assert threshold is None
    assert "Too little is known" in sentence and "there are 80" in sentence and "never bans" in sentence


def test_one_wrong_ban_in_two_thousand_matters_at_a_low_prevalence() -> None:
    """The same split shows 0.95 where a third is risked, and does not where one in fifty is."""
    risked, labels = split(1000, 0.9, false=2)
    balanced = operating.prevalence({"risked": 1 / 3}, dict.fromkeys(TRAINING, 1000))
    assert calibrate.ban_threshold_at(risked, labels, balanced, 0.95)[0] == 0.5
    assert calibrate.ban_threshold_at(risked, labels, at_two_percent(1000), 0.95)[0] is None


def test_enough_harmless_pictures_are_enough() -> None:
    found, at = rates([0, 0, 900], [500, 500, 1000]), at_two_percent(500)
    needed = operating.harmless_needed(found, at, 0.95, 0.05)
    assert needed is not None
    more = rates([0, 0, 900], [needed // 2 + 1, needed // 2 + 1, 1000])
    assert operating.precision_bounds(more, at, 0.05)[0] >= 0.95
    fewer = rates([0, 0, 900], [needed // 2 - 20, needed // 2 - 20, 1000])
    assert operating.precision_bounds(fewer, at, 0.05)[0] < 0.95
    assert operating.harmless_needed(rates([0, 0, 0], [5, 5, 5]), at, 0.95, 0.05) is None


def test_a_days_figures_follow_from_rates_prevalence_and_volume() -> None:
    risked, labels = split(100, 0.5, false=2)
    figures = operating.describe(risked, labels, (risked < 0.5) & (labels == 1), 0.97, at_two_percent(100), 1_000_000)
    assert figures["prevalence_from"] == "given"
    assert figures["bans_per_day"]["not_risked"] == pytest.approx(1e6 * 0.98 * 0.01)
    assert figures["bans_per_day"]["all"] == pytest.approx(1e6 * (0.98 * 0.01 + 0.02 * 0.5))
    assert figures["reviews_per_day"]["all"] == pytest.approx(1e6 * 0.49)
    bans = figures["bans_per_day"]
    assert bans["not_risked_interval"] == pytest.approx([980_000 * end for end in intervals.share(2, 200)], abs=0.1)
    # Of a sum, each part at half the error.
    wrong, right = intervals.share(2, 200, 0.975), intervals.share(50, 100, 0.975)
    sums = [980_000 * wrong[end] + 20_000 * right[end] for end in (0, 1)]
    assert bans["all_interval"] == pytest.approx(sums, abs=0.1)
    low, high = operating.precision_bounds(Rates.count(risked >= 0.97, labels), at_two_percent(100), 0.025)
    assert figures["ban_precision"]["interval"] == pytest.approx([low, high], abs=1e-5)
    assert figures["recall_of_bans"]["hits"] == figures["recall_of_bans_and_reviews"]["hits"] == 50


def test_without_a_ban_threshold_no_figure_speaks_of_bans() -> None:
    risked, labels = split(10, 0.5)
    figures = operating.describe(risked, labels, risked > 0.5, None, at_two_percent(10), 10)
    assert "bans_per_day" not in figures and "ban_precision" not in figures


def test_aims_that_are_none_are_refused() -> None:
    for aims in ({"ban_precision": 1.0}, {"review_recall": 0.0}, {"uploads_per_day": 0}):
        with pytest.raises(UsageError):
            calibrate.Aims(**aims)
