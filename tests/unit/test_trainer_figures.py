"""Everything in a report that is a number, and the page around it."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from trainer import assess, costs, figures, report
from trainer.dataset import Facts
from trainer.report import Material, Parent, Tile
from worker.model.labels import LABELS, RISKED
from worker.model.manifest import BaseRef, ManifestDraft

P = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9], [0.6, 0.3, 0.1], [0.3, 0.1, 0.6], [0.2, 0.2, 0.6]])
LABELLED = np.array([0, 1, 2, 1, 0, 2])


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_share_right() -> None:
    """At 0.8 both are right, at 0.9 too; of three at 0.6 one is: (2 x 0.2 + 0.1 + 3 x (0.6 - 1/3)) / 6."""
    assert figures.calibration_error(P, LABELLED) == pytest.approx((0.4 + 0.1 + 3 * (0.6 - 1 / 3)) / 6)
    rows = figures.reliability(P, LABELLED)
    assert [(row["from"], row["pictures"]) for row in rows] == [(0.6, 3), (0.8, 2), (0.9, 1)]


def test_certain_and_right_is_perfectly_calibrated() -> None:
    assert figures.calibration_error(np.eye(3), np.arange(3)) == 0.0


def test_figures_lie_inside_their_intervals() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 200)
    labels = np.array([rng.choice(3, p=row) for row in p])
    made = assess.figures_of(p, labels, 0.8, 0.3)
    for name in ("accuracy", "log_loss", "calibration_error"):
        low, high = made["intervals"][name]
        assert low <= made[name] <= high and low < high
    low, high = made["intervals"]["recall_risked"]
    assert low < made["labels"]["risked"]["recall"] < high


def test_curves_end_where_everything_is_found() -> None:
    made = figures.curves(P, LABELLED)
    assert set(made) == set(LABELS)
    assert made["risked"]["roc"][0] == [0, 0] and made["risked"]["roc"][-1] == [1, 1]
    assert made["risked"]["precision_recall"][0][0] == 1
    assert made["risked"]["average_precision"] == pytest.approx(1 / 2 * (1 + 2 / 3), abs=0.2)


def test_a_label_that_is_absent_has_no_curve() -> None:
    assert set(figures.curves(P[:2], np.array([0, 1]))) == {"approved", "not_suitable"}


def test_slices_count_each_format_and_size() -> None:
    sizes = [("JPEG", 300, 200), ("JPEG", 800, 600), ("PNG", 255, 900), ("GIF", 2000, 1500), ("GIF", 90, 90)]
    made = figures.slices(P, LABELLED, None, [Facts(*size) for size in [*sizes, ("PNG", 1024, 1024)]])
    assert [(row["name"], row["pictures"]) for row in made["format"]] == [("GIF", 2), ("JPEG", 2), ("PNG", 2)]
    shorter = [(row["name"], row["pictures"]) for row in made["shorter_side"]]
    assert shorter == [("below 256", 3), ("512 to 1023", 1), ("1024 and more", 2)]
    assert made["format"][1]["accuracy"] == 1.0 and made["format"][1]["recall_of_risked"] is None


def test_the_worst_mistake_is_the_one_with_the_least_probability_of_its_label() -> None:
    assert figures.worst_mistakes(P, LABELLED, None).tolist() == [3, 4]


def reckoned(risked: float, reviews: float, ban: float | None) -> ManifestDraft:
    operated: dict[str, Any] = {
        "prevalence": {"risked": risked},
        "uploads_per_day": 1000,
        "reviews_per_day": {"all": reviews},
        "recall_of_bans_and_reviews": {"value": 0.95},
    }
    if ban is not None:
        operated |= {"bans_per_day": {"all": 18.0, "not_risked": 1.0}, "ban_precision": {"value": 0.944}}
    base = BaseRef(sha256="0" * 64, bytes=1, source="none")
    metrics = {"operating": operated, "test": {}}
    return ManifestDraft(network="small", base=base, metrics=metrics, ban_threshold=ban, review_threshold=0.2)


def test_what_two_versions_cost_a_day_stands_side_by_side() -> None:
    rows = {row["name"]: (row["before"], row["now"]) for row in costs.comparison(
        reckoned(0.02, 277.0, None), reckoned(0.02, 23.0, 0.6)
    )}  # fmt: skip
    assert rows["ban threshold"] == (0.6, None) and rows["review threshold"] == (0.2, 0.2)
    assert rows["bans a day"] == (18.0, None) and rows["false bans a day"] == (1.0, None)
    assert rows["reviews a day"] == (23.0, 277.0)
    assert rows["risked banned or seen"] == (0.95, 0.95)


def test_rows_that_were_reckoned_for_other_uploads_say_so() -> None:
    rows = costs.comparison(reckoned(0.2, 277.0, 0.7), reckoned(0.02, 23.0, 0.6))
    said = [costs.sentence(row) for row in rows]
    assert "reviews a day (0.02 and 0.2 risked): 277, the champion 23" in said
    assert "ban threshold: 0.700, the champion 0.600" in said


def test_a_page_shows_what_both_versions_cost() -> None:
    parent = Parent("small-1", [], True, costs.comparison(reckoned(0.2, 277.0, 0.7), reckoned(0.02, 23.0, 0.6)), None)
    page = report.write(replace(material("ada"), parent=parent)).decode()
    assert "<th>reviews a day (0.02 and 0.2 risked)</th><td>23</td><td>277</td>" in page


EVIL = "</style><script>alert(1)</script>\udcff"


def material(evil: str) -> Material:
    draft = ManifestDraft(
        network="small",
        base=BaseRef(sha256="0" * 64, bytes=1, source=evil),
        provenance={"by": evil, "created_at": str(datetime(2026, 1, 1, tzinfo=UTC)), "recipe": evil},
        metrics={"test": {}},
    )
    made = assess.figures_of(P, LABELLED, None, None) | {
        "curves": figures.curves(P, LABELLED),
        "reliability": figures.reliability(P, LABELLED),
        "slices": figures.slices(P, LABELLED, None, [Facts(evil, 9, 9)] * 6),
    }
    tile = Tile("data:,", evil, LABELS[RISKED], blurred=True)
    return Material("small-000000000000", draft, made, [tile], {"risked": [tile]}, on=evil)


def test_a_page_escapes_whatever_people_named_and_survives_names_that_are_no_text() -> None:
    page = report.write(material(EVIL)).decode()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_page_refers_to_nothing_outside_it() -> None:
    page = report.write(material("ada")).decode()
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', page) == []
    assert "url(" not in page and "default-src 'none'" in page
