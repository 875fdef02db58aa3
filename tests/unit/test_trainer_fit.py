"""A whole training run on drawn pictures, with a small network in VGG-11's place and everything else real."""

import io
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from tests.support.store import publish_colours
from trainer import contest, release
from trainer.asked import Asked
from trainer.assess import TRAINING_TILES
from trainer.cli import run
from trainer.commands.fit import fit as fit_command
from trainer.commands.retrain import retrain
from trainer.decoding import decoder_pool
from trainer.errors import DataError, LockedError
from trainer.explain import REPORT_BACKGROUND
from trainer.figures import MISTAKES_MAX
from trainer.fit import fit
from trainer.plan import Plan
from trainer.progress import Reporter
from worker.decode import DecoderPool
from worker.errors import UsageError, WeightsError
from worker.model import network as networks
from worker.model.labels import LABELS
from worker.model.manifest import Manifest, ManifestDraft
from worker.model.network import Network
from worker.model.preprocessing import Decoded, Preprocessing
from worker.model.reference import expected
from worker.model.weights import WeightsStore


def build() -> nn.Module:
    tail = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
    return nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), tail)


SMALL = Network("small", build, lambda m: (m[0], m[1]), "1.5")
networks.register(SMALL)


def draw(root: Path, per_label: int, seed: int, noise: float) -> Path:
    """Noisy pictures of one colour a label; the first of each label is a GIF."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(LABELS):
        (root / name).mkdir(parents=True)
        for i in range(per_label):
            colour = np.full((24, 32, 3), 90.0)
            colour[..., label] += 60
            pixels = np.clip(colour + rng.normal(0, noise) + rng.normal(0, noise, colour.shape), 0, 255)
            suffix = "gif" if i == 0 else "png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{name[:2]}{seed}_{i}.{suffix}")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 60 and test/ with 15 easy pictures a label."""
    root = tmp_path_factory.mktemp("pictures")
    draw(root / "train", 60, 1, noise=6)
    draw(root / "test", 15, 2, noise=6)
    return root


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """train/ with 8 and test/ with 3 pictures a label, for tests that change them."""
    draw(tmp_path / "few" / "train", 8, 3, noise=6)
    draw(tmp_path / "few" / "test", 3, 4, noise=6)
    return tmp_path / "few"


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    return WeightsStore(tmp_path / "weights")


def plan(root: Path, base: str = "random:0", by: str = "ada") -> Plan:
    return Plan(train=root / "train", test=root / "test", by=by, base=base, network="small", device="cpu")


@pytest.fixture(scope="module")
def fitted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[WeightsStore, str, str]:
    """A store with one version, its id, and what was said on the way."""
    store, said = WeightsStore(tmp_path_factory.mktemp("store")), io.StringIO()
    return store, fit(plan(pictures), store, Reporter(said)).id, said.getvalue()


def test_the_first_version_becomes_champion_and_history_says_so(fitted: tuple[WeightsStore, str, str]) -> None:
    store, version, _ = fitted
    assert store.champion() == version
    assert store.challenger() is None
    (entry,) = store.history()
    assert (entry.to, entry.by, entry.why) == (version, "ada", "first version of the store")


def test_a_lost_champion_file_is_found_out_before_the_work(few: Path, store: WeightsStore) -> None:
    """Not by a version that takes the service without a gate and without what the champion was fitted for."""
    publish_colours(store, promote=True)
    champion = publish_colours(store, ban_threshold=0.7, promote=True)
    (store.root / "champion").unlink()
    before = store.versions()
    with pytest.raises(WeightsError, match=f"{champion} served last"):
        fit(plan(few), store, Reporter(io.StringIO()))
    assert (store.versions(), store.champion()) == (before, None)


def test_the_manifest_tells_where_the_version_comes_from(fitted: tuple[WeightsStore, str, str]) -> None:
    store, version, _ = fitted
    manifest = store.verify(version)
    assert manifest.base.source == "random:0 (for trials only)"
    assert manifest.metrics["test"]["accuracy"] > 0.9
    assert manifest.data["counts"]["fitted_on"] == dict.fromkeys(LABELS, 48)
    assert manifest.data["counts"]["held_out"] == dict.fromkeys(LABELS, 12)
    assert manifest.data["counts"]["test"] == dict.fromkeys(LABELS, 15)
    assert manifest.provenance["recipe"] == "default"
    assert manifest.provenance["torch"] == torch.__version__
    assert manifest.provenance["hyperparameters"]["c"] > 0
    assert manifest.delta.tensors == ("1.5.bias", "1.5.weight")
    assert manifest.parent is None


