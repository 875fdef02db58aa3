"""Temperature and thresholds from held-out logits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import calibrate, operating
from trainer.evaluate import decisive, log_loss, reviewed
from worker.errors import UsageError
from worker.model.labels import RISKED


def logits_of(risked: list[float], others: float = 0.5) -> np.ndarray:
    """Logits whose softmax has p(risked) as given, the rest shared between the other two."""
    p = np.array(risked)
    table = np.stack([(1 - p) * others, (1 - p) * (1 - others), p], axis=1)
    return np.log(table).astype(np.float32)


def test_the_ban_threshold_is_the_smallest_that_keeps_the_precision() -> None:
    """19 right, then 1 wrong is exactly 0.95; the next wrong one would break it."""
    risked = np.array([0.99] * 19 + [0.9, 0.8, 0.7])
    truth = np.array([True] * 19 + [False, False, True])
    threshold, sentence = calibrate.ban_threshold(risked, truth)
    assert threshold == pytest.approx(0.85)
    assert "19 of 20" in sentence


def test_precision_on_fewer_than_ten_risked_pictures_is_not_believed() -> None:
    risked = np.array([0.99] * 9 + [0.1] * 50)
    threshold, sentence = calibrate.ban_threshold(risked, np.array([True] * 9 + [False] * 50))
    assert threshold is None
    assert "never bans" in sentence


def test_no_ban_threshold_lies_below_one_half() -> None:
    """A split without mistakes says nothing about pictures between its two groups."""
    risked = np.array([0.9] * 30 + [0.01] * 30)
    threshold, _ = calibrate.ban_threshold(risked, np.array([True] * 30 + [False] * 30))
    assert threshold == 0.5


def test_pictures_of_equal_probability_stand_or_fall_together() -> None:
    risked = np.array([0.9] * 20 + [0.6] * 10)
    truth = np.array([True] * 20 + [True, *[False] * 9])
    threshold, _ = calibrate.ban_threshold(risked, truth)
    assert threshold == pytest.approx(0.75)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=80))
def test_whatever_the_split_a_threshold_keeps_its_promise(pairs: list[tuple[float, bool]]) -> None:
    """At the threshold the precision holds on enough pictures; without one, none would have done."""
    risked = np.array([p for p, _ in pairs])
    truth = np.array([t for _, t in pairs])
    threshold, _ = calibrate.ban_threshold(risked, truth)

    def keeps(value: float) -> bool:
        above = risked >= value
        right = (above & truth).sum()
        return bool(right >= calibrate.MIN_BANNED_RIGHTLY and right / above.sum() >= calibrate.BAN_PRECISION)

    if threshold is None:
        assert not any(keeps(value) for value in risked if value >= calibrate.BAN_FLOOR)
    else:
        assert threshold >= calibrate.BAN_FLOOR
        assert keeps(threshold)
        smaller = [value for value in risked if calibrate.BAN_FLOOR <= value < threshold]
        assert not any(keeps(value) for value in smaller)


@pytest.mark.parametrize("count", [30, 40])
def test_the_review_threshold_recalls_its_share_of_what_is_risked(count: int) -> None:
    risked = np.concatenate([np.linspace(0.3, 0.9, count), np.full(40, 0.2)])
    truth = np.array([True] * count + [False] * 40)
    threshold = calibrate.review_threshold(risked, truth, None)
    recalled = (risked[truth] >= threshold).mean()
    assert recalled >= 0.95
    assert (risked[truth] >= threshold + 1e-3).mean() < 0.95 + 1 / count


def test_the_review_threshold_stays_below_the_ban_threshold() -> None:
    risked, truth = np.full(20, 0.9), np.full(20, True)
    assert 0 < calibrate.review_threshold(risked, truth, 0.6) < 0.6
    assert 0 < calibrate.review_threshold(risked, truth, 0.001) < 0.001


def test_overconfident_logits_get_a_temperature_that_lowers_the_log_loss() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    logits = rng.normal(size=(300, 3)).astype(np.float32)
    logits[np.arange(300), labels] += 1.0
    logits *= 8
    owner = np.arange(300)
    temperature = calibrate.fit_temperature(logits, owner, labels)
    assert temperature > 4
    assert log_loss(decisive(logits, owner, temperature), labels) < log_loss(decisive(logits, owner, 1.0), labels)


def noisy() -> tuple[np.ndarray, np.ndarray]:
    """Logits, eight times too sure, and labels of 900 pictures."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    logits = rng.normal(size=(900, 3)).astype(np.float32)
    logits[np.arange(900), labels] += 1.5
    return logits * 8, labels


