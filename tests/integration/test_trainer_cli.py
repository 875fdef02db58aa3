"""`moderation-trainer` as people and schedulers run it: the real VGG-11, exit codes, stdout and stderr."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.waiting import wait_until
from trainer import release
from trainer.cli import run
from worker.model.labels import LABELS
from worker.model.weights import WeightsStore

COMMAND = (sys.executable, "-m", "trainer.cli")
PATIENCE_S = 300.0


def draw(root: Path, per_label: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for label in LABELS:
        (root / label).mkdir(parents=True)
        for i in range(per_label):
            pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(root / label / f"{label[:2]}-{seed}-{i}.png")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    draw(root / "train", 5, 1)
    draw(root / "test", 1, 2)
    return root


def fit_arguments(pictures: Path, weights: Path, *more: str) -> list[str]:
    folders = ["--train", str(pictures / "train"), "--test", str(pictures / "test")]
    return ["fit", *folders, "--base", "random:0", "--weights", str(weights), "--explain", "0", *more]


@pytest.fixture(scope="module")
def fitted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str, str]:
    """A store with two versions fitted by the command itself: (folder, first id, second id, stderr)."""
    weights = tmp_path_factory.mktemp("weights")
    ids, heard = [], ""
    for more in ((), ("--ban-threshold", "0.7", "--by", "grace", "--explain", "1")):
        ended = subprocess.run(
            [*COMMAND, *fit_arguments(pictures, weights, *more)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        ids.append(ended.stdout.splitlines()[-1])
        heard += ended.stderr
    return weights, ids[0], ids[1], heard


def one_sentence(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith(".\n") and "Traceback" not in text


def test_fit_prints_the_new_version_last_and_all_else_on_stderr(fitted: tuple[Path, str, str, str]) -> None:
    weights, first, second, heard = fitted
    assert sorted([first, second]) == WeightsStore(weights).versions()
    assert "FOR TRIALS ONLY" in heard
    assert "not proven" in heard


def test_a_version_is_small_beside_its_base_and_the_base_is_stored_once(fitted: tuple[Path, str, str, str]) -> None:
    weights, first, _, _ = fitted
    files = {file.name: file.stat().st_size for file in (weights / "versions" / first).iterdir()}
    assert set(files) == {"manifest.json", "delta.safetensors", "test_outcomes.json", "report.html"}
    assert files.pop("report.html") <= 2**20
    assert sum(files.values()) <= 100 * 1024
    assert len(list((weights / "base").iterdir())) == 1
    assert len(list((weights / "check").iterdir())) == 1, "two versions on one base share what engines are compared on"


def test_a_report_explains_as_many_test_pictures_as_asked_for(fitted: tuple[Path, str, str, str]) -> None:
    weights, first, second, _ = fitted
    pages = [(weights / "versions" / version / "report.html").read_text() for version in (first, second)]
    assert [page.count('class="maps') for page in pages] == [0, 1]


def test_list_marks_champion_and_challenger(
    fitted: tuple[Path, str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Piped, it is one tab-separated line a version, oldest first, under a header."""
    weights, first, second, _ = fitted
    assert run(["list", "--weights", str(weights)]) == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header[:2] == ["version", "role"]
    assert [row[:2] for row in rows] == [[first, "champion"], [second, "challenger"]]
    assert rows[1][3] == "0.7 (unproven)"
    assert rows[1][-1] == "grace"


