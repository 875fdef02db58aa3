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
