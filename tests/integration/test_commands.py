"""The `moderation` command as people and scripts use it: words in, words out, exit codes, one sentence on stderr."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.place import Place
from tests.support.processes import listens_at
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, Broker, free_port

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(broker: Broker) -> Run:
    """Runs `moderation` with these words on this test's server."""
    return lambda *words, **options: moderation(broker, *words, **options)


def moderation(broker: Broker, *words: str, stdin: str = "", **settings: str) -> "subprocess.CompletedProcess[str]":
    """One run of the command."""
    environment = os.environ | {"MODERATION_REDIS_URL": broker.url}
    environment |= {f"MODERATION_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "worker.cli", *words]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, input=stdin, capture_output=True, text=True, timeout=90
    )


def test_submit_and_wait_prints_verdicts(busy_place: Place) -> None:
    """A line of JSON for each ID, in the order asked for."""
    ids = [busy_place.add(label=label) for label in ("risked", "approved")]
    done = moderation(busy_place.broker, "submit", *ids, "--wait")
    assert done.returncode == 0, done.stderr
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(d["content_id"], d["label"]) for d in documents] == [(ids[0], "risked"), (ids[1], "approved")]
    single = moderation(busy_place.broker, "verdict", ids[0])
    assert json.loads(single.stdout) == documents[0]
    listed = moderation(busy_place.broker, "verdicts")
    lines = listed.stdout.splitlines()
    assert {json.loads(line.partition(" ")[2])["content_id"] for line in lines} >= set(ids)
    later = moderation(busy_place.broker, "verdicts", "--after", lines[-2].partition(" ")[0])
    assert later.stdout.splitlines() == lines[-1:]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("submit", *(f"id{number}" for number in range(257)), "--patience", "60"), "submit all of them again"),
        (("verdicts", "--follow"), "interrupted"),
    ],
    ids=["submit", "follow"],
)
def test_ctrl_c_is_told_apart_from_no_verdict(broker: Broker, words: tuple[str, ...], said: str) -> None:
    """Exit 130, as a shell says it, for 1 is a verdict that is not there; and what became of a submission."""
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", *words],
        cwd=REPOSITORY,
        # The last finds no room in the intake, and waits for some.
        env=os.environ | {"MODERATION_REDIS_URL": broker.url, "MODERATION_INTAKE_MAX": "256"},
        stderr=subprocess.PIPE,
        text=True,
        # A test run in a shell's background inherits an ignored SIGINT; a person's Ctrl-C does not meet one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    at_work = "xadd" if words[0] == "submit" else "xread"
    wait_until(lambda: f"cmdstat_{at_work}" in broker.client().info("commandstats"), "the command to be at work", 30)
    process.send_signal(signal.SIGINT)
    heard = process.communicate(timeout=30)[1]
    assert process.returncode == 130, heard
    assert said in heard and "Traceback" not in heard


def test_a_reader_that_was_away_for_too_long_is_told(broker: Broker, run: Run) -> None:
    """The stream reaches back for a week: who comes later has missed verdicts, bans among them, and would not know."""
    raw = broker.client()
    for number in range(1, 4):
        raw.xadd("moderation:verdicts", {"content_id": f"c{number}"}, id=f"{number}000-5")
    raw.xtrim("moderation:verdicts", minid="2000-5", approximate=False)
    for after, missed in (("1000-5", True), ("2000-4", True), ("2000-5", False), ("3000", False), ("0", False)):
        done = run("verdicts", "--after", after)
        assert done.returncode == 0, done.stderr
        assert ("has run out" in done.stderr) == missed, (after, done.stderr)


def test_what_came_in_time_is_printed(busy_place: Place) -> None:
    """One that is late keeps nobody from the others' verdicts; the exit code and the sentence are its."""
    ids = ["-first", busy_place.add(label="risked")]
    (busy_place.content / "-first").write_bytes((busy_place.content / ids[1]).read_bytes())
    busy_place.judge(ids)
    done = moderation(
        busy_place.broker, "submit", "--wait", "--timeout", "0", "--", ids[1], "not_there", ids[0], "not_there"
    )
    assert done.returncode == 2
    assert "1 of 3 content IDs have no verdict after 0 s, not_there among them" in done.stderr
    assert [json.loads(line)["content_id"] for line in done.stdout.splitlines()] == [ids[1], ids[0]]


