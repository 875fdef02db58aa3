"""Which comparisons with float32 let an engine into service, and what each refusal is called."""

import numpy as np
import numpy.typing as npt
import pytest

from worker.model.agreement import RULES, UNLABELLED, compare
from worker.model.manifest import EngineCheck

Table = npt.NDArray[np.float64]


def clear(count: int) -> Table:
    """Probabilities of `count` pictures, their labels in turn, each far from a close call."""
    table = np.full((count, 3), 0.1)
    table[np.arange(count), np.arange(count) % 3] = 0.8
    return table


def with_flips(table: Table, count: int) -> Table:
    """The same, but the first `count` pictures have another label."""
    changed = table.copy()
    changed[:count] = np.roll(changed[:count], 1, axis=1)
    return changed


@pytest.mark.parametrize(
    ("precision", "pictures", "flips", "refusal"),
    [
        ("bf16", 100, 0, None),
        ("bf16", 99, 0, "too_few_pictures"),
        ("bf16", 1000, 1, "flips"),
        ("int8", 1000, 0, None),
        ("int8", 1000, 5, None),
        ("int8", 1000, 6, "flips"),
        ("int8", 999, 0, "too_few_pictures"),
        ("int8", 999, 5, "too_few_pictures"),
        ("int8", 300, 6, "flips"),  # no pictures still to come could make up for them
        ("int8", 0, 0, "too_few_pictures"),
    ],
)
def test_what_each_precision_must_show(precision: str, pictures: int, flips: int, refusal: str | None) -> None:
    """The least number of pictures and the most flips, to the picture."""
    table = clear(pictures)
    agreement = compare(RULES[precision], table, with_flips(table, flips))
    assert agreement.refusal == refusal
    assert agreement.check().passed == (refusal is None)


def test_close_calls_may_flip_but_alone_they_show_nothing() -> None:
    reference, candidate = clear(120), clear(120)
    reference[0], candidate[0] = [0.46, 0.44, 0.1], [0.44, 0.46, 0.1]
    agreement = compare(RULES["bf16"], reference, candidate)
    assert agreement.refusal is None
    assert agreement.check() == EngineCheck(pictures=120, clear_pictures=119, flips=0, passed=True)
    close = np.tile(np.array([0.46, 0.44, 0.1]), (120, 1))
    assert compare(RULES["bf16"], close, close).refusal == "too_few_pictures"


@pytest.mark.parametrize(("precision", "pictures"), [("bf16", 100), ("int8", 1000)])
def test_a_tenth_of_the_pictures_must_be_clear(precision: str, pictures: int) -> None:
    """The others may change as they like, which nobody then sees: one clear picture says little."""
    close, changed = [0.46, 0.44, 0.1], [0.1, 0.44, 0.46]
    for clear_pictures, refusal in ((pictures // 10 - 1, "too_few_pictures"), (pictures // 10, None)):
        reference, candidate = clear(pictures), clear(pictures)
        reference[clear_pictures:], candidate[clear_pictures:] = close, changed
        agreement = compare(RULES[precision], reference, candidate)
        assert (agreement.clear_pictures, agreement.refusal) == (clear_pictures, refusal)


def test_flips_are_a_share_of_what_was_clear() -> None:
    """Three of 1,000 pictures are few; three of the 200 among them that were no close call are too many."""
    reference, candidate = clear(1000), with_flips(clear(1000), 3)
    reference[200:] = candidate[200:] = [0.46, 0.44, 0.1]
    agreement = compare(RULES["int8"], reference, candidate)
    assert (agreement.clear_pictures, agreement.flips, agreement.refusal) == (200, 3, "flips")


def test_another_side_of_the_ban_threshold_is_a_flip_where_it_was_no_close_call() -> None:
    """p(risked) 0.8 where float32 says 0.65 and bans begin at 0.7: near enough; at 0.5: not."""
    for before, flips in ((0.65, 0), (0.55, 1)):
        reference, candidate = clear(120), clear(120)
        reference[2], candidate[2] = [(1 - before) / 2, (1 - before) / 2, before], [0.1, 0.1, 0.8]
        assert compare(RULES["bf16"], reference, candidate, ban_threshold=0.7).flips == flips
        assert compare(RULES["bf16"], reference, candidate, ban_threshold=0.8).flips == 1, "a threshold that is reached"


def test_right_labels_lost_beyond_chance_refuse_where_flips_would_not() -> None:
    """Every flip is a close call, but all of them turn right into wrong; without labels nobody could know."""
    reference, candidate = clear(120), clear(120)
    reference[:12], candidate[:12] = [0.46, 0.44, 0.1], [0.44, 0.46, 0.1]
    labels = np.full(120, UNLABELLED)
    assert compare(RULES["bf16"], reference, candidate, labels=labels).refusal is None
    labels[:4] = 0
    assert compare(RULES["bf16"], reference, candidate, labels=labels).refusal is None  # 4 in 4: 1 in 16 by chance
    labels[:12] = 0
    assert compare(RULES["bf16"], reference, candidate, labels=labels).refusal == "accuracy"
    labels[6:12] = 1  # as many won as lost
    assert compare(RULES["bf16"], reference, candidate, labels=labels).refusal is None


def test_risked_pictures_lost_refuse_though_accuracy_gains() -> None:
    reference, candidate = clear(120), clear(120)
    reference[:12], candidate[:12] = [0.1, 0.44, 0.46], [0.1, 0.46, 0.44]
    labels = np.array([2] * 6 + [1] * 6 + [UNLABELLED] * 108)
    agreement = compare(RULES["bf16"], reference, candidate, labels=labels)
    assert (agreement.lost, agreement.won, agreement.risked_lost, agreement.refusal) == (6, 6, 6, "recall")


def test_recall_goes_by_the_ban_threshold_where_risked_is_not_the_likeliest() -> None:
    """Published as risked by float32 at 0.32, as approved by the candidate at 0.29: near enough to be no flip."""
    reference, candidate = clear(120), clear(120)
    reference[:12], candidate[:12] = [0.62, 0.06, 0.32], [0.64, 0.07, 0.29]
    labels = np.array([2] * 12 + [UNLABELLED] * 108)
    agreement = compare(RULES["bf16"], reference, candidate, labels=labels, ban_threshold=0.3)
    assert (agreement.flips, agreement.lost, agreement.risked_lost) == (0, 12, 12)
    assert agreement.refusal in ("accuracy", "recall")
    gained = compare(RULES["bf16"], candidate, reference, labels=labels, ban_threshold=0.3)
    assert (gained.risked_won, gained.refusal) == (12, None)
