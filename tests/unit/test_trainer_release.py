"""What happens to versions once they exist, on a store of real files: the gate's outcomes, rollbacks, damage, lists."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.support.store import colour_store, publish_colours
from trainer import contest, outcomes, release
from trainer.checks import Check, Decision
from trainer.errors import RefusedError
from trainer.outcomes import Verdict
from worker.errors import WeightsError
from worker.model.labels import RISKED
from worker.model.weights import WeightsStore


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    """A champion and two others, none of which keeps outcomes of test pictures."""
    return colour_store(tmp_path / "weights")


def others(store: WeightsStore) -> tuple[str, str]:
    """Two versions more."""
    return publish_colours(store, ban_threshold=0.71), publish_colours(store, ban_threshold=0.72)


def precision_of(decision: Decision) -> Check:
    return next(check for check in decision.checks if check.name == "ban precision")


def champion_of(store: WeightsStore) -> str:
    champion = store.champion()
    assert champion is not None
    return champion


def test_a_rollback_while_versions_are_compared_is_not_undone(
    store: WeightsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are about a champion that somebody has taken out of service meanwhile."""
    first, (second, third) = champion_of(store), others(store)
    store.promote(second, by="ada", why="second")

    def compare(*_: object) -> Decision:
        release.rollback(store, by="grace", why="it bans cats")
        return Decision((), 0.02, 500)

    monkeypatch.setattr(contest, "compare", compare)
    with pytest.raises(RefusedError, match=f"compared with {second}, and {first} serves by now: promote it again"):
        release.promote(store, third, by="retrain", why="passed the gate")
    assert store.champion() == first
    assert [entry.action for entry in store.history()][-1] == "rollback"


def test_a_lost_champion_file_gives_nobody_the_service(store: WeightsStore) -> None:
    """What came next would be compared with nothing, and nothing would lead back from it."""
    first, (second, third) = champion_of(store), others(store)
    store.promote(second, by="ada", why="second")
    (store.root / "champion").unlink()
    for act in (
        lambda: release.take_its_place(store, third, by="retrain"),
        lambda: release.promote(store, third, by="ada", why="third"),
        lambda: store.promote(third, by="ada", why="third"),
    ):
        with pytest.raises(WeightsError, match=f"where {second} served last .* `echo {second} > .*champion`"):
            act()
    assert (store.champion(), len(store.history())) == (None, 2)
    (store.root / "champion").write_text(f"{second}\n")
    assert release.take_its_place(store, third, by="retrain") == "challenger"
    assert release.rollback(store, by="ada", why="it bans cats") == first


def test_a_first_promotion_that_was_cut_short_takes_effect(store: WeightsStore) -> None:
    """It is on record, and nothing else ever served: the next version is compared with it."""
    first, (second, _) = champion_of(store), others(store)
    (store.root / "champion").unlink()
    assert release.take_its_place(store, second, by="retrain") == "challenger"
    assert (store.champion(), len(store.history())) == (first, 1)


def test_damaged_outcomes_are_no_pass_and_force_goes_ahead_on_record(store: WeightsStore) -> None:
    """As the refusal itself advises."""
    champion, (other, _) = champion_of(store), others(store)
    (store.root / "versions" / other / outcomes.FILE).write_bytes(b"[")
    with pytest.raises(WeightsError, match="damaged"):
        release.promote(store, other, by="ada", why="")
    assert store.champion() == champion
    said: list[str] = []
    release.promote(store, other, by="ada", why="seen by hand", force=True, say=said.append)
    entry = store.history()[-1]
    assert (store.champion(), entry.forced, entry.gate is not None and entry.gate["passed"]) == (other, True, False)
    assert any("damaged" in sentence for sentence in said)