def test_list_without_a_store_is_no_empty_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Typed in a shell without MODERATION_WEIGHTS_DIR it would say that nothing serves."""
    assert run(["list", "--weights", str(tmp_path / "elsewhere")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"There is no weights store {tmp_path / 'elsewhere'}: name the one" in said.err


def test_show_prints_the_manifest_as_json(
    fitted: tuple[Path, str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights, first, _, _ = fitted
    assert run(["show", first, "--weights", str(weights)]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["id"] == first
    assert 0 <= manifest["metrics"]["test"]["accuracy"] <= 1


def test_a_refusal_that_begins_with_an_id_has_it_as_it_is(
    fitted: tuple[Path, str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """To be copied into the next command; other sentences begin with a capital."""
    weights, first, _, _ = fitted
    assert run(["promote", first, "--weights", str(weights)]) == 2
    assert capsys.readouterr().err.startswith(f"{first} is the champion already")
    assert run(["promote", "none", "--weights", str(weights)]) == 2
    assert capsys.readouterr().err.startswith("There is no version 'none'")


def test_promote_and_rollback_change_the_champion_and_are_recorded(
    fitted: tuple[Path, str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights, first, second, _ = fitted
    store = WeightsStore(weights)
    forced = ["--force", "--why", "looks better"]
    assert run(["promote", second, "--by", "ada", *forced, "--weights", str(weights)]) == 0
    assert store.champion() == second
    assert run(["rollback", "--by", "ada", "--why", "it was not", "--weights", str(weights)]) == 0
    heard = capsys.readouterr()
    assert heard.out.splitlines()[-1] == first and str(weights) in heard.err
    assert store.champion() == first
    assert [(e.action, e.by, e.why) for e in store.history()[1:]] == [
        ("promote", "ada", "looks better"),
        ("rollback", "ada", "it was not"),
    ]


def test_a_version_that_is_not_shown_to_be_as_good_is_refused_with_the_figures(
    fitted: tuple[Path, str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Three test pictures show nothing: exit 3, how many are missing, and nothing has changed."""
    weights, first, second, _ = fitted
    store = WeightsStore(weights)
    before = store.history()
    assert run(["promote", second, "--weights", str(weights)]) == 3
    heard = capsys.readouterr()
    *figures, last = heard.err.splitlines()
    assert any(line.startswith("accuracy: ") and "95 % bound" in line for line in figures)
    assert any(line.startswith("recall of risked: ") for line in figures)
    assert last.endswith("or promote with --force --why TEXT.")
    assert heard.out == ""
    assert (store.champion(), store.history()) == (first, before)