def test_thresholds_are_proven_on_the_held_out_pictures(fitted: tuple[WeightsStore, str, str]) -> None:
    store, version, said = fitted
    manifest = store.manifest(version)
    assert manifest.ban_threshold is not None and manifest.ban_threshold_proven
    assert manifest.review_threshold is not None and manifest.review_threshold < manifest.ban_threshold
    held_out = manifest.metrics["held_out"]
    assert held_out["false_bans"] <= 0.05 * held_out["bans"]
    assert held_out["log_loss"] <= held_out["log_loss_uncalibrated"]
    assert "held-out pictures above it are risked" in said


def test_the_manifest_says_what_a_worker_is_to_expect(fitted: tuple[WeightsStore, str, str]) -> None:
    """The worker's drift reference: shares of labels, and the distribution of p(risked)."""
    reference = expected(fitted[0].manifest(fitted[1]).metrics)
    assert reference is not None and sum(reference.label_shares.values()) == pytest.approx(1)
    assert reference.label_shares["risked"] == pytest.approx(1 / 3, abs=0.1)
    assert list(reference.risked_at_most.values()) == sorted(reference.risked_at_most.values())
    assert reference.risked_at_most[1.0] == pytest.approx(1)


def test_a_random_base_is_announced_loudly(fitted: tuple[WeightsStore, str, str]) -> None:
    assert "WARNING: the base random:0" in fitted[2]
    assert "FOR TRIALS ONLY" in fitted[2]


def test_fitting_again_is_judged_on_the_test_pictures_of_now(few: Path, store: WeightsStore) -> None:
    """More of them make no other version, and are what the gate asks for."""
    version = fit(plan(few), store, Reporter(io.StringIO()))
    draw(few / "more", 5, 9, noise=6)
    for picture in sorted((few / "more").glob("*/*")):
        picture.rename(few / "test" / picture.parent.name / picture.name)
    again = fit(plan(few), store, Reporter(io.StringIO()))
    assert again.id == version.id
    counts = [manifest.data["counts"]["test"] for manifest in (version, again, store.manifest(version.id))]
    outcomes = contest.read_outcomes(store, version.id)
    assert outcomes is not None
    assert (sum(counts[0].values()), sum(counts[1].values()), len(outcomes.verdicts())) == (9, 24, 24)
    assert counts[1] == counts[2]


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


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(fitted: tuple[WeightsStore, str, str]) -> None:
    assert "Features of pictures to fit on: 144 of 144 done" in fitted[2]
    assert "\x1b" not in fitted[2] and "\r" not in fitted[2]


def test_the_same_pictures_and_base_give_the_same_version(
    fitted: tuple[WeightsStore, str, str], pictures: Path, tmp_path: Path
) -> None:
    """Wherever the pictures lie, whoever runs it, whenever: the id is the same, and publishing again adds nothing."""
    store, version, _ = fitted
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(pictures, elsewhere)
    assert fit(plan(elsewhere, by="grace"), store, Reporter(io.StringIO())).id == version
    assert store.versions() == [version]
    assert (store.champion(), store.challenger()) == (version, None)


def test_a_later_version_becomes_challenger_and_names_its_parent(
    fitted: tuple[WeightsStore, str, str], few: Path, tmp_path: Path
) -> None:
    _, first, _ = fitted
    store = WeightsStore(tmp_path / "copy")
    shutil.copytree(fitted[0].root, store.root)
    second = fit(plan(few), store, Reporter(io.StringIO()))
    assert (store.champion(), store.challenger()) == (first, second.id)
    assert second.parent == first
    release.promote(store, second.id, by="ada", why="better", force=True)
    assert store.champion() == second.id
    assert store.rollback(by="ada", why="worse after all") == first


def test_the_article_recipe_publishes_its_curve_and_says_on_what_it_chose(pictures: Path, store: WeightsStore) -> None:
    said = io.StringIO()
    manifest = fit(replace(plan(pictures), recipe="article", epochs=3), store, Reporter(said))
    assert len(manifest.provenance["hyperparameters"]["epochs"]) == 3
    assert manifest.provenance["epochs"] == 3
    assert "best on the test pictures" in said.getvalue()