@pytest.mark.parametrize(("precision", "recall"), [(0.8, 0.8), (0.9, 0.9), (0.95, 0.95)])
def test_thresholds_do_what_was_asked_of_them_at_the_temperature_that_goes_with_them(
    precision: float, recall: float
) -> None:
    """On the split itself; and what is expected a day is that of these thresholds."""
    logits, labels = noisy()
    made = calibrate.calibrate(logits, np.arange(900), labels, aims=calibrate.Aims(precision, recall))
    probabilities = decisive(logits, np.arange(900), made.temperature)
    risked, ban = probabilities[:, RISKED], made.ban_threshold
    assert made.temperature > 2 and ban is not None
    assert precision <= (labels[risked >= ban] == RISKED).mean() < precision + 0.02
    caught = (risked[labels == RISKED] >= made.review_threshold).mean()
    assert recall <= caught < recall + 0.01 or made.review_threshold == pytest.approx(0.98 * ban, abs=1e-6)
    held = reviewed(probabilities, ban, made.review_threshold).mean()
    assert made.operating["reviews_per_day"]["all"] == pytest.approx(1e6 * held, abs=1)
    assert made.operating["aims"] == {"ban_precision": precision, "review_recall": recall}
    assert made.operating["claim"] == "seen on the held-out pictures"


def test_at_a_prevalence_that_was_given_the_precision_asked_for_has_to_be_shown() -> None:
    """At one upload in fifty, 16,000 harmless pictures without a mistake show 0.95 and not 0.999."""
    logits = logits_of([0.05] * 16000 + [0.97] * 8000)
    labels = np.repeat([0, 1, RISKED], 8000)
    at = operating.prevalence({"risked": 0.02}, {"approved": 1, "not_suitable": 1, "risked": 1})
    shown = calibrate.calibrate(logits, np.arange(24000), labels, at=at)
    assert (shown.ban_threshold, shown.ban_threshold_proven) == (0.5, True)
    assert shown.operating["claim"] == "shown at the given prevalence"
    more = calibrate.calibrate(logits, np.arange(24000), labels, aims=calibrate.Aims(0.999), at=at)
    assert more.ban_threshold is None and not more.ban_threshold_proven
    assert more.operating["claim"] == "none"


def test_a_threshold_set_by_hand_is_recorded_as_unproven() -> None:
    logits = logits_of([0.9] * 20 + [0.1] * 20)
    labels = np.array([RISKED] * 20 + [0] * 20)
    made = calibrate.calibrate(logits, np.arange(40), labels, given=0.42)
    assert made.ban_threshold == 0.42
    assert not made.ban_threshold_proven
    assert "set by hand and is not proven" in made.explanation


def test_a_threshold_from_the_split_is_recorded_as_proven() -> None:
    logits = logits_of([0.9] * 20 + [0.1] * 20)
    labels = np.array([RISKED] * 20 + [0] * 20)
    made = calibrate.calibrate(logits, np.arange(40), labels)
    assert made.ban_threshold is not None and 0.5 <= made.ban_threshold < 0.9
    assert made.ban_threshold_proven
    assert made.review_threshold < made.ban_threshold


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 7.0, float("nan"), float("inf")])
def test_a_ban_threshold_that_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match="above 0 and below 1"):
        calibrate.check_ban_threshold(value)


@pytest.mark.parametrize("sharpness", [2, 5, 20, 50])
def test_a_split_without_mistakes_does_not_make_everything_certain(sharpness: int) -> None:
    """30 pictures, all right: no probability may claim more than 30 pictures can show, however sharp the logits are."""
    labels = np.arange(30) % 3
    logits = np.eye(3, dtype=np.float32)[labels] * sharpness
    temperature = calibrate.fit_temperature(logits, np.arange(30), labels)
    certain = decisive(logits, np.arange(30), temperature).max(axis=1)
    assert (certain > 0.79).all() and (certain < 0.97).all()
