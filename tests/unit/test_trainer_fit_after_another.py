"""A training run beside a champion: what is not asked for is the champion's."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fitting import draw, plan
from tests.support.store import publish_colours
from trainer import contest, release
from trainer.asked import Asked
from trainer.cli import run
from trainer.commands.fit import fit as fit_command
from trainer.commands.retrain import retrain
from trainer.fit import fit
from trainer.plan import WHOLE_FROM, Plan
from trainer.progress import Reporter
from worker.errors import UsageError
from worker.model.labels import LABELS
from worker.model.manifest import Manifest, ManifestDraft
from worker.model.preprocessing import Preprocessing
from worker.model.weights import WeightsStore


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    return WeightsStore(tmp_path / "weights")


def test_the_base_can_be_the_champions(few: Path, store: WeightsStore) -> None:
    """Read from the store, whatever it came from, and said to be what it is; ImageNet only where there is no champion.

    The small network has no ImageNet base, which is how that is seen."""
    with pytest.raises(UsageError, match="no ImageNet base"):
        fit(plan(few, base="champion"), store, Reporter(io.StringIO()))
    champion = fit(plan(few, base="random:7"), store, Reporter(io.StringIO()))
    draw(few / "train" / "more", 3, 9, noise=6)
    for label in LABELS:
        for picture in (few / "train" / "more" / label).iterdir():
            picture.rename(few / "train" / label / picture.name)
    shutil.rmtree(few / "train" / "more")
    said = io.StringIO()
    version = fit(plan(few, base="champion"), store, Reporter(said))
    assert version.id != champion.id
    assert version.base == champion.base
    assert version.base.source == version.provenance["base_source"] == "random:7 (for trials only)"
    assert "WARNING: the base random:7" in said.getvalue()
    assert len(list((store.root / "base").iterdir())) == 1


def test_only_a_scheduled_run_goes_on_from_the_champions_base_unasked() -> None:
    """Or a store begun on another base would change it with the first job that names none."""
    defaults = {
        command.name: option.default
        for command in (retrain, fit_command)
        for option in command.params
        if option.name == "base"
    }
    assert defaults == {"retrain": "champion", "fit": "imagenet"}


def test_what_is_not_asked_for_is_what_the_champion_was_fitted_for(
    few: Path, pictures: Path, store: WeightsStore
) -> None:
    """Or a run that names no prevalence calibrates for the training shares what serves a real stream."""
    first = fit(replace(plan(few), asked=Asked({"risked": 0.02}, 0.97, 0.9, 5_000_000)), store, Reporter(io.StringIO()))
    said = io.StringIO()
    second = fit(plan(pictures), store, Reporter(said))
    assert second.parent == first.id
    operated = second.metrics["operating"]
    assert (operated["prevalence_from"], operated["prevalence"]) == ("given", first.metrics["operating"]["prevalence"])
    assert operated["aims"] == {"ban_precision": 0.97, "review_recall": 0.9}
    assert operated["uploads_per_day"] == 5_000_000
    (sentence,) = [line for line in said.getvalue().splitlines() if "no option says otherwise" in line]
    assert sentence == (
        f"Fitted for what the champion {first.id} was, for no option says otherwise: --prevalence risked=0.02, "
        "--ban-precision 0.97, --review-recall 0.9, --uploads-per-day 5000000."
    )
    said = io.StringIO()
    third = fit(replace(plan(pictures), asked=Asked("training", 0.95)), store, Reporter(said))
    assert third.metrics["operating"]["prevalence_from"] == "the training pictures"
    assert third.metrics["operating"]["aims"] == {"ban_precision": 0.95, "review_recall": 0.9}
    assert "otherwise: --review-recall 0.9, --uploads-per-day 5000000." in said.getvalue()


def test_what_the_champion_is_held_to_does_not_change_without_a_word_and_a_record(
    few: Path, store: WeightsStore
) -> None:
    """A trial with other aims may make the very version in service, and later ones would be measured by the trial's."""
    champion = fit(plan(few), store, Reporter(io.StringIO()))
    assert champion.ban_threshold is None  # too few to show any precision, so other aims make the same version
    again = fit(plan(few), store, Reporter(io.StringIO()))
    assert (again.id, len(store.history())) == (champion.id, 1)
    next((few / "test" / "risked").iterdir()).unlink()
    said = io.StringIO()
    again = fit(replace(plan(few, by="bob"), asked=Asked({"risked": 0.02}, 0.5)), store, Reporter(said))
    entry = store.history()[-1]
    assert (again.id, entry.action, entry.from_, entry.to, entry.by) == (
        champion.id, "refit", champion.id, champion.id, "bob",
    )  # fmt: skip
    digests = [str(manifest.data["test_digest"])[:12] for manifest in (champion, again)]
    changes = f"prevalence not given -> risked=0.02, ban precision 0.95 -> 0.5, test pictures {' -> '.join(digests)}"
    assert entry.why == f"fitted again: {changes}"
    assert f"The champion {champion.id} is fitted again: {changes}; history.jsonl has it on record." in said.getvalue()


def published_with(store: WeightsStore, manifest: Manifest, metrics: dict[str, Any]) -> None:
    """The same version with other metrics, as another release or a person made it."""
    kept = manifest.model_dump(by_alias=True, exclude={"id", "delta"}) | {"metrics": metrics}
    store.publish(ManifestDraft.model_validate(kept), store.read_delta(manifest))


