"""The promotion gate on verdicts, outcomes as they are kept, and the history of what was forced."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer import gate, outcomes
from trainer.checks import Decision
from trainer.dataset import Picture
from trainer.operating import prevalence
from trainer.outcomes import Outcomes, Verdict
from trainer.standards import Standard
from worker.errors import UsageError, WeightsError
from worker.model import history
from worker.model.labels import LABELS, RISKED


def judged(per_label: int, wrong: int = 0, banned: int = 0, wrongly_banned: int = 0) -> gate.Judged:
    """`per_label` pictures a label, the first `wrong` of each called wrongly; the last `banned` risked are banned, and
    what is called risked without that is seen by a person."""
    made = {}
    for label in range(len(LABELS)):
        for i in range(per_label):
            called = (label + 1) % 3 if i < wrong else label
            ban = (label == RISKED and i >= per_label - banned) or (label == 0 and i < wrongly_banned)
            made[f"{label}-{i}"] = (label, Verdict(called, ban, called == RISKED and not ban))
    return made


def test_a_version_that_judges_alike_passes_where_there_are_enough_pictures() -> None:
    decision = gate.judge(judged(200), judged(200))
    assert decision.passed
    accuracy, recall, found, held = decision.checks
    assert [check.name for check in decision.checks] == [
        "accuracy",
        "recall of risked",
        "risked banned or seen",
        "held for people",
    ]
    assert all(-0.02 < check.bound < 0 for check in (accuracy, recall, found))
    assert held.needed < held.value < held.bound < 0
    assert "bans none" in decision.notes[0]


def test_few_pictures_show_nothing_and_it_is_said_how_many_are_missing() -> None:
    decision = gate.judge(judged(58), judged(58))
    accuracy, recall, *_ = decision.checks
    assert accuracy.passed and not recall.passed
    assert recall.missing is not None and 80 < recall.missing < 110
    more = 58 + recall.missing
    assert gate.judge(judged(more), judged(more)).passed
    assert f"about {recall.missing} more such pictures are missing" in recall.sentence()


def test_a_worse_version_is_refused_and_more_pictures_are_not_asked_for() -> None:
    decision = gate.judge(judged(200, wrong=20), judged(200))
    assert not decision.passed
    assert [check.missing for check in decision.failed] == [None, None, None]


def test_the_recall_of_risked_counts_by_itself() -> None:
    """Better on everything else does not make up for risked pictures that are missed."""
    worse = {**judged(300), **{f"2-{i}": (RISKED, Verdict(0, False)) for i in range(30)}}
    champion = {**judged(300, wrong=60), **{key: value for key, value in judged(300).items() if key[0] == "2"}}
    accuracy, recall, *_ = gate.judge(worse, champion).checks
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
    assert [check.name for check in decision.failed] == ["held for people", "bans"]
    assert "bans 150 of these risked pictures, the challenger none" in decision.sentences()[-1]
    assert json.loads(json.dumps(decision.to_json()))["passed"] is False
    assert gate.judge(judged(200), judged(200, wrongly_banned=5)).passed  # wrong bans are none to miss


def test_bans_have_to_be_right_as_often_as_claimed() -> None:
    assert gate.judge(judged(200, banned=100), judged(200)).passed
    wrong = gate.judge(judged(200, banned=100, wrongly_banned=20), judged(200))
    assert [check.name for check in wrong.checks if not check.passed] == ["ban precision"]
    few = gate.judge(judged(200, banned=10), judged(200))
    (precision,) = few.failed
    assert precision.missing is not None and 30 <= precision.missing <= 34  # 42 right ones show 93 %


def test_a_version_whose_bans_are_all_wrong_is_refused() -> None:
    """Five of 600 pictures, and none of them risked: that is no version that bans nothing."""
    (precision,) = gate.judge(judged(200, wrongly_banned=5), judged(200)).failed
    assert (precision.name, precision.pictures, precision.gained, precision.missing) == ("ban precision", 5, 0, None)


def test_bans_are_held_to_what_was_asked_of_them_less_the_margin() -> None:
    """Of 102 bans 100 are right, which shows 93.96 %; one more wrong one, and 93 % are not shown."""
    assert gate.judge(judged(200, banned=100, wrongly_banned=2), judged(200)).passed
    assert failed(gate.judge(judged(200, banned=100, wrongly_banned=3), judged(200))) == ["ban precision"]
    asked = Standard(ban_precision=0.97)
    assert failed(gate.judge(judged(200, banned=100, wrongly_banned=2), judged(200), held_to=asked)) == [
        "ban precision"
    ]


def seen(share_of_risked: float, share_of_others: float, *, bans: int = 0) -> gate.Judged:
    """3,000 pictures called rightly, of which people see what lies at the beginning of each label after `bans`."""
    made = {}
    for label in range(len(LABELS)):
        until = bans + 1000 * (share_of_risked if label == RISKED else share_of_others)
        for i in range(1000):
            ban = label == RISKED and i < bans
            made[f"{label}-{i}"] = (label, Verdict(label, ban, not ban and i < until))
    return made


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.failed]


AT_2_PERCENT = Standard(at=prevalence({"risked": 0.02}, dict.fromkeys(LABELS, 1000)))


def test_a_version_that_floods_people_is_refused() -> None:
    """It differs in its review threshold alone: 2.3 % of uploads were held, now 27.7 %."""
    decision = gate.judge(seen(0.95, 0.27), seen(0.95, 0.01), held_to=AT_2_PERCENT)
    assert failed(decision) == ["held for people"]
    assert "28.36% of uploads expected" in decision.failed[0].sentence()
    a_little_more = gate.judge(seen(0.95, 0.013), seen(0.95, 0.01), held_to=AT_2_PERCENT)
    assert a_little_more.passed, "half as much again is not shown"


def test_how_much_more_may_be_held_before_it_is_shown_to_be_too_much() -> None:
    """Of 2,000 harmless pictures 100 were held: 254 may be half as many again by chance, 260 are not."""
    before = seen(0.0, 0.05)
    assert "held for people" not in failed(gate.judge(seen(0.0, 0.127), before, held_to=AT_2_PERCENT))
    assert "held for people" in failed(gate.judge(seen(0.0, 0.13), before, held_to=AT_2_PERCENT))


def test_a_version_that_shows_people_fewer_risked_pictures_is_refused() -> None:
    """It calls and bans what the champion does, and lets go of what lay between the thresholds."""
    decision = gate.judge(seen(0.85, 0.01), seen(0.95, 0.01))
    assert failed(decision) == ["risked banned or seen"]
    assert gate.judge(seen(0.85, 0.01, bans=100), seen(0.95, 0.01)).passed, "what is banned need not be seen"


def test_what_people_see_is_compared_where_it_is_known_of_both() -> None:
    decision = gate.judge(seen(0.1, 0.9), without_reviews(seen(0.9, 0.1)))
    assert decision.passed and any("known of none" in note for note in decision.notes)


def test_a_version_that_bans_far_less_is_refused_unless_more_was_asked_of_its_bans() -> None:
    """950 bans become 100; people would see the others, which somebody has to want."""
    fewer, before = seen(0.9, 0.0, bans=100), seen(0.05, 0.0, bans=950)
    at = AT_2_PERCENT.at
    assert "bans of risked" in failed(gate.judge(fewer, before, margin=0.5))
    asked = gate.judge(fewer, before, margin=0.5, held_to=Standard(at=at, stricter_bans=True))
    assert "bans of risked" not in failed(asked)
    assert any("bans 100 of 1000 risked pictures, the champion 950" in note for note in asked.notes)
    chance = gate.judge(seen(0.07, 0.0, bans=930), before)
    assert "bans of risked" not in failed(chance), "a threshold moves a little with every fit"


def test_what_the_champion_was_tested_on_and_made_of_has_to_be_there() -> None:
    """An empty folder in the place of the data set leaves the corrections alone."""
    tested = [str(i) for i in range(1000)]
    test, train = gate.kept(tested[:3], tested, ({"approved": 90, "risked": 1}, {"approved": 100, "risked": 100}))
    assert not test.passed and not train.passed
    assert "3 of 1000 are in the challenger's data set, needed 90%" in test.sentence()
    assert train.sentence() == "training pictures of risked: 1, the champion had 100, needed 80%: not kept"
    test, train = gate.kept(tested[50:], tested, ({"approved": 90, "risked": 85}, {"approved": 100, "risked": 100}))
    assert test.passed and train.passed, "near-duplicates of new pictures leave, and people change their minds"
    (just,) = gate.kept(tested[100:], tested, ({}, {}))
    assert just.passed, "nine tenths are nine tenths"
    assert gate.kept(tested, [], ({"approved": 1}, {})) == [], "a champion that says nothing of it"
    (none,) = gate.kept([], [], ({"approved": 100}, {"approved": 100, "risked": 100}))
    assert none.sentence().startswith("training pictures of risked: 0, the champion had 100")
    refusal = Decision((gate.kept([], tested, ({}, {}))[0],), 0.02, 0).refusal("new", "old")
    assert "mount that data set" in refusal and "--force --why" in refusal


def test_an_anchor_with_no_picture_in_common_shows_nothing() -> None:
    assert gate.not_slid(judged(200), {}, 0.02) == []
    names = [check.name for check in gate.not_slid(seen(0.9, 0.1), seen(0.9, 0.1), 0.02)]
    assert names == [f"{what} since the anchor" for what in ("accuracy", "recall of risked", "risked banned or seen")]
    slid = gate.not_slid(seen(0.8, 0.1), seen(0.9, 0.1), 0.02)
    assert [check.passed for check in slid] == [True, True, False]
    missed = {key: (label, Verdict(0, False, True)) if key < "2-5" and label == RISKED else (label, verdict)
              for key, (label, verdict) in seen(1, 0).items()}  # fmt: skip
    recall = gate.not_slid(missed, seen(1, 0), 0.02)[1]
    assert (recall.pictures, recall.passed) == (1000, False)


def without_reviews(judged: gate.Judged) -> gate.Judged:
    """As a release noted it that did not keep what people see."""
    return {key: (label, verdict._replace(reviewed=None)) for key, (label, verdict) in judged.items()}


def test_what_people_see_is_not_held_against_an_anchor_or_a_challenger_of_which_it_is_not_known() -> None:
    """Nothing known is not nothing seen: it would be worse than any champion, and any challenger better."""
    sees, none = seen(0.9, 0.1), without_reviews(seen(0.9, 0.1))
    for challenger, anchor in ((seen(0.1, 0.1), none), (none, sees)):
        slid = gate.not_slid(challenger, anchor, 0.02)
        assert [check.name for check in slid] == ["accuracy since the anchor", "recall of risked since the anchor"]
    decision = gate.judge(none, sees)
    assert decision.passed and any("known of none" in note for note in decision.notes)


def test_bans_of_a_version_fitted_for_a_prevalence_are_judged_at_it() -> None:
    """A hundred right bans among 600 balanced pictures do not show what becomes of one risked upload in fifty."""
    at = prevalence({"risked": 0.02}, dict.fromkeys(LABELS, 200))
    decision = gate.judge(judged(200, banned=100), judged(200), held_to=Standard(at=at))
    check = next(check for check in decision.checks if check.name == "ban precision")
    assert not check.passed
    assert check.missing is not None and check.missing > 1000
    wrong = gate.judge(judged(200, banned=100, wrongly_banned=20), judged(200), held_to=Standard(at=at))
    assert [(one.name, one.missing) for one in wrong.failed] == [("ban precision", None)]


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
    return Outcomes.of(pictures, p, (0.7, 0.3), ("vgg11-0123456789ab", q, (None, 0.4)) if parent else None)


def without_review(content: bytes) -> bytes:
    """As earlier releases wrote it."""
    document = json.loads(content)
    document["rows"] = [row[:5] for row in document["rows"]]
    del document["parent"]["reviewed"]
    return json.dumps(document).encode()


def test_outcomes_of_earlier_releases_are_read_and_what_people_see_is_worked_out() -> None:
    made = some(True)
    read = outcomes.parse(without_review(made.to_json()), "vgg11-000000000000")
    assert {verdict.reviewed for _, verdict in (*read.verdicts().values(), *read.of_parent().values())} == {None}
    assert read.knowing((0.7, 0.3)).verdicts() == made.verdicts()
    assert any(verdict.reviewed for _, verdict in made.verdicts().values())


def test_earlier_releases_read_the_outcomes_of_this_one() -> None:
    """A folder a release: who goes back to the last one must still be able to promote."""
    document = json.loads(some(True).to_json())
    assert all(len(pair) == 2 for pair in document["parent"]["verdicts"])
    assert document["schema"] == 1 and len(document["parent"]["reviewed"]) == len(document["rows"])


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