def test_ids_come_from_a_file_or_stdin(run: Run, broker: Broker, tmp_path: Path) -> None:
    """A line each; blank lines do not count, nor a byte order mark and the line ends of Windows."""
    (tmp_path / "ids").write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \r\n")
    assert run("submit", "--from", str(tmp_path / "ids"), "--backfill").returncode == 0
    assert run("submit", "--from", "-", "--rescan", stdin="three\n").returncode == 0
    raw = broker.client()
    assert [fields for _, fields in raw.xrange("moderation:backfill")] == [
        {b"content_id": b"one"},
        {b"content_id": b"two"},
    ]
    assert [fields for _, fields in raw.xrange("moderation:uploads")] == [{b"content_id": b"three", b"rescan": b"1"}]


@pytest.mark.parametrize("words", [["breaker", "status"], ["dead-letter", "list"], ["verdict", "none"]])
def test_a_reader_that_has_seen_enough_is_no_failure(broker: Broker, words: list[str]) -> None:
    """Such as head; that there is no verdict is still told."""
    letters = [{"content_id": f"id{number}", "reason": "malformed_id"} for number in range(2000)]
    with broker.client().pipeline() as pipeline:
        for letter in letters:
            pipeline.xadd("moderation:dead-letter", letter)
        pipeline.execute()
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "worker.cli", *words]
    environment = os.environ | {"MODERATION_REDIS_URL": broker.url}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=theirs, stderr=subprocess.PIPE, timeout=60)
    os.close(theirs)
    assert (done.returncode, b"Broken" in done.stderr) == (int(words[0] == "verdict"), False), done.stderr


def test_durable_waits_for_the_disk(run: Run, tmp_path: Path) -> None:
    """Done with an append-only file; refused in one sentence without one, and nothing is enqueued."""
    assert run("submit", "one", "--durable").returncode == 0
    forgetful = Broker(tmp_path / "forgetful", appendonly="no")
    refused = moderation(forgetful, "submit", "one", "--durable")
    left = forgetful.client().xlen("moderation:uploads")
    forgetful.stop()
    assert (refused.returncode, left) == (2, 0)
    assert "appendonly yes" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["submit", "a/b"], "is not a content ID"),
        (["submit"], "no content ID to submit"),
        (["submit", "--from", "/no/such/file"], "cannot be read"),
        (["verdict", "a b"], "is not a content ID"),
        (["dead-letter", "drop", "nonsense"], "dead letter"),
        (["dead-letter", "replay", "1-1"], "no dead letter"),
        (["worker", "--gpu", "-1"], "--gpu"),
        (["submit", "a", "--rescan", "--wait"], "leave out --wait"),
        (["submit", "a", "--wait", "--timeout", "inf"], "--timeout"),
        (["submit", "a", "--wait", "--timeout", "nan"], "--timeout"),
        (["submit", "-Jd02mQx"], "A content ID that begins with - is given after --."),
        (["verdict", "-Jd02mQx"], "A content ID that begins with - is given after --."),
        (["correct", "--by", "ann", "-Jd02mQx", "approved"], "A content ID that begins with - is given after --."),
        (["submit", "a", "--backfil"], "Did you mean '--backfill'?"),
    ],
)
def test_wrong_words_are_refused_in_one_sentence(run: Run, words: list[str], sentence: str) -> None:
    """Exit 2, what to do on stderr, nothing on stdout, no traceback."""
    done = run(*words)
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words", [["submit", "x"], ["verdict", "x"], ["verdicts"], ["status"], ["dead-letter", "list"]]
)
def test_without_redis_every_command_says_so(run: Run, words: list[str]) -> None:
    """One sentence and exit 2."""
    done = run(*words, redis_url=f"redis://:secret@127.0.0.1:{free_port()}/0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Redis does not answer")
    assert "secret" not in done.stderr and len(done.stderr.splitlines()) == 1