def test_bans_are_judged_by_the_stricter_of_what_both_versions_were_fitted_for(
    store: WeightsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred right bans among 600 balanced pictures show 0.95 there, and not where one upload in fifty is risked."""
    stream = {"prevalence_from": "given", "prevalence": {"approved": 0.7, "not_suitable": 0.28, "risked": 0.02}}
    first = publish_colours(
        store, ban_threshold=0.71, metrics={"operating": stream | {"aims": {"ban_precision": 0.99}}}
    )
    second = publish_colours(store, ban_threshold=0.72, metrics={"operating": {"aims": {"ban_precision": 0.9}}})
    verdicts = {str(at): (at % 3, Verdict(at % 3, at % 3 == RISKED and at < 300)) for at in range(600)}
    kept = SimpleNamespace(parent=None, verdicts=lambda: verdicts)
    monkeypatch.setattr(contest, "read_outcomes", lambda *_: kept)
    by_its_own = contest.compare(store, second, champion_of(store))  # which says nothing of aims
    assert by_its_own.passed
    assert precision_of(by_its_own).needed == pytest.approx(0.88)
    store.promote(first, by="ada", why="fitted for the stream")
    decision = contest.compare(store, second, first)
    assert [check.name for check in decision.checks if not check.passed] == ["ban precision"]
    assert precision_of(decision).needed == pytest.approx(0.97)
    notes = " ".join(decision.notes)
    assert "where 0.02 of uploads are risked" in notes and "held to the champion's 0.99" in notes
    assert not any("held to" in note for note in contest.compare(store, first, second).notes)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_list_shows_the_others_where_one_version_is_damaged(store: WeightsStore, terminal: bool) -> None:
    """The champion, whatever else it is, and names with what a terminal library takes for its own words."""
    champion, (damaged, _) = champion_of(store), others(store)
    odd = publish_colours(store, ban_threshold=0.73, by="ada [/ops] [team]")
    (store.root / "versions" / damaged / "manifest.json").write_bytes(b"{}")
    (store.root / "challenger").write_text(f"{champion}\n")  # as an older release left it after a rollback
    shown = io.StringIO()
    release.show_versions(store, Console(file=shown, force_terminal=terminal, width=250))
    lines = {version: next(line for line in shown.getvalue().splitlines() if version in line)
             for version in (champion, damaged, odd)}  # fmt: skip
    assert "champion" in lines[champion] and "challenger" not in lines[champion]
    assert "damaged" in lines[damaged]
    assert "ada [/ops] [team]" in lines[odd]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda file: file.unlink(), "The file champion is missing"),
        (lambda file: file.write_text("garbage"), "holds no version id"),
        (lambda file: file.write_text("vgg11-000000000000\n"), "vgg11-000000000000 is not among them"),
    ],
)
def test_the_list_tells_of_a_champion_that_is_lost(
    store: WeightsStore, spoil: Callable[[Path], object], sentence: str
) -> None:
    """And shows the versions all the same, for one of them is to be put back."""
    first, (second, _) = champion_of(store), others(store)
    store.promote(second, by="ada", why="better")
    spoil(store.root / "champion")
    shown, said = io.StringIO(), list[str]()
    release.show_versions(store, Console(file=shown, width=250), said.append)
    assert all(version in shown.getvalue() for version in (first, second))
    assert len(said) == 1 and sentence in said[0]


def test_who_rolls_back_is_told_of_a_champion_that_is_lost(store: WeightsStore) -> None:
    """Not that there is none to go back to; nothing changes."""
    champion_of(store)
    second, _ = others(store)
    store.promote(second, by="ada", why="better")
    (store.root / "champion").unlink()
    before = store.history()
    with pytest.raises(WeightsError, match=f"missing in .* put it back with `echo {second} >"):
        release.rollback(store, by="ada", why="worse")
    assert store.history() == before and store.champion() is None


def test_versions_that_are_each_a_little_worse_do_not_slide_for_ever(
    store: WeightsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each within the margin of the one before: together they are stopped once they are shown to be worse by more than
    it than what somebody last put into service. Somebody may do that again, and they start anew."""
    pictures, step = 3000, 25
    versions = [champion_of(store), *(publish_colours(store, ban_threshold=0.61 + at / 100) for at in range(6))]

    def judged(version: str) -> SimpleNamespace:
        wrong = step * versions.index(version)
        verdicts = {str(at): (at % 3, Verdict((at + 1) % 3 if at < wrong else at % 3, False)) for at in range(pictures)}
        return SimpleNamespace(parent=None, verdicts=lambda: verdicts)

    monkeypatch.setattr(contest, "read_outcomes", lambda _, version: judged(version))
    promoted = 0
    with pytest.raises(RefusedError, match="accuracy since the anchor"):
        for version in versions[1:]:
            release.promote(store, version, by="retrain", why="passed the gate")
            promoted += 1
    assert 2 <= promoted <= 4  # 0.83 points each, of a margin of 2 and what 3,000 pictures leave open
    assert contest.anchor_of(store.history(), store.champion()) == versions[0]
    release.rollback(store, by="ada", why="the last one bans cats")  # to one that nobody chose
    assert contest.anchor_of(store.history(), store.champion()) == versions[0]
    release.promote(store, versions[promoted + 1], by="ada", why="the pictures became harder", force=True)
    assert contest.anchor_of(store.history(), store.champion()) == versions[promoted + 1]
    release.promote(store, versions[promoted + 2], by="retrain", why="passed the gate")
