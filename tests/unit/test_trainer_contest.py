"""What the gate is given of two stored versions: outcomes, data sets and history as they lie in the store."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.store import colour_store, publish_colours
from trainer import contest, outcomes, release
from trainer.cli import run
from trainer.dataset import Picture
from trainer.errors import RefusedError
from trainer.outcomes import Outcomes, Thresholds
from worker.model.files import locked
from worker.model.labels import LABELS
from worker.model.weights import WeightsStore

THRESHOLDS: Thresholds = (0.6, 0.3)
SURE = 0.9


def made(first: int, count: int) -> list[tuple[Picture, list[float]]]:
    """`count` test pictures from number `first` on, each surely called by its label."""
    rows = []
    for at in range(first, first + count):
        p = np.full(len(LABELS), (1 - SURE) / 2)
        p[at % 3] = SURE
        rows.append((Picture(Path(f"{at}.png"), at % 3, f"{at:064x}"), p.tolist()))
    return rows


def keep(store: WeightsStore, version: str, rows: list[tuple[Picture, list[float]]], parent: str | None = None) -> None:
    """Writes the outcomes beside the version; `parent` judged alike."""
    pictures, p = tuple(picture for picture, _ in rows), np.array([p for _, p in rows])
    kept = Outcomes.of(pictures, p, THRESHOLDS, (parent, p, THRESHOLDS) if parent else None)
    (store.root / "versions" / version / outcomes.FILE).write_bytes(kept.to_json())


def with_counts(**training: int) -> dict[str, object]:
    return {"counts": {"fitted_on": {name: n - 1 for name, n in training.items()},
                       "held_out": dict.fromkeys(training, 1)}}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    return colour_store(tmp_path / "weights")


@pytest.fixture
def champion(store: WeightsStore) -> str:
    """Tested on 900 pictures, made of 100 of each label."""
    version = publish_colours(
        store, ban_threshold=0.61, data=with_counts(approved=100, not_suitable=100, risked=100), promote=True
    )
    keep(store, version, made(0, 900))
    return version


def test_a_version_of_an_emptied_data_set_is_refused_and_one_that_is_meant_is_forced(
    store: WeightsStore, champion: str
) -> None:
    """Only corrections are left to fit and test on, and on those it is as good as one likes."""
    version = publish_colours(store, ban_threshold=0.62, data=with_counts(approved=500, not_suitable=500, risked=3))
    keep(store, version, made(5000, 900), parent=champion)
    with pytest.raises(RefusedError, match="mount that data set and fit again, or promote with --force --why TEXT"):
        release.promote(store, version, by="cron", why="passed the gate")
    decision = contest.compare(store, version, champion)
    assert [check.name for check in decision.failed] == [
        "test pictures of the champion",
        "training pictures of risked",
    ]
    assert (decision.failed[1].gained, decision.failed[1].pictures) == (3, 100)  # the held-out one among them
    release.promote(store, version, by="ada", why="the test set is a new one", force=True)
    assert store.history()[-1].forced and store.champion() == version


def test_a_data_set_that_grew_passes(store: WeightsStore, champion: str) -> None:
    """Some test pictures look like new training pictures, and one was decided otherwise."""
    version = publish_colours(store, ban_threshold=0.62, data=with_counts(approved=130, not_suitable=99, risked=120))
    keep(store, version, made(50, 950), parent=champion)
    decision = contest.compare(store, version, champion)
    assert decision.passed and [check.is_kept for check in decision.checks[:3]] == [True, True, False]


def test_a_champion_of_an_earlier_release_without_outcomes_is_told_and_is_no_reason_to_refuse(
    store: WeightsStore,
) -> None:
    """Its data set is not known; the challenger noted down what it makes of the challenger's pictures."""
    champion = store.champion()
    assert champion is not None
    version = publish_colours(store, ban_threshold=0.62)
    keep(store, version, made(0, 900), parent=champion)
    decision = contest.compare(store, version, champion)
    assert decision.passed
    assert any("whether they are still among the challenger's is not known" in note for note in decision.notes)


