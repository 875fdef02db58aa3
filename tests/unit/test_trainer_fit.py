"""A whole training run on drawn pictures, with a small network in VGG-11's place and everything else real."""

import io
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.support.fitting import SMALL, draw, plan
from tests.support.store import publish_colours
from trainer import contest, release
from trainer.assess import TRAINING_TILES
from trainer.bases import random_base
from trainer.decoding import decoder_pool
from trainer.errors import DataError, LockedError
from trainer.explain import REPORT_BACKGROUND
from trainer.figures import MISTAKES_MAX
from trainer.fit import fit
from trainer.progress import Reporter
from worker.decode import DecoderPool
from worker.errors import UsageError, WeightsError
from worker.model.labels import LABELS
from worker.model.preprocessing import Preprocessing
from worker.model.reading import Decoded
from worker.model.reference import expected
from worker.model.weights import WeightsStore


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    return WeightsStore(tmp_path / "weights")


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


def test_a_base_that_makes_no_numbers_of_pictures_ends_the_run_in_a_sentence(
    few: Path, store: WeightsStore, tmp_path: Path
) -> None:
    """Its weights are finite and their sums are not; nothing is kept of it, nor published."""
    base = random_base(SMALL, 0)
    base["1.0.weight"][:] = 3e38
    safetensors.torch.save_file(base, tmp_path / "base.safetensors")
    wanted = replace(plan(few, base=str(tmp_path / "base.safetensors")), cache=tmp_path / "cache")
    with pytest.raises(WeightsError, match="the base of small turns a picture into values that are not finite"):
        fit(wanted, store, Reporter())
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert (store.versions(), store.champion()) == ([], None)


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

    monkeypatch.setattr("trainer.features.decoder_pool", counting)
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
    module = SMALL.build()
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