def test_too_few_risked_pictures_give_no_ban_threshold_and_it_is_said(few: Path, store: WeightsStore) -> None:
    said = io.StringIO()
    manifest = fit(plan(few), store, Reporter(said))
    assert manifest.ban_threshold is None
    assert not manifest.ban_threshold_proven
    assert manifest.metrics["test"]["bans"] == 0
    assert "never bans" in said.getvalue()


def test_a_ban_threshold_set_by_hand_is_recorded_as_unproven(few: Path, store: WeightsStore) -> None:
    said = io.StringIO()
    manifest = fit(replace(plan(few), ban_threshold=0.4), store, Reporter(said))
    assert (manifest.ban_threshold, manifest.ban_threshold_proven) == (0.4, False)
    assert "not proven" in said.getvalue()


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


def test_what_cannot_be_used_is_left_out_and_said(few: Path, store: WeightsStore) -> None:
    """Files that are no pictures, test pictures that were trained on, and content under two labels."""
    train, test = few / "train", few / "test"
    (train / "approved" / "notes.txt").write_text("not a picture")
    shutil.copy(train / "approved" / "ap3_1.png", test / "approved" / "leak.png")
    shutil.copy(train / "approved" / "ap3_2.png", train / "risked" / "both.png")
    said = io.StringIO()
    manifest = fit(plan(few), store, Reporter(said))
    assert "1 training files are no usable pictures, left out (1 unsupported_format)" in said.getvalue()
    assert "1 test pictures are in the training folder too" in said.getvalue()
    assert "2 training pictures lie under two labels" in said.getvalue()
    assert manifest.data["counts"]["test"]["approved"] == 3
    assert manifest.data["unreadable"] == 1


def test_test_and_held_out_pictures_that_look_like_trained_ones_are_left_out_and_counted(
    few: Path, store: WeightsStore
) -> None:
    """A copy saved anew has other bytes, so no digest finds it; one under another label is pointed out."""
    train, test = few / "train", few / "test"
    with Image.open(train / "approved" / "ap3_1.png") as picture:
        picture.save(test / "approved" / "copy.jpg", quality=95)
    with Image.open(train / "approved" / "ap3_2.png") as picture:
        picture.save(train / "risked" / "copy.webp", lossless=True)
    said = io.StringIO()
    manifest = fit(plan(few), store, Reporter(said))
    assert "1 test pictures look like training pictures and are left out" in said.getvalue()
    assert "1 training pictures look like one of another label, check them" in said.getvalue()
    assert manifest.data["counts"]["test"]["approved"] == 3
    assert manifest.data["near_duplicates"]["test"] == 1


