"""The promotion gate on verdicts, outcomes as they are kept, and the history of what was forced."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer import gate, outcomes
from trainer.dataset import Picture
from trainer.operating import prevalence
from trainer.outcomes import Outcomes, Verdict
from worker.errors import UsageError, WeightsError
from worker.model import history
from worker.model.labels import LABELS, RISKED


def judged(per_label: int, wrong: int = 0, banned: int = 0, wrongly_banned: int = 0) -> gate.Judged:
    """`per_label` pictures a label, the first `wrong` of each called wrongly; the last `banned` risked are banned."""
    made = {}
    for label in range(len(LABELS)):
        for i in range(per_label):
            called = (label + 1) % 3 if i < wrong else label
            ban = (label == RISKED and i >= per_label - banned) or (label == 0 and i < wrongly_banned)
            made[f"{label}-{i}"] = (label, Verdict(called, ban))
    return made


def test_a_version_that_judges_alike_passes_where_there_are_enough_pictures() -> None:
    decision = gate.judge(judged(200), judged(200))
    assert decision.passed
    assert [check.name for check in decision.checks] == ["accuracy", "recall of risked"]
    assert all(-0.02 < check.bound < 0 for check in decision.checks)
    assert "bans none" in decision.notes[0]


def test_few_pictures_show_nothing_and_it_is_said_how_many_are_missing() -> None:
    decision = gate.judge(judged(58), judged(58))
    accuracy, recall = decision.checks
    assert accuracy.passed and not recall.passed
    assert recall.missing is not None and 80 < recall.missing < 110
    more = 58 + recall.missing
    assert gate.judge(judged(more), judged(more)).passed
    assert f"about {recall.missing} more such pictures are missing" in recall.sentence()


def test_a_worse_version_is_refused_and_more_pictures_are_not_asked_for() -> None:
    decision = gate.judge(judged(200, wrong=20), judged(200))
    assert not decision.passed
    assert [check.missing for check in decision.checks] == [None, None]


def test_the_recall_of_risked_counts_by_itself() -> None:
    """Better on everything else does not make up for risked pictures that are missed."""
    worse = {**judged(300), **{f"2-{i}": (RISKED, Verdict(0, False)) for i in range(30)}}
    champion = {**judged(300, wrong=60), **{key: value for key, value in judged(300).items() if key[0] == "2"}}
    accuracy, recall = gate.judge(worse, champion).checks
    assert accuracy.passed
    assert not recall.passed


def test_a_wider_margin_needs_less_and_is_on_record() -> None:
    decision = gate.judge(judged(58), judged(58), margin=0.1)
    assert decision.passed
    assert decision.to_json()["margin"] == 0.1
    json.dumps(decision.to_json())


@pytest.mark.parametrize("margin", [0.0, -0.1, 1.0, float("nan")])
def test_a_margin_that_is_none_is_refused(margin: float) -> None:
    with pytest.raises(UsageError, match="margin"):
        gate.judge(judged(2), judged(2), margin=margin)


def test_a_version_that_never_bans_does_not_follow_one_that_does() -> None:
    """As good at labels, but all that was removed would wait for a person: somebody has to want that."""
    decision = gate.judge(judged(200), judged(200, banned=150))
    assert [check.name for check in decision.checks if not check.passed] == ["bans"]
    assert "bans 150 of these risked pictures, the challenger none" in decision.sentences()[-1]
    assert json.loads(json.dumps(decision.to_json()))["passed"] is False
    assert gate.judge(judged(200), judged(200, wrongly_banned=5)).passed  # wrong bans are none to miss


def test_bans_have_to_be_right_as_often_as_claimed() -> None:
    assert gate.judge(judged(200, banned=100), judged(200)).passed
    wrong = gate.judge(judged(200, banned=100, wrongly_banned=20), judged(200))
    assert [check.name for check in wrong.checks if not check.passed] == ["ban precision"]
    few = gate.judge(judged(200, banned=10), judged(200))
    assert few.checks[-1].missing is not None and few.checks[-1].missing > 20


def test_bans_of_a_version_fitted_for_a_prevalence_are_judged_at_it() -> None:
    """A hundred right bans among 600 balanced pictures do not show what becomes of one risked upload in fifty."""
    at = prevalence({"risked": 0.02}, dict.fromkeys(LABELS, 200))
    check = gate.judge(judged(200, banned=100), judged(200), at=at).checks[-1]
    assert not check.passed
    assert check.missing is not None and check.missing > 1000


def test_only_pictures_that_both_judged_under_one_label_are_compared() -> None:
    champion = dict(judged(200))
    del champion["0-0"]
    champion["1-0"] = (0, Verdict(0, False))
    decision = gate.judge(judged(200), champion)
    assert decision.pictures == 598
    assert any("2 test pictures" in note for note in decision.notes)


def test_a_champion_without_outcomes_leaves_nothing_to_compare_and_is_no_pass() -> None:
    decision = gate.judge(judged(200), {})
    assert not decision.passed and decision.pictures == 0


def some(parent: bool) -> Outcomes:
    rng = np.random.default_rng(0)
    pictures = tuple(Picture(Path(f"{i}.png"), i % 3, f"{i:064x}") for i in range(175))
    p, q = rng.dirichlet([1, 1, 1], 175), rng.dirichlet([1, 1, 1], 175)
    return Outcomes.of(pictures, p, 0.7, ("vgg11-0123456789ab", q, None) if parent else None)


@pytest.mark.parametrize("parent", [True, False])
def test_outcomes_come_back_as_they_were_kept(parent: bool) -> None:
    made = some(parent)
    read = outcomes.parse(made.to_json(), "vgg11-000000000000")
    assert read.verdicts() == made.verdicts()
    assert read.of_parent() == made.of_parent()
    assert bool(read.of_parent()) == parent
    np.testing.assert_allclose(read.probabilities, made.probabilities, atol=1e-5)


def test_outcomes_of_175_pictures_take_less_than_30_kb() -> None:
    assert len(some(True).to_json()) < 30_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"schema":2}',
        some(True).to_json()[:500],
        some(True).to_json().replace(b",0],", b"],", 1),
        some(False).to_json().replace(b'",1,[', b'",7,[', 1),
        some(False).to_json().replace(b'",1,[', b'",1,{"a":[', 1),
    ],
)
def test_damaged_outcomes_are_refused(content: bytes) -> None:
    with pytest.raises(WeightsError, match="damaged"):
        outcomes.parse(content, "vgg11-000000000000")


def test_a_forced_promotion_is_on_record_and_older_lines_are_still_read() -> None:
    old = b'{"at":"2026-01-01T00:00:00Z","by":"ada","action":"promote","from":null,"to":"a","why":"first"}\n'
    (entry,) = history.parse(old)
    assert (entry.forced, entry.gate) == (False, None)
    assert b"forced" not in entry.to_json() and b"gate" not in entry.to_json() and b'"from":null' in entry.to_json()
    forced = entry.model_copy(update={"forced": True, "gate": gate.judge(judged(5), judged(5)).to_json()})
    (again,) = history.parse(forced.to_json() + b"\n")
    assert again == forced
