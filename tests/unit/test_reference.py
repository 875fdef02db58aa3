"""The drift reference: counts of held-out pictures weighted by the prevalence that a version was calibrated for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.model.reference import PROBABILITY_EDGES, expected, histogram

RARE = {"approved": 0.70, "not_suitable": 0.28, "risked": 0.02}
CONFUSION = [[90, 10, 0], [20, 75, 5], [0, 10, 90]]


def metrics(**changes: object) -> dict[str, object]:
    """A manifest's metrics with the parts that count."""
    held_out = {"confusion": CONFUSION, "risked_probability": [[1] + [0] * 19, [1] + [0] * 19, [0] * 19 + [1]]}
    return {"held_out": held_out, "operating": {"prevalence": RARE}, "test": {"accuracy": 0.8}, **changes}


def test_shares_are_weighted_by_prevalence_not_by_what_was_held_out() -> None:
    found = expected(metrics())
    assert found is not None
    assert found.label_shares["risked"] == pytest.approx(0.28 * 0.05 + 0.02 * 0.9)
    assert sum(found.label_shares.values()) == pytest.approx(1)
    assert found.risked_at_most[0.05] == pytest.approx(0.98)
    assert found.risked_at_most[0.95] == pytest.approx(0.98)
    assert found.risked_at_most[1.0] == pytest.approx(1)


@pytest.mark.parametrize(
    "changes",
    [
        {"held_out": {}},
        {"operating": {}},
        {"held_out": {"confusion": [[1, 2], [3, 4]]}},
        {"held_out": {"confusion": [[1, 0, 0], [0, 1, 0], [0, 0, 0]]}},
        {"held_out": {"confusion": [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]}},
        {"held_out": {"confusion": "none"}},
        {"operating": {"prevalence": {"risked": 2.0}}},
        {"operating": {"prevalence": {}}},
    ],
)
def test_metrics_that_say_nothing_give_no_reference(changes: dict[str, object]) -> None:
    assert expected(metrics(**changes)) is None


def test_a_version_from_before_the_histogram_still_has_label_shares() -> None:
    found = expected(metrics(held_out={"confusion": CONFUSION}))
    assert found is not None and found.label_shares and found.risked_at_most == {}


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2)), min_size=1, max_size=50))
def test_the_histogram_counts_as_prometheus_does(pairs: list[tuple[float, int]]) -> None:
    """Every picture once, in the bin whose upper edge is the first that is not below its p(risked)."""
    risked, labels = np.array([p for p, _ in pairs]), np.array([label for _, label in pairs])
    at_most = np.cumsum(np.sum(histogram(risked, labels), axis=0))
    assert at_most.tolist() == [int((risked <= edge).sum()) for edge in PROBABILITY_EDGES]