CLIENT_ONLY = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from worker.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["submit", "x"], 0, "1 submitted"),
        (["verdict", "x"], 1, "no verdict"),
        (["breaker", "status"], 0, ""),
        (["dead-letter", "list"], 0, ""),
        (["status"], 0, ""),
        (["worker"], 2, "error: celery is not installed: pip install"),
    ],
)
def test_a_client_needs_what_the_readme_says(broker: Broker, words: list[str], code: int, said: str) -> None:
    """The command works beside `pip install --no-deps .`; what needs more says so in one sentence."""
    absent = {"celery", "kombu", "billiard", "torch", "torchvision", "torchao", "PIL", "numpy", "safetensors", "fsspec"}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT_ONLY.format(absent=absent), *words],
        cwd=REPOSITORY,
        env=os.environ | {"MODERATION_REDIS_URL": broker.url},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_misspelt_setting_is_pointed_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be as if it had never been set: a limit on bans, or where Redis is. What is far from any is named too,
    and settings of the trainer, which may stand in the same file, are none of it."""
    monkeypatch.setenv("MODERATION_CACHE_MAX_MB", "1")
    done = run("submit", "one", ban_quota_shre="0.01", zzz="1")
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "no setting" in line] == [
        "warning: MODERATION_BAN_QUOTA_SHRE is no setting and has no effect: MODERATION_BAN_QUOTA_SHARE is one.",
        "warning: MODERATION_ZZZ is no setting and has no effect.",
    ]


def test_a_missing_verdict_is_exit_1(run: Run) -> None:
    """Not an error, but not a verdict either."""
    assert run("verdict", "never_seen").returncode == 1


def test_status_shows_the_service_on_one_screen(busy_place: Place) -> None:
    """Backlog, workers with what they serve, dead letters."""
    worker = busy_place.workers[0]
    wait_until(lambda: busy_place.broker.client().keys("moderation:worker:*"), "the worker to announce itself")
    shown = moderation(busy_place.broker, "status").stdout
    assert f"w{worker.metrics_port}@" in shown and str(busy_place.store.champion()) in shown
    assert "uploads" in shown and "dead letters: 0" in shown
    assert len(shown.splitlines()) < 30


def test_the_exporter_needs_no_worker(broker: Broker) -> None:
    """Backlog, age, dates in the future and dead letters are there before any worker was; readiness follows Redis."""
    port = free_port()
    environment = os.environ | {"MODERATION_REDIS_URL": broker.url, "MODERATION_EXPORTER_PORT": str(port)}
    exporter = subprocess.Popen([sys.executable, "-m", "worker.cli", "exporter"], cwd=REPOSITORY, env=environment)
    try:
        raw = broker.client()
        raw.xadd("moderation:uploads", {"content_id": "a"}, id="1000-0")
        raw.xadd("moderation:backfill", {"content_id": "b"}, id="4000000000000-0")

        def scrape() -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
                    return str(reply.read().decode())
            except OSError:
                return ""

        wait_until(lambda: 'moderation_waiting{stream="uploads"} 1.0' in scrape(), "the backlog in the metrics")
        text = scrape()
        assert 'moderation_waiting{stream="backfill"} 1.0' in text
        assert 'moderation_in_work{stream="uploads"} 0.0' in text
        age = next(
            line for line in text.splitlines() if line.startswith('moderation_oldest_waiting_seconds{stream="uploads"')
        )
        assert float(age.rpartition(" ")[2]) > 1e9
        assert 'moderation_intake_ahead_seconds{stream="uploads"} 0.0' in text
        ahead = next(line for line in text.splitlines() if 'intake_ahead_seconds{stream="backfill"}' in line)
        assert float(ahead.rpartition(" ")[2]) > 1e9
        assert "moderation_dead_letter 0.0" in text
    finally:
        exporter.terminate()
        assert exporter.wait(30) == 0


def test_an_outage_of_redis_is_a_sentence_to_a_scrape_and_a_line_in_the_exporters_log(
    broker: Broker, tmp_path: Path
) -> None:
    """However often it is scraped: the log is read in just that incident."""
    port = free_port()
    command = [sys.executable, "-m", "worker.cli", "exporter", "--port", str(port)]

    def scrape(page: str = "metrics") -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with (tmp_path / "log").open("w") as log:
        environment = os.environ | {"MODERATION_REDIS_URL": broker.url}
        exporter = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=log)
    try:
        wait_until(lambda: listens_at(port), "the exporter to listen", 90)
        assert scrape()[0] == scrape("readyz")[0] == 200
        broker.kill()
        for page in ("metrics", "readyz", "metrics", "metrics"):
            status, said = scrape(page)
            assert (status, said.startswith("Redis does not answer")) == (503, True)
        broker.start()
        wait_until(lambda: scrape()[0] == 200, "Redis to answer again")
        taken = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=90)
    finally:
        exporter.terminate()
        exporter.wait(30)
    said = (tmp_path / "log").read_text()
    assert said.count("cannot be read: Redis does not answer") == 1 and said.count("can be read again") == 1
    assert "Traceback" not in said
    assert taken.returncode == 2
    assert "MODERATION_EXPORTER_PORT" in taken.stderr and "MODERATION_METRICS_PORT" not in taken.stderr


@pytest.mark.parametrize("host", [None, "127.0.0.2"], ids=["by default", "where it is told to"])
def test_the_exporter_listens_on_loopback_alone(broker: Broker, host: str | None) -> None:
    """Nothing on another address of this machine answers, unless MODERATION_METRICS_HOST names it."""
    port = free_port()
    environment = os.environ | {"MODERATION_REDIS_URL": broker.url}
    environment |= {"MODERATION_METRICS_HOST": host} if host else {}
    command = [sys.executable, "-m", "worker.cli", "exporter", "--port", str(port)]
    exporter = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    try:
        wait_until(lambda: listens_at(port), "the exporter to listen", 90)
        assert listens_at(port) == [host or "127.0.0.1"]
    finally:
        exporter.terminate()
        exporter.wait(30)


@pytest.mark.parametrize(("given", "visible"), [("", "3"), ("GPU-a, GPU-b,GPU-c,MIG-d", "MIG-d")])
def test_a_worker_pinned_to_a_gpu_has_its_own_name_and_port(place: Place, given: str, visible: str) -> None:
    """`moderation worker --gpu 3`: node gpu3@host, metrics port base + 3, and no other GPU is visible to it: of those
    that a scheduler gave, the one in that place; else the one of that number, as nvidia-smi counts."""
    port = free_port()
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": given,
        "MODERATION_REDIS_URL": place.broker.url,
        "MODERATION_WEIGHTS_DIR": str(place.weights),
        "MODERATION_CONTENT_URL": f"file://{place.content}/{{content_id}}",
        "MODERATION_METRICS_PORT": str(port - 3),
        "MODERATION_DEVICE": "cpu",
    }
    script = (
        "import atexit, os; import tests.support.tiny_app; from worker.cli import main; "
        "names = ('CUDA_VISIBLE_DEVICES', 'CUDA_DEVICE_ORDER'); "
        "atexit.register(lambda: print('visible:', *map(os.environ.get, names))); main()"
    )
    command = [sys.executable, "-c", script, "worker", "--gpu", "3"]
    worker = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: place.broker.client().keys("moderation:worker:*"), "the worker to announce itself", 90)
        info = place.broker.client().hgetall(place.broker.client().keys("moderation:worker:*")[0])
        assert info[b"node"].startswith(b"gpu3@")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as reply:
            assert reply.status == 200
    finally:
        worker.terminate()
        said, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert f"visible: {visible} PCI_BUS_ID\n" in said, "the only GPU that torch can see"


def test_a_worker_that_cannot_start_ends_with_exit_2(run: Run, tmp_path: Path) -> None:
    """As with Celery's own command: whoever supervises it tells this from a clean stop."""
    refused = run("worker", content_url=f"file://{tmp_path}/absent/{{content_id}}")
    assert refused.returncode == 2
    assert "is not there: create it" in refused.stderr and "Traceback" not in refused.stderr


def test_a_worker_for_a_gpu_that_is_not_there_does_not_start(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on the CPU under a GPU's name, nor on a GPU that a scheduler gave to somebody else."""
    if not torch.cuda.is_available():
        refused = run("worker", "--gpu", "0", content_url=f"file://{tmp_path}/{{content_id}}")
        assert refused.returncode == 2
        assert "MODERATION_DEVICE is cuda but torch finds no CUDA device" in refused.stderr
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    refused = run("worker", "--gpu", "2")
    assert refused.returncode == 2
    assert "CUDA_VISIBLE_DEVICES=4,5 has no GPU 2" in refused.stderr