def test_a_challenger_of_an_earlier_release_is_compared_on_what_people_see_by_the_champions_own_outcomes(
    store: WeightsStore, champion: str
) -> None:
    version = publish_colours(store, ban_threshold=0.62)
    keep(store, version, made(0, 900), parent=champion)
    path = store.root / "versions" / version / outcomes.FILE
    document = json.loads(path.read_bytes())
    document["rows"] = [row[:5] for row in document["rows"]]
    del document["parent"]["reviewed"]
    path.write_text(json.dumps(document))
    decision = contest.compare(store, version, champion)
    assert next(check for check in decision.checks if check.name == "risked banned or seen").pictures == 300
    (store.root / "versions" / champion / outcomes.FILE).unlink()
    assert any("known of none" in note for note in contest.compare(store, version, champion).notes)


def test_an_anchor_whose_test_pictures_have_all_been_replaced_is_told(store: WeightsStore, champion: str) -> None:
    """Or small steps would add up unseen from there on."""
    keep(store, champion, made(5000, 900))
    second, third = (publish_colours(store, ban_threshold=ban) for ban in (0.62, 0.63))
    store.promote(second, by="cron", why="passed the gate", gate={"passed": True})
    keep(store, second, made(0, 900))
    keep(store, third, made(0, 900), parent=second)
    decision = contest.compare(store, third, second)
    assert decision.passed
    assert any(f"The anchor is {champion}" in note and "no test picture in common" in note for note in decision.notes)


def keep_wrong(store: WeightsStore, version: str, rows: list[tuple[Picture, list[float]]], wrong: int) -> None:
    """Writes outcomes in which the first `wrong` pictures are surely called by another label."""
    turned = [(picture, p[1:] + p[:1] if at < wrong else p) for at, (picture, p) in enumerate(rows)]
    keep(store, version, turned)


def test_a_challenger_fitted_beside_another_champion_is_compared_with_the_one_that_serves(
    store: WeightsStore, champion: str
) -> None:
    """What it noted down is of the champion of then, which was worse than the one that a person went back to."""
    version = publish_colours(store, ban_threshold=0.62)
    then = publish_colours(store, ban_threshold=0.63)
    rows = made(0, 900)
    keep_wrong(store, version, rows, 90)
    path = store.root / "versions" / version / outcomes.FILE
    own = outcomes.parse(path.read_bytes(), version)
    p = own.probabilities
    pictures = tuple(picture for picture, _ in rows)
    path.write_bytes(Outcomes.of(pictures, p, THRESHOLDS, (then, p, THRESHOLDS)).to_json())
    assert contest.compare(store, version, then).checks[0].value == 0
    accuracy = next(check for check in contest.compare(store, version, champion).checks if check.name == "accuracy")
    assert not accuracy.passed and accuracy.lost > 50


def test_beside_a_champion_that_somebody_chose_nothing_is_said_of_an_anchor(store: WeightsStore, champion: str) -> None:
    """It is compared with that one already."""
    version = publish_colours(store, ban_threshold=0.62)
    keep(store, version, made(0, 900), parent=champion)
    decision = contest.compare(store, version, champion)
    assert not any("anchor" in check.name for check in decision.checks)
    assert not any("anchor" in note for note in decision.notes)


def test_an_anchor_whose_outcomes_are_damaged_stops_no_promotion_and_is_told(
    store: WeightsStore, champion: str
) -> None:
    second, third = (publish_colours(store, ban_threshold=ban) for ban in (0.62, 0.63))
    store.promote(second, by="cron", why="passed the gate", gate={"passed": True})
    keep(store, second, made(0, 900))
    keep(store, third, made(0, 900), parent=second)
    (store.root / "versions" / champion / outcomes.FILE).write_bytes(b"[")
    decision = contest.compare(store, third, second)
    assert decision.passed
    assert any(f"The anchor {champion} keeps no outcomes that can be read" in note for note in decision.notes)