def test_a_dry_run_of_two_fitted_versions_tells_what_they_would_cost(
    fitted: tuple[Path, str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """On stdout, with the exit code of the real thing, from manifests that a fit wrote; so does the report."""
    weights, first, second, _ = fitted
    assert run(["promote", second, "--dry-run", "--weights", str(weights)]) == 3
    heard = capsys.readouterr()
    lines = heard.out.splitlines()
    assert "test pictures of the champion: 3 of 3 are in the challenger's data set, needed 90%: kept" in lines
    assert any(line.startswith("ban threshold: 0.700, the champion") for line in lines)
    assert any(line.startswith("reviews a day: ") for line in lines)
    assert one_sentence(heard.err)
    assert WeightsStore(weights).champion() == first
    page = (weights / "versions" / second / "report.html").read_text()
    assert "<th>reviews a day</th>" in page and "<th>risked banned or seen</th>" in page


def test_force_needs_a_reason_and_is_recorded_with_the_figures(
    fitted: tuple[Path, str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights, first, second, _ = fitted
    store = WeightsStore(weights)
    assert run(["promote", second, "--force", "--weights", str(weights)]) == 2
    assert "--why TEXT" in capsys.readouterr().err
    reason = ["--force", "--why", "<b>must</b> go", "--margin", "0.05"]
    assert run(["promote", second, *reason, "--weights", str(weights)]) == 0
    entry = store.history()[-1]
    assert (entry.forced, entry.why) == (True, "<b>must</b> go")
    assert entry.gate is not None and entry.gate["margin"] == 0.05 and not entry.gate["passed"]
    assert run(["rollback", "--weights", str(weights)]) == 0
    assert store.champion() == first


def test_evaluate_prints_the_figures_of_a_stored_version_and_writes_a_page(
    fitted: tuple[Path, str, str, str], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the same pictures they are the manifest's; the store stays as it is."""
    weights, first, _, _ = fitted
    page = tmp_path / "page.html"
    arguments = [first, "--test", str(pictures / "test"), "--report", str(page), "--weights", str(weights)]
    assert run(["evaluate", *arguments]) == 0
    heard = capsys.readouterr()
    assert "3 of 3 are in the cache" in heard.err, "they were computed when the version was fitted"
    figures = json.loads(heard.out)
    test = WeightsStore(weights).manifest(first).metrics["test"]
    assert figures["confusion"] == test["confusion"]
    assert figures["log_loss"] == pytest.approx(test["log_loss"], abs=1e-4)
    assert {"curves", "reliability", "slices", "intervals"} <= set(figures)
    assert page.read_bytes().startswith(b"<!doctype html>")
    assert run(["evaluate", first, "--test", str(tmp_path / "none"), "--weights", str(weights)]) == 4
    assert one_sentence(capsys.readouterr().err)
    arguments[4] = str(tmp_path / "none" / "page.html")
    assert run(["evaluate", *arguments]) == 2
    said = capsys.readouterr().err
    assert one_sentence(said) and "--report" in said and "cache" not in said, "found out before the work"


def test_the_store_is_the_one_the_settings_name(
    fitted: tuple[Path, str, str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """MODERATION_WEIGHTS_DIR from the environment, else from a .env file."""
    weights, first, _, _ = fitted
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODERATION_WEIGHTS_DIR", raising=False)
    Path(".env").write_text(f"MODERATION_WEIGHTS_DIR={weights}\n")
    assert run(["show", first]) == 0
    monkeypatch.setenv("MODERATION_WEIGHTS_DIR", str(tmp_path / "other"))
    assert run(["show", first]) == 2
    assert "no version" in capsys.readouterr().err


def test_a_version_that_was_tampered_with_is_not_promoted(
    fitted: tuple[Path, str, str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights, _, second, _ = fitted
    (tmp_path / "base").symlink_to(weights / "base")
    version = tmp_path / "versions" / second
    version.mkdir(parents=True)
    for name in ("manifest.json", "delta.safetensors"):
        (version / name).write_bytes((weights / "versions" / second / name).read_bytes())
    with (version / "delta.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert run(["promote", second, "--weights", str(tmp_path)]) == 4
    assert one_sentence(capsys.readouterr().err)
    assert WeightsStore(tmp_path).champion() is None


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--ban-threshold", "1.5"], "above 0 and below 1"),
        (["--ban-threshold", "much"], "not a valid float"),
        (["--prevalence", "risked"], "risked=0.02"),
        (["--prevalence", "risked=0.1,risked=0.2"], "twice"),
        (["--prevalence", "spam=0.1"], "no label"),
        (["--prevalence", "risked=2"], "no share"),
        (["--ban-precision", "1"], "ban precision"),
        (["--uploads-per-day", "0"], "0"),
        (["--recipe", "secret"], "'secret'"),
        (["--epochs", "0"], "0"),
        (["--explain", "-1"], "-1"),
        (["--base", "random:x"], "random:0"),
        (["--base", "no/such/file.pth"], "no/such/file.pth"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_wrong_usage_of_fit_exits_2_with_one_sentence(
    more: list[str], word: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(fit_arguments(pictures, tmp_path / "weights", *more)) == 2
    heard = capsys.readouterr()
    assert word in heard.err
    assert one_sentence(heard.err)
    assert heard.out == ""


@pytest.mark.parametrize(
    "arguments", [["show", "vgg11-000000000000"], ["promote", "../../etc"], ["rollback"], ["show"], ["dance"]]
)
def test_what_cannot_be_done_with_an_empty_store_exits_2_with_one_sentence(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_WEIGHTS_DIR", str(tmp_path))
    assert run(arguments) == 2
    assert one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["rollback"], ["promote", "vgg11-000000000000"]])
def test_no_folder_is_made_of_a_store_that_is_not_there(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a shell knows nothing of MODERATION_WEIGHTS_DIR: the sentence names the folder that was meant."""
    monkeypatch.delenv("MODERATION_WEIGHTS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert str(tmp_path / "weights") in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_setting_that_is_none_exits_2(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_DEVICE", "abacus")
    assert run(fit_arguments(pictures, tmp_path)) == 2
    heard = capsys.readouterr().err
    assert "MODERATION_DEVICE" in heard and one_sentence(heard)


def missing(root: Path) -> None:
    (root / "train").rename(root / "elsewhere")


def unknown(root: Path) -> None:
    (root / "test" / "spam").mkdir()


def emptied(root: Path) -> None:
    for file in (root / "train" / "risked").iterdir():
        file.unlink()


def too_few(root: Path) -> None:
    sorted((root / "train" / "approved").iterdir())[0].unlink()


@pytest.mark.parametrize("spoil", [missing, unknown, emptied, too_few])
def test_pictures_that_are_not_usable_exit_4_with_one_sentence_and_write_nothing(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "train", 5, 3)
    draw(tmp_path / "test", 1, 4)
    spoil(tmp_path)
    assert run(fit_arguments(tmp_path, tmp_path / "weights")) == 4
    assert one_sentence(capsys.readouterr().err)
    assert WeightsStore(tmp_path / "weights").versions() == []
    assert not (tmp_path / "weights" / "base").exists()


def test_a_store_that_cannot_be_written_to_exits_4(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run(fit_arguments(pictures, tmp_path / "file")) == 4
    assert one_sentence(capsys.readouterr().err)


def test_after_a_full_disk_and_a_kill_cache_and_store_are_valid_and_the_next_run_goes_on(
    fitted: tuple[Path, str, str, str], pictures: Path, tmp_path: Path
) -> None:
    """Full, the limit stands in for it: exit 4, one sentence, nothing half-written. SIGKILL as soon as the first
    features are on disk: they are found again. The version is the one that an undisturbed run makes."""
    cache, weights = tmp_path / "cache", tmp_path / "weights"
    command = [*COMMAND, *fit_arguments(pictures, weights, "--cache", str(cache))]

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))

    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, preexec_fn=no_room)
    assert ended.returncode == 4, ended.stderr
    assert "feature cache" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert list(cache.rglob("*.safetensors")) == [] and list(cache.rglob("*.tmp")) == []
    assert WeightsStore(weights).versions() == []
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: bool(list(cache.rglob("*.safetensors"))), "features in the cache", timeout_s=PATIENCE_S)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "12 of 12 are in the cache" in ended.stderr
    assert ended.stdout.split()[-1] == fitted[1]


def test_check_prints_what_would_be_used_and_says_what_would_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "train", 6, 5)
    draw(tmp_path / "test", 2, 6)
    (tmp_path / "test" / "risked" / "notes.txt").write_text("no picture")
    with Image.open(tmp_path / "train" / "risked" / "ri-5-0.png") as picture:
        picture.save(tmp_path / "test" / "risked" / "copy.jpg", quality=90)
    assert run(["check", "--train", str(tmp_path / "train"), "--test", str(tmp_path / "test")]) == 0
    heard = capsys.readouterr()
    checked = json.loads(heard.out)
    assert checked["counts"]["test"] == {"approved": 2, "not_suitable": 2, "risked": 2}
    assert (checked["unreadable"], checked["near_duplicates"]["test"]) == (1, 1)
    assert "1 test pictures look like training pictures" in heard.err


@pytest.mark.parametrize("spoil", [missing, unknown, emptied, too_few])
def test_check_exits_4_where_fit_would(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "train", 5, 3)
    draw(tmp_path / "test", 1, 4)
    spoil(tmp_path)
    assert run(["check", "--train", str(tmp_path / "train"), "--test", str(tmp_path / "test")]) == 4
    assert one_sentence(capsys.readouterr().err)


def test_a_second_run_at_the_same_time_exits_5_and_a_rollback_still_works(
    fitted: tuple[Path, str, str, str], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever must take a bad version out of service does not wait for a training run."""
    weights, first, second, _ = fitted
    store = WeightsStore(weights)
    store.promote(second, by="ada", why="for this test")
    with release.one_run(store):
        assert run(fit_arguments(pictures, weights)) == 5
        assert one_sentence(capsys.readouterr().err)
        assert run(["promote", first, "--weights", str(weights)]) == 5
        assert run(["rollback", "--weights", str(weights)]) == 0
    assert store.champion() == first


def test_an_interrupted_run_publishes_nothing_and_frees_the_lock(pictures: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches the whole process group, decoders included: exit 130, one sentence, no traceback."""
    weights = tmp_path / "weights"
    process = subprocess.Popen(
        [*COMMAND, *fit_arguments(pictures, weights)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in a shell's background inherits an ignored SIGINT; a person's Ctrl-C does not meet one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    heard = ""
    deadline_s = time.monotonic() + PATIENCE_S
    while "Features of pictures to fit on" not in heard and time.monotonic() < deadline_s:
        heard += process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    heard += process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130, heard
    assert heard.splitlines()[-1].startswith("Interrupted")
    assert "Traceback" not in heard
    assert WeightsStore(weights).versions() == []
    with release.one_run(WeightsStore(weights)):
        pass
