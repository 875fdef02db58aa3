"""`retrain` as schedulers run it: a real server, content folder and store, exit codes, metrics for Prometheus."""

import errno
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.retraining import Moderators, Site
from tests.support.store import publish_colours
from tests.support.waiting import wait_until
from tests.support.worker import Broker, free_port
from trainer import contest, ledger, locks, release
from trainer.asked import Asked
from trainer.checks import Decision
from trainer.cli import run
from trainer.collect import TEST_SHARE, part_of
from trainer.errors import DataError, RefusedError
from worker.model.weights import WeightsStore

LAST_RUN = "moderation_retrain_last_run_timestamp_seconds"
LAST_SUCCESS = "moderation_retrain_last_success_timestamp_seconds"
PATIENCE_S = 300.0
TO_TRAIN = next(name for name in map("new{}".format, range(100)) if part_of(name, TEST_SHARE) == "train")


def metrics(text: str) -> dict[str, float]:
    """Samples by name and, in brackets, label values."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {s.name + "".join(f"[{value}]" for value in s.labels.values()): s.value for s in samples}


def outcome(text: str) -> str:
    """The one outcome that is 1."""
    found = {name: value for name, value in metrics(text).items() if name.startswith("moderation_retrain_outcome")}
    assert len(found) == 4 and sorted(found.values()) == [0, 0, 0, 1]
    return next(name for name, value in found.items() if value == 1).partition("[")[2].rstrip("]")


@pytest.fixture(scope="module")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is left by a first run of 72 decided pictures."""
    folder = tmp_path_factory.mktemp("night")
    broker = Broker(tmp_path_factory.mktemp("server"))
    Moderators(folder, broker).first_night()
    assert Site(folder, broker.url).run() == "promoted"
    broker.stop()
    return folder


@pytest.fixture
def site(first_night: Path, broker: Broker, tmp_path: Path) -> Site:
    """The morning after the first run, for this test alone; its server knows the last correction of that, no other."""
    folder = tmp_path / "site"
    shutil.copytree(first_night, folder)
    cursor, last = ledger.read(folder / "data").cursor, {"content_id": "last", "label": "risked", "by": "ada"}
    broker.client().xadd("moderation:corrections", last, id=cursor)
    return Site(folder, broker.url)


@pytest.fixture
def moderators(site: Site, broker: Broker) -> Moderators:
    return Moderators(site.folder, broker)