def test_a_forced_version_that_was_rolled_back_is_no_anchor(store: WeightsStore, champion: str) -> None:
    """Small steps are added up since what somebody still stands by."""
    second, forced, fourth = (publish_colours(store, ban_threshold=ban) for ban in (0.62, 0.63, 0.64))
    store.promote(second, by="cron", why="passed the gate", gate={"passed": True})
    store.promote(forced, by="ada", why="trying it", forced=True)
    store.rollback(by="ada", why="it bans cats")
    store.promote(fourth, by="cron", why="passed the gate", gate={"passed": True})
    assert contest.anchor_of(store.history(), store.champion()) == champion


def test_force_that_was_not_needed_is_no_promotion_against_the_gate(store: WeightsStore, champion: str) -> None:
    """On record as forced it would be the next anchor, and small steps would start anew."""
    version = publish_colours(store, ban_threshold=0.62)
    keep(store, version, made(0, 900), parent=champion)
    release.promote(store, version, by="ada", why="to be sure", force=True)
    entry = store.history()[-1]
    assert (entry.to, entry.forced) == (version, False)
    assert contest.anchor_of(store.history(), version) == champion


def test_a_schedule_puts_back_what_a_person_went_back_to_but_not_what_they_left(
    store: WeightsStore, champion: str
) -> None:
    """And once somebody has promoted a version after the rollback, only the one that was left stays out."""
    left, third = (publish_colours(store, ban_threshold=ban) for ban in (0.62, 0.63))
    store.promote(left, by="cron", why="passed the gate", gate={"passed": True})
    store.rollback(by="ada", why="it bans cats.")
    assert f"ada rolled back from {left} to {champion} (it bans cats)" in str(release.after_a_rollback(store, third))
    store.promote(third, by="ada", why="seen by hand", forced=True)
    assert "ada took it out of service (it bans cats)" in str(release.after_a_rollback(store, left))
    assert release.after_a_rollback(store, champion) is None


def test_a_rollback_that_never_took_effect_keeps_no_schedule_from_promoting(store: WeightsStore, champion: str) -> None:
    """Its line was written, and the disk was full when the champion was to be."""
    second, third = (publish_colours(store, ban_threshold=ban) for ban in (0.62, 0.63))
    store.promote(second, by="ada", why="seen by hand", forced=True)
    store.rollback(by="ada", why="it bans cats")
    (store.root / "champion").write_text(f"{second}\n")
    assert release.after_a_rollback(store, third) is None


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("kept", "code"), [(900, 0), (300, 3)])
def test_a_dry_run_gives_the_gates_answer_and_changes_nothing(
    kept: int, code: int, store: WeightsStore, champion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures on stdout, whatever the answer; also while a training run, or a promotion, holds its lock."""
    version = publish_colours(store, ban_threshold=0.62, review_threshold=0.2)
    keep(store, version, made(0, kept), parent=champion)
    store.set_challenger(version)
    arguments = ["promote", version, "--dry-run", "--weights", str(store.root)]
    with release.one_run(store), locked(store.root):
        before = files(store.root)
        assert run(arguments) == code
        assert files(store.root) == before
    heard = capsys.readouterr()
    assert "accuracy: +0.0000" in heard.out and "review threshold: 0.200, the champion 0.300" in heard.out
    answer = f"{version} would be promoted in the place of {champion}.\n"
    assert heard.out.endswith(answer) == (code == 0)
    assert (heard.err == "") == (code == 0)
    assert run([*arguments, "--force", "--why", "both"]) == 2


def test_a_dry_run_of_a_stores_first_version_says_that_it_needs_no_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = WeightsStore(tmp_path / "weights")
    version = publish_colours(store)
    assert run(["promote", version, "--dry-run", "--weights", str(store.root)]) == 0
    assert "compared with none" in capsys.readouterr().out
    assert store.champion() is None and store.history() == []


def test_a_dry_run_puts_no_champion_back(
    store: WeightsStore, champion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was lost is told as a promotion tells it, and is a person's to put back."""
    version = publish_colours(store, ban_threshold=0.62)
    store.promote(version, by="ada", why="second", forced=True)
    (store.root / "champion").unlink()
    before = files(store.root)
    for words in (["--dry-run"], []):
        assert run(["promote", champion, *words, "--weights", str(store.root)]) == 4
        assert f"echo {version} >" in capsys.readouterr().err
        assert store.champion() is None
        assert not words or files(store.root) == before