def test_labels_that_were_left_out_go_on_sharing_the_rest_as_in_training(
    few: Path, pictures: Path, store: WeightsStore
) -> None:
    """Bounds of labels that are weighted as they were counted are narrower; versions from before have all three."""
    for picture in sorted((few / "train" / "approved").iterdir())[6:]:
        picture.unlink()
    first = fit(replace(plan(few), asked=Asked({"risked": 0.1})), store, Reporter(io.StringIO()))
    operated = first.metrics["operating"]
    assert operated["prevalence"]["approved"] == pytest.approx(0.9 * 6 / 14)
    second = fit(plan(pictures), store, Reporter(io.StringIO()))
    assert second.metrics["operating"]["prevalence"]["approved"] == pytest.approx(0.45)
    older = {name: made for name, made in operated.items() if name != "prevalence_given"}
    published_with(store, first, {"operating": older})
    third = fit(plan(pictures), store, Reporter(io.StringIO()))
    assert third.metrics["operating"]["prevalence"] == operated["prevalence"]


def test_a_champion_of_another_network_or_without_figures_asks_for_nothing(
    few: Path, pictures: Path, store: WeightsStore
) -> None:
    operated = {"prevalence_from": "given", "prevalence": {"approved": 0.5, "not_suitable": 0.4, "risked": 0.1}}
    publish_colours(store, promote=True, metrics={"operating": operated})
    other_network = fit(replace(plan(few), ban_threshold=0.9), store, Reporter(io.StringIO()))
    store.promote(other_network.id, by="ada", why="of the small network")
    published_with(store, other_network, {})
    without_figures = fit(plan(pictures), store, Reporter(io.StringIO()))
    for version in (other_network, without_figures):
        assert version.metrics["operating"]["prevalence_from"] == "the training pictures"
        assert version.metrics["operating"]["aims"] == {"ban_precision": 0.95, "review_recall": 0.95}


def test_a_ban_threshold_set_by_hand_is_not_taken_over_and_it_is_said(
    few: Path, pictures: Path, store: WeightsStore
) -> None:
    """It was chosen for other weights."""
    first = fit(replace(plan(few), ban_threshold=0.97), store, Reporter(io.StringIO()))
    said = io.StringIO()
    second = fit(plan(pictures), store, Reporter(said))
    assert second.ban_threshold != 0.97 and second.ban_threshold_proven
    assert f"The ban threshold 0.97 of the champion {first.id} was set by hand" in said.getvalue()
    said = io.StringIO()
    fit(replace(plan(pictures), ban_threshold=0.96), store, Reporter(said))
    assert "0.97" not in said.getvalue()


def test_pictures_are_prepared_as_the_champion_does_unless_asked_otherwise(
    few: Path, pictures: Path, store: WeightsStore
) -> None:
    """So that running workers take the version up, and the champion is judged on the same pictures; who promotes or
    rolls back across a difference is told that workers must be restarted."""
    first = fit(plan(few), store, Reporter(io.StringIO()))
    assert first.preprocessing == Preprocessing().to_json()
    before = Preprocessing(jpeg_margins=(2.0, 2.0)).to_json()
    kept = first.model_dump(by_alias=True, exclude={"id", "delta"})
    older = store.publish(ManifestDraft.model_validate(kept | {"preprocessing": before}), store.read_delta(first))
    store.promote(older.id, by="ada", why="as it was")
    second = fit(plan(pictures), store, Reporter(io.StringIO()))
    assert (second.parent, second.preprocessing) == (older.id, before)
    outcomes = contest.read_outcomes(store, second.id)
    assert outcomes is not None
    assert outcomes.of_parent()
    third = fit(replace(plan(pictures), preprocessing="default"), store, Reporter(io.StringIO()))
    assert (third.parent, third.preprocessing) == (older.id, Preprocessing().to_json())
    said: list[str] = []
    release.promote(store, second.id, by="ada", why="same", force=True, say=lambda sentence: None)
    release.promote(store, third.id, by="ada", why="other", force=True, say=said.append)
    assert said[-1].endswith("restart them.")
    assert release.rollback(store, by="ada", why="back", say=said.append) == second.id
    assert (
        said[-1]
        == f"{second.id} prepares pictures in another way than {third.id}, with which workers go on: restart them."
    )
    said.clear()
    assert release.rollback(store, by="ada", why="and back", say=said.append) == older.id
    assert said == []


def test_whole_pictures_are_asked_for_once(few: Path, pictures: Path, store: WeightsStore) -> None:
    """A schedule, which names nothing, goes on with them."""
    first = fit(replace(plan(few), preprocessing="whole"), store, Reporter(io.StringIO()))
    assert first.preprocessing == Preprocessing(long_from=WHOLE_FROM).to_json()
    assert fit(plan(pictures), store, Reporter(io.StringIO())).preprocessing == first.preprocessing


def test_the_option_reaches_the_plan(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def note(plan: Plan, *_: object, **__: object) -> None:
        plans.append(plan)
        raise UsageError("That is enough.")

    monkeypatch.setattr("trainer.fit.fit", note)
    words = ["fit", "--train", few / "train", "--test", few / "test", "--weights", tmp_path / "weights"]
    for more in ([], ["--preprocessing", "whole"], ["--prevalence", "training", "--ban-precision", "0.9"]):
        assert run([*map(str, words), *more]) == 2
    assert [plan.preprocessing for plan in plans] == ["champion", "whole", "champion"]
    assert [plan.asked for plan in plans] == [Asked(), Asked(), Asked("training", ban_precision=0.9)]