def test_a_fit_on_a_full_cache_decodes_only_what_its_report_shows(
    pictures: Path, store: WeightsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what explanations start from. What the report says of files, format and size, stands in the cache."""
    submitted = 0

    @contextmanager
    def counting(preprocessing: Preprocessing) -> Iterator[DecoderPool]:
        with decoder_pool(preprocessing) as pool:
            submit = pool.submit

            def count(data: bytes) -> "Future[Decoded]":
                nonlocal submitted
                submitted += 1
                return submit(data)

            monkeypatch.setattr(pool, "submit", count)
            yield pool

    monkeypatch.setattr("trainer.fit.decoder_pool", counting)
    cached = replace(plan(pictures), cache=tmp_path / "cache")
    first = fit(cached, store, Reporter(io.StringIO()))
    assert submitted >= 3 * 75
    page, submitted = store.read_extra(first.id, "report.html", 10**8), 0
    assert fit(cached, store, Reporter(io.StringIO())).id == first.id
    assert submitted <= 3 * TRAINING_TILES + MISTAKES_MAX + REPORT_BACKGROUND
    again = store.read_extra(first.id, "report.html", 10**8)
    assert page is not None and again is not None
    assert all(b"below 256" in one and b"PNG" in one and b"GIF" in one for one in (page, again))


def test_test_pictures_that_look_like_one_another_are_pointed_out(few: Path, store: WeightsStore) -> None:
    """They stay, but a person should know that one picture counts as many."""
    own = sorted((few / "test" / "risked").iterdir())[0]
    with Image.open(own) as picture:
        picture.convert("RGB").save(own.with_name("again.jpg"), quality=95)
    said = io.StringIO()
    manifest = fit(plan(few), store, Reporter(said))
    assert "1 test pictures look like another of them and are counted as pictures of their own" in said.getvalue()
    assert manifest.data["counts"]["test"]["risked"] == 4


def test_a_cache_changes_no_number_and_a_second_run_computes_nothing(
    fitted: tuple[WeightsStore, str, str], pictures: Path, store: WeightsStore, tmp_path: Path
) -> None:
    for _ in range(2):
        said = io.StringIO()
        cached = replace(plan(pictures), cache=tmp_path / "cache")
        assert fit(cached, store, Reporter(said)).id == fitted[1]
    assert "144 of 144 are in the cache" in said.getvalue()


def test_int8_ranges_belong_to_the_base(few: Path, pictures: Path, tmp_path: Path) -> None:
    """Other pictures on the same base leave them as they are, and with them a worker's compiled engine."""
    store = WeightsStore(tmp_path / "weights")
    first = fit(plan(few), store, Reporter(io.StringIO()))
    assert store.champion() == first.id and first.activation_ranges
    same_base = fit(plan(pictures), store, Reporter(io.StringIO()))
    assert same_base.id != first.id and same_base.activation_ranges == first.activation_ranges
    another = fit(plan(pictures, base="random:9"), store, Reporter(io.StringIO()))
    assert another.activation_ranges != first.activation_ranges


def test_a_base_from_a_file_is_taken_without_its_head(few: Path, store: WeightsStore, tmp_path: Path) -> None:
    module = build()
    safetensors.torch.save_file(module.state_dict(), tmp_path / "mine.safetensors")
    manifest = fit(plan(few, base=str(tmp_path / "mine.safetensors")), store, Reporter(io.StringIO()))
    assert manifest.base.source == "mine.safetensors"
    base = store.read_base(manifest.base.sha256, manifest.base.bytes)
    assert set(base) == {"1.0.weight", "1.0.bias", "1.3.weight", "1.3.bias"}
    torch.testing.assert_close(base["1.0.weight"], module.state_dict()["1.0.weight"])


def test_nothing_is_published_where_the_pictures_are_refused(few: Path, store: WeightsStore) -> None:
    for file in (few / "test" / "risked").iterdir():
        file.write_bytes(file.name.encode() + b" is no picture")
    with pytest.raises(DataError, match="No usable test picture of 'risked'"):
        fit(plan(few), store, Reporter(io.StringIO()))
    assert store.versions() == []
    assert store.champion() is None
    assert list(store.root.glob("**/*.safetensors")) == []


def test_two_runs_on_one_store_exclude_each_other(few: Path, store: WeightsStore) -> None:
    with release.one_run(store), pytest.raises(LockedError, match="Another training run"):
        fit(plan(few), store, Reporter(io.StringIO()))
    assert fit(plan(few), store, Reporter(io.StringIO())).id == store.champion()


@pytest.mark.parametrize("base", ["random:", "random:x", "random:-1", "nothing.safetensors"])
def test_a_base_that_is_none_is_refused(base: str, few: Path, store: WeightsStore) -> None:
    with pytest.raises(UsageError, match="base"):
        fit(plan(few, base=base), store, Reporter(io.StringIO()))


def test_a_base_file_that_holds_no_network_is_refused(few: Path, store: WeightsStore, tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"junk")
    with pytest.raises(WeightsError):
        fit(plan(few, base=str(tmp_path / "bad.pth")), store, Reporter(io.StringIO()))


def test_a_plan_that_cannot_be_carried_out_is_refused(few: Path) -> None:
    with pytest.raises(UsageError, match="epochs"):
        replace(plan(few), epochs=0)
    with pytest.raises(UsageError, match="ban threshold"):
        replace(plan(few), ban_threshold=1.5)


def test_promoting_what_is_not_there_or_in_service_already_is_refused(fitted: tuple[WeightsStore, str, str]) -> None:
    store, version, _ = fitted
    with pytest.raises(UsageError, match="no version"):
        release.promote(store, "small-000000000000", by="ada", why="")
    with pytest.raises(UsageError, match="champion already"):
        release.promote(store, version, by="ada", why="")


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


def test_the_option_reaches_the_plan(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def note(plan: Plan, *_: object, **__: object) -> None:
        plans.append(plan)
        raise UsageError("That is enough.")

    monkeypatch.setattr("trainer.fit.fit", note)
    words = ["fit", "--train", few / "train", "--test", few / "test", "--weights", tmp_path / "weights"]
    for more in ([], ["--preprocessing", "default"], ["--prevalence", "training", "--ban-precision", "0.9"]):
        assert run([*map(str, words), *more]) == 2
    assert [plan.preprocessing for plan in plans] == ["champion", "default", "champion"]
    assert [plan.asked for plan in plans] == [Asked(), Asked(), Asked("training", ban_precision=0.9)]