@pytest.fixture
def command(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line on the site, without what it may be given more."""
    monkeypatch.setenv("MODERATION_REDIS_URL", site.redis_url)
    monkeypatch.setenv("MODERATION_CONTENT_URL", f"file://{site.folder}/content/{{content_id}}")
    monkeypatch.setenv("MODERATION_WEIGHTS_DIR", str(site.store.root))
    monkeypatch.setenv("MODERATION_CACHE_DIR", str(site.folder / "cache"))
    return ["retrain", "--data", str(site.data), "--metrics-file", str(site.metrics), "--base", "random:0"]


class Gateway(http.server.ThreadingHTTPServer):
    """Takes pushes and keeps them: (method, path, body)."""

    def __init__(self) -> None:
        self.pushes: list[tuple[str, str, str]] = []
        super().__init__(("127.0.0.1", 0), _Push)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Push(http.server.BaseHTTPRequestHandler):
    server: Gateway

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.pushes.append(("POST", self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_first_run_makes_a_champion_and_its_metrics_say_how(first_night: Path) -> None:
    site = Site(first_night, "redis://unused")
    assert site.store.champion() == site.store.versions()[0]
    text = site.metrics.read_text()
    values = metrics(text)
    assert outcome(text) == "promoted"
    assert values[LAST_RUN] == values[LAST_SUCCESS]
    assert (values["moderation_retrain_pictures[added]"], values["moderation_retrain_pictures[gone]"]) == (72, 0)
    assert all(values[f"moderation_retrain_step_seconds[{step}]"] > 0 for step in ("collect", "check", "fit", "gate"))
    parts = [v for name, v in values.items() if name.startswith("moderation_retrain_dataset_pictures")]
    assert (len(parts), sum(parts)) == (6, 72)


def test_other_bytes_than_a_person_decided_on_are_no_training_picture(site: Site, moderators: Moderators) -> None:
    """They came under the ID since: what was said of the first is not said of them."""
    moderators.decide(TO_TRAIN, "risked")
    moderators.draw(TO_TRAIN, "approved")
    assert site.run() == "nothing_new"
    values = metrics(site.metrics.read_text())
    assert (values["moderation_retrain_pictures[mismatched]"], values["moderation_retrain_pictures[added]"]) == (1, 0)
    assert not [*site.data.rglob(f"{TO_TRAIN}.*")]


def test_nothing_new_fits_nothing_and_the_command_says_so(
    site: Site, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 0, the champion's id on stdout, one sentence on stderr."""
    before = site.store.champion()
    assert run(command) == 0
    heard = capsys.readouterr()
    assert heard.out == f"nothing_new {before}\n"
    assert heard.err.startswith(f"Nothing is new since {before}")
    assert outcome(site.metrics.read_text()) == "nothing_new"
    assert site.store.versions() == [before]


def test_a_refusal_leaves_a_challenger_computes_only_what_is_new_and_is_not_repeated(
    site: Site, moderators: Moderators, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some 20 test pictures show nothing within 0.02; the last success stays the one before."""
    first, before = site.store.champion(), metrics(site.metrics.read_text())
    moderators.decide(TO_TRAIN, "risked")
    moderators.decide("away", "risked")
    (site.folder / "content" / "away").unlink()
    with pytest.raises(RefusedError, match="not shown to be as good"):
        replace(site, margin=0.02).run()
    heard = capsys.readouterr().err
    in_cache = [int(line.partition(": ")[2].split(" of ")[0]) for line in heard.splitlines() if "in the cache" in line]
    assert sum(in_cache) == 72, "all but the new one"
    text = site.metrics.read_text()
    after = metrics(text)
    assert outcome(text) == "refused"
    assert after[LAST_SUCCESS] == before[LAST_SUCCESS] < after[LAST_RUN]
    assert (after["moderation_retrain_pictures[added]"], after["moderation_retrain_pictures[waiting]"]) == (1, 1)
    assert site.store.champion() == first
    assert site.store.challenger() not in (None, first)
    versions = site.store.versions()
    with pytest.raises(RefusedError):
        replace(site, margin=0.02).run()
    assert site.store.versions() == versions, "what was refused is not fitted again until something is new"


def refused(site: Site, moderators: Moderators) -> str:
    """A challenger that the gate has just refused."""
    moderators.decide(TO_TRAIN, "risked")
    with pytest.raises(RefusedError):
        replace(site, margin=0.02).run()
    challenger = site.store.challenger()
    assert challenger is not None
    return challenger


def test_a_refusal_is_told_until_somebody_has_dealt_with_it(
    site: Site, moderators: Moderators, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A success of the next night would resolve the alert unseen."""
    before, challenger = metrics(site.metrics.read_text()), refused(site, moderators)
    capsys.readouterr()
    assert run(command) == 3
    heard = capsys.readouterr()
    assert heard.out == ""
    assert f"Nothing is new since {challenger}" in heard.err
    assert heard.err.splitlines()[-1].startswith(f"The version {challenger} is not promoted")
    text = site.metrics.read_text()
    assert outcome(text) == "refused"
    assert metrics(text)[LAST_SUCCESS] == before[LAST_SUCCESS]
    release.promote(site.store, challenger, by="ada", why="good enough", force=True)
    assert run(command) == 0
    assert capsys.readouterr().out == f"nothing_new {challenger}\n"
    assert outcome(site.metrics.read_text()) == "nothing_new"


def test_what_was_refused_is_compared_again_once_another_version_is_in_service(
    site: Site, moderators: Moderators
) -> None:
    """A person has promoted one since; nothing is fitted for it."""
    first = site.store.champion()
    publish_colours(site.store, promote=True)
    site.store.rollback(by="ada", why="it banned a cat")
    moderators.decide(TO_TRAIN, "risked")
    with pytest.raises(RefusedError, match="ada rolled back"):
        site.run()
    challenger, versions = site.store.challenger(), site.store.versions()
    with pytest.raises(RefusedError, match="ada rolled back"):
        site.run()
    site.store.promote(publish_colours(site.store), by="ada", why="it was right about the cat")
    site.store.promote(first or "", by="ada", why="or was it")
    assert site.run() == "promoted"
    assert (site.store.champion(), site.store.versions()) == (challenger, versions)


def test_another_challenger_in_its_place_ends_a_refusal(site: Site, moderators: Moderators) -> None:
    """Somebody works on it."""
    refused(site, moderators)
    site.store.set_challenger(publish_colours(site.store))
    assert site.run() == "nothing_new"


def test_a_ledger_from_before_refusals_were_noted_reads_as_not_refused(site: Site, moderators: Moderators) -> None:
    refused(site, moderators)
    path = site.data / ledger.FILE
    kept = json.loads(path.read_text())
    assert "not shown to be as good" in kept["fitted"].pop("refused")
    path.write_text(json.dumps(kept))
    assert site.run() == "nothing_new"


def test_a_rollback_while_versions_are_compared_is_no_refusal_of_the_version(
    site: Site, moderators: Moderators, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run compares it with what is in service by then."""
    publish_colours(site.store, promote=True)
    moderators.decide(TO_TRAIN, "risked")
    compare = contest.compare

    def interrupted(*arguments: Any) -> Decision:
        monkeypatch.setattr(contest, "compare", compare)
        site.store.rollback(by="ada", why="it banned a cat")
        return Decision((), 0.02, 500)

    monkeypatch.setattr(contest, "compare", interrupted)
    before = ledger.read(site.data).fitted
    with pytest.raises(RefusedError, match="promote it again"):
        site.run()
    assert outcome(site.metrics.read_text()) == "refused"
    assert ledger.read(site.data).fitted == before
    with pytest.raises(RefusedError, match=r"^The version .* is left as challenger, for ada rolled back"):
        site.run()


def test_a_scheduled_run_is_fitted_for_what_the_champion_was(
    site: Site, moderators: Moderators, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person calibrated for the stream once; the schedule names no prevalence."""
    assert replace(site, asked=Asked({"risked": 0.1}, ban_precision=0.9), always=True).run() == "nothing_new"
    moderators.decide(TO_TRAIN, "risked")
    assert site.run() == "promoted"
    assert "no option says otherwise: --prevalence risked=0.1, --ban-precision 0.9." in capsys.readouterr().err
    operated = site.store.manifest(site.store.champion() or "").metrics["operating"]
    assert (operated["prevalence_from"], operated["aims"]["ban_precision"]) == ("given", 0.9)


def test_a_version_that_a_person_took_out_of_service_stays_out(site: Site) -> None:
    """The same pictures make the same version: no schedule puts it back."""
    fitted = site.store.champion()
    assert fitted is not None
    other = publish_colours(site.store, promote=True)
    site.store.promote(fitted, by="ada", why="it was better")
    site.store.rollback(by="ada", why="it banned a cat")
    with pytest.raises(RefusedError, match="ada took it out of service"):
        replace(site, always=True).run()
    assert (site.store.champion(), site.store.challenger()) == (other, fitted)


def test_a_lost_champion_file_fails_the_run_before_anything_is_collected(
    site: Site, moderators: Moderators, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the sentence that puts it back; then the run is one as any other."""
    champion = site.store.champion() or ""
    publish_colours(site.store, promote=True)
    site.store.promote(champion, by="ada", why="it was better")
    moderators.decide(TO_TRAIN, "risked")
    (site.store.root / "champion").unlink()
    before = ledger.read(site.data)
    assert run(command) == 4
    assert f"{champion} served last by the history: put it back with" in capsys.readouterr().err
    assert (ledger.read(site.data), site.store.champion()) == (before, None)
    (site.store.root / "champion").write_text(f"{champion}\n")
    assert site.run() == "promoted"


def test_an_empty_store_in_the_place_of_the_last_one_gets_no_champion(
    site: Site, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mount that is missing, or another working directory: its first version would serve without a gate. Nothing is
    made there. Whoever wants a new store can have one."""
    site.store.root.rename(site.folder / "elsewhere")
    assert run(command) == 4
    heard = capsys.readouterr().err
    assert f"The weights store {site.store.root} has no version" in heard and "--weights" in heard
    assert outcome(site.metrics.read_text()) == "failed"
    assert not site.store.root.exists()
    site.store.root.mkdir()
    assert run(command) == 4
    (site.data / ledger.FILE).unlink()
    assert site.run() == "promoted"


def test_after_a_rollback_only_a_person_promotes_and_then_the_schedule_again(
    site: Site, moderators: Moderators
) -> None:
    """Or it would last until the next correction, whose version is another one and may have the same fault."""
    fitted = site.store.champion()
    assert fitted is not None
    bad = publish_colours(site.store, promote=True)
    site.store.rollback(by="ada", why="it banned a cat.")
    moderators.decide(TO_TRAIN, "risked")
    with pytest.raises(RefusedError) as refused:
        site.run()
    challenger = site.store.challenger()
    assert challenger is not None and challenger != bad
    assert site.store.champion() == fitted
    said = str(refused.value)
    assert f"{challenger} is left as challenger, for ada rolled back from {bad} to {fitted} (it banned a cat)" in said
    assert f"`moderation-trainer promote {challenger}`" in said
    told: list[str] = []
    release.preview(site.store, challenger, margin=0.9, say=told.append)
    assert told[-2].endswith(f"would be promoted in the place of {fitted}.")
    assert told[-1].startswith("Only by a person") and said in told[-1]
    assert outcome(site.metrics.read_text()) == "refused"
    release.promote(site.store, challenger, by="ada", why="seen", margin=0.9)
    for content_id in ("newer", "newest"):
        moderators.decide(content_id, "risked")
    assert site.run() == "promoted"


def test_a_promotion_that_failed_after_a_rollback_is_none_by_a_person(site: Site, moderators: Moderators) -> None:
    """Its line fitted on the full disk and its champion file did not. A rollback that failed so forbids nothing."""
    fitted = site.store.champion()
    bad = publish_colours(site.store, promote=True)
    site.store.rollback(by="ada", why="it banned a cat")
    site.store.promote(bad, by="ada", why="it was right")
    (site.store.root / "champion").write_text(f"{fitted}\n")
    moderators.decide(TO_TRAIN, "risked")
    with pytest.raises(RefusedError, match="ada rolled back"):
        site.run()
    site.store.promote(bad, by="ada", why="it was right")
    site.store.promote(fitted or "", by="ada", why="or was it")
    site.store.rollback(by="ada", why="it was")
    (site.store.root / "champion").write_text(f"{fitted}\n")
    assert site.run() == "promoted"


def test_the_outcome_is_pushed_and_a_failure_keeps_the_last_success(
    site: Site, gateway: Gateway, broker: Broker
) -> None:
    """A push adds to its group: what it leaves out stays as the one before said."""
    assert site.run(pushgateway=gateway.url) == "nothing_new"
    broker.stop()
    with pytest.raises(Exception, match="Redis does not answer"):
        site.run(pushgateway=gateway.url)
    broker.start()
    (method, path, good), (_, _, bad) = gateway.pushes
    assert (method, path) == ("POST", "/metrics/job/moderation_retrain")
    assert (outcome(good), outcome(bad)) == ("nothing_new", "failed")
    assert LAST_SUCCESS in metrics(good) and LAST_SUCCESS not in metrics(bad)


def test_a_gateway_that_is_away_changes_nothing(
    command: list[str], site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, which holds no password; exit code and metrics file are the run's."""
    assert run([*command, "--pushgateway", f"http://ada:secret@127.0.0.1:{free_port()}"]) == 0
    heard = capsys.readouterr().err
    assert "could not be pushed to '127.0.0.1'" in heard and "secret" not in heard
    assert outcome(site.metrics.read_text()) == "nothing_new"


@pytest.mark.parametrize("held", ["data", "store"])
def test_a_second_run_exits_5_and_leaves_the_metrics_to_the_first(
    held: str, site: Site, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = site.metrics.read_text()
    with locks.one_run(site.data if held == "data" else site.store.root, "folder", "--option", DataError):
        assert run(command) == 5
    heard = capsys.readouterr()
    assert heard.err.startswith("Another training run works on the") and heard.err.count("\n") == 1
    assert site.metrics.read_text() == before
    assert run(command) == 0


@pytest.mark.parametrize(
    ("more", "setting", "word"),
    [
        (["--frobnicate"], "", "--frobnicate"),
        (["--margin", "much"], "", "not a valid float"),
        (["--margin", "2"], "", "margin"),
        (["--test-share", "1"], "", "test share"),
        (["--prevalence", "risked"], "", "risked=0.02"),
        (["--pushgateway", "gateway:9091"], "", "http://"),
        ([], "MODERATION_CONTENT_URL=file:///srv", "{content_id}"),
        ([], "MODERATION_CONTENT_URL=file:///no/such/folder/{content_id}", "is not there"),
        ([], "MODERATION_CONTENT_OPTIONS={", "JSON"),
        ([], "MODERATION_REDIS_URL=http://127.0.0.1", "MODERATION_REDIS_URL"),
    ],
)
def test_wrong_usage_exits_2_with_one_sentence_and_counts_as_a_failed_run(
    more: list[str],
    setting: str,
    word: str,
    site: Site,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if setting:
        monkeypatch.setenv(*setting.split("=", 1))
    assert run([*command[:1], *more, *command[1:]]) == 2
    heard = capsys.readouterr()
    assert word in heard.err and heard.err.count("\n") == 1 and heard.out == ""
    assert outcome(site.metrics.read_text()) == "failed"


def test_a_metrics_file_in_no_folder_exits_2_before_anything_is_done(
    site: Site, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--metrics-file", str(site.folder / "none" / "x.prom")]) == 2
    assert "--metrics-file" in capsys.readouterr().err


def test_data_that_is_not_usable_exits_4_and_counts_as_failed(
    command: list[str], site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is not there, and a data set that has only begun, of which the sentence says what is empty."""
    begun = site.folder / "begun"
    assert run([*command, "--data", str(begun)]) == 2
    assert f"There is no folder {str(begun)!r}" in capsys.readouterr().err
    assert outcome(site.metrics.read_text()) == "failed"
    assert not begun.exists(), "it may be a slip of the pen"
    begun.mkdir()
    assert run([*command, "--data", str(begun)]) == 4
    assert "is empty" in capsys.readouterr().err
    assert outcome(site.metrics.read_text()) == "failed"
    assert (begun / "test" / "interim" / "risked").is_dir()


@pytest.mark.parametrize("another", [False, True])
def test_corrections_of_another_server_are_no_success(
    another: bool, command: list[str], broker: Broker, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong URL, or a Redis whose disk was lost: nothing would look new from then on, and every run would succeed.
    What is there is collected once a person has said so."""
    broker.client().delete("moderation:corrections")
    moderators = Moderators(site.folder, broker)
    if another:
        moderators.decide(TO_TRAIN, "risked")
    before = ledger.read(site.data)
    assert run(command) == 4
    heard = capsys.readouterr()
    assert f"does not have the correction {before.cursor}" in heard.err and heard.out == ""
    assert "check MODERATION_REDIS_URL" in heard.err and heard.err.count("\n") == 1
    assert outcome(site.metrics.read_text()) == "failed"
    assert ledger.read(site.data) == before
    ledger.save(site.data, before.model_copy(update={"cursor": ledger.START}))
    assert site.run() == ("promoted" if another else "nothing_new")


def test_a_server_that_is_away_exits_4(
    command: list[str], broker: Broker, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.stop()
    assert run(command) == 4
    assert capsys.readouterr().err.startswith("Redis does not answer")
    assert outcome(site.metrics.read_text()) == "failed"
    broker.start()


def test_a_scheduler_that_loses_patience_still_gets_metrics(
    site: Site, moderators: Moderators, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM once the collected picture is on disk: it stays, the outcome is written, exit 130."""
    moderators.decide(TO_TRAIN, "risked")
    before = ledger.read(site.data).cursor

    def lose_patience() -> None:
        wait_until(lambda: ledger.read(site.data).cursor != before, "the cursor to move", PATIENCE_S)
        os.kill(os.getpid(), signal.SIGTERM)

    standing = signal.signal(signal.SIGTERM, lambda *_: None)  # what it would do to this process otherwise
    impatient = threading.Thread(target=lose_patience)
    impatient.start()
    try:
        assert run(command) == 130
    finally:
        impatient.join()
        signal.signal(signal.SIGTERM, standing)
    assert capsys.readouterr().err.splitlines()[-1].startswith("Interrupted")
    assert outcome(site.metrics.read_text()) == "failed"
    assert list(site.data.rglob(f"interim/risked/{TO_TRAIN}.png"))
    assert len(site.store.versions()) == 1


def test_a_content_store_that_hangs_does_not_keep_a_stopped_run(
    site: Site, moderators: Moderators, command: list[str]
) -> None:
    """A pipe that says nothing stands in for a dead mount: the process ends at SIGTERM, with its metrics."""
    moderators.decide(TO_TRAIN, "risked")
    pipe = site.folder / "content" / TO_TRAIN
    pipe.unlink()
    os.mkfifo(pipe)
    process = subprocess.Popen([sys.executable, "-m", "trainer.cli", *command], stderr=subprocess.PIPE, text=True)
    held: list[int] = []

    def read_from() -> bool:
        try:
            held.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            assert error.errno == errno.ENXIO  # nobody reads it yet
        return bool(held)

    try:
        wait_until(read_from, "the run to read the picture", PATIENCE_S)
        process.send_signal(signal.SIGTERM)
        heard = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
        for descriptor in held:
            os.close(descriptor)
    assert process.returncode == 130, heard
    assert heard.splitlines()[-1].startswith("Interrupted")
    assert outcome(site.metrics.read_text()) == "failed"


@pytest.mark.long
def test_the_whole_job_with_the_real_network(broker: Broker, tmp_path: Path) -> None:
    """From decisions in Redis to a champion, by the command itself; the second run finds nothing to do."""
    site = Site(tmp_path, broker.url)
    site.data.mkdir()
    Moderators(tmp_path, broker).first_night()
    environment = {
        **os.environ,
        "MODERATION_REDIS_URL": broker.url,
        "MODERATION_CONTENT_URL": f"file://{tmp_path}/content/{{content_id}}",
    }
    words = ["--data", str(site.data), "--weights", str(site.store.root), "--cache", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "trainer.cli", "retrain", *words, "--base", "random:0"]
    for expected in ("promoted", "nothing_new"):
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert ended.returncode == 0, ended.stderr
        champion = WeightsStore(site.store.root).champion()
        assert ended.stdout == f"{expected} {champion}\n"
