"""The pipeline by itself: what stands still is told from what had nothing to do, and where it decides."""

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.pictures import picture
from tests.support.waiting import wait_until
from tests.support.worker import Broker
from worker import bus, connection
from worker.batcher import Batcher
from worker.classifier import Frames, Scores
from worker.client import Moderation
from worker.content import ContentStore
from worker.decode import DecoderPool
from worker.entry import Entry
from worker.errors import ModerationError
from worker.intake import Intake
from worker.judgement import Rules
from worker.metrics import Metrics
from worker.model.preprocessing import Preprocessing
from worker.model.reading import DecodeLimits
from worker.pipeline import Pipeline
from worker.publish import Outcome, Published, Publisher

IDLE_S = 1.5
FETCH_THREADS = 4


class Version:
    """What the pipeline asks of a version, and in which thread it asks."""

    engine = "cpu-fp32"

    def __init__(self) -> None:
        self.asked_in: list[str] = []
        self.broken = False

    @property
    def manifest(self) -> SimpleNamespace:
        self.asked_in.append(threading.current_thread().name)
        if self.broken:
            raise LookupError("a manifest without thresholds")
        return SimpleNamespace(id="tiny-0", ban_threshold=None, review_threshold=None)


@pytest.fixture
def version() -> Version:
    return Version()


@pytest.fixture
def pipeline(broker: Broker, tmp_path: Path, version: Version) -> Iterator[Pipeline]:
    """A pipeline whose content folder holds nothing but what a test puts there, and whose network likes everything."""
    bus.ensure_groups(broker.client(), (bus.UPLOADS, bus.BACKFILL))
    with made_pipeline(broker.url, tmp_path, version) as made:
        yield made


@contextmanager
def made_pipeline(url: str, content: Path, version: Version, *, retry_s: float = 0.0) -> Iterator[Pipeline]:
    """As the fixture's, with Redis at `url`."""

    def score(frames: Frames) -> Scores:
        return Scores(np.array([[0.8, 0.1, 0.1]] * len(frames), np.float32), version)

    client = connection.connect(url)
    intake = Intake(client, "test", 15)
    batcher = Batcher(score, max_images=1)
    decoders = DecoderPool(Preprocessing(), DecodeLimits(), processes=1, timeout_s=5, memory_bytes=2**30)
    made = Pipeline(
        content=ContentStore(f"file://{content}/{{content_id}}", max_bytes=100_000, timeout_s=1),
        decoders=decoders,
        batcher=batcher,
        publisher=Publisher(client, 100),
        intake=intake,
        metrics=Metrics(),
        rules=Rules("held", 0.0, retry_s, retry_s),
        fetch_threads=FETCH_THREADS,
    )
    yield made
    made.close()
    for hung in filter(Path.is_fifo, content.iterdir()):
        with suppress(OSError):  # nobody reads it
            os.close(os.open(hung, os.O_WRONLY | os.O_NONBLOCK))  # its fetch ends, or its thread would outlive the test
    batcher.close()
    decoders.close()


def entry(number: int, content_id: str) -> Entry:
    """A claim that no server knows of."""
    return Entry(bus.UPLOADS, f"{number}-0".encode(), content_id, False, 1000)


def test_time_without_work_is_no_standstill(pipeline: Pipeline, tmp_path: Path) -> None:
    """Given up, then idle, then at work again: only time with work in hand counts."""
    os.mkfifo(tmp_path / "one")
    os.mkfifo(tmp_path / "two")
    pipeline.accept([entry(1, "one")])
    pipeline.abandon(pipeline.in_work())
    idle_until = time.monotonic() + IDLE_S
    wait_until(lambda: time.monotonic() > idle_until, "some idle time")
    pipeline.accept([entry(2, "two")])
    assert pipeline.stands_still_s() < IDLE_S / 2


def test_what_is_abandoned_is_remembered(pipeline: Pipeline, tmp_path: Path) -> None:
    """Redis still says that it is this process's, which must not take it up again. What is in work is no such thing."""
    os.mkfifo(tmp_path / "one")
    abandoned, kept = entry(1, "one"), entry(2, "one")
    pipeline.accept([abandoned, kept])
    pipeline.abandon([item for item in pipeline.in_work() if item.entry == abandoned])
    assert pipeline.left() == {abandoned.key}


def test_what_is_in_work_for_too_long_is_left_to_others(pipeline: Pipeline, tmp_path: Path) -> None:
    """Whatever holds it up here; not before its time."""
    os.mkfifo(tmp_path / "one")
    pipeline.accept([entry(1, "one")])
    pipeline.leave_overdue(60, 60)
    assert len(pipeline.in_work()) == 1

    def left() -> bool:
        pipeline.leave_overdue(60, 0.1)
        return not pipeline.in_work()

    wait_until(left, "it to be left")
    assert pipeline.left() == {entry(1, "one").key}


def test_giving_up_is_no_progress(pipeline: Pipeline, tmp_path: Path) -> None:
    """Work that is only ever given up stands still, however often it is taken up again."""
    os.mkfifo(tmp_path / "one")
    deadline = time.monotonic() + IDLE_S
    number = 0
    while time.monotonic() < deadline:
        number += 1
        pipeline.accept([entry(number, "one")])
        now = time.monotonic()
        wait_until(lambda now=now: time.monotonic() > now + 0.2, "a moment in work")
        pipeline.abandon(pipeline.in_work())
    pipeline.accept([entry(number + 1, "one")])
    assert pipeline.stands_still_s() > IDLE_S / 2


def test_refusals_are_no_progress(pipeline: Pipeline, tmp_path: Path) -> None:
    """However often results are offered to a server that takes none."""
    os.mkfifo(tmp_path / "one")
    pipeline.accept([entry(1, "one")])
    began = time.monotonic()
    while time.monotonic() < began + IDLE_S:
        pipeline._done([])  # what the outbox says of a round in which all was refused
        now = time.monotonic()
        wait_until(lambda now=now: time.monotonic() > now + 0.1, "the next round")
    assert pipeline.stands_still_s() > IDLE_S / 2


def test_what_a_full_server_refuses_again_and_again_is_logged_once(
    pipeline: Pipeline, broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Five times a second, for as long as it takes."""
    caplog.set_level("INFO", "worker.outbox")
    raw = broker.client()
    (tmp_path / "one").write_bytes(picture("approved"))
    raw.xadd(bus.UPLOADS, {"content_id": "one"})
    raw.config_set("maxmemory", 1)
    pipeline.accept(Intake(connection.connect(broker.url), "test", 15).read([bus.UPLOADS], 1))
    wait_until(lambda: raw.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"] > 3, "some attempts")
    assert [record.getMessage()[:30] for record in caplog.records] == ["1 results wait to be published"]
    raw.config_set("maxmemory", 0)
    wait_until(lambda: "published 1 of 1: 1 approved" in caplog.messages, "the publish", 20)


def test_all_that_a_full_server_refused_is_published_once_it_takes_them(
    pipeline: Pipeline, broker: Broker, tmp_path: Path
) -> None:
    """Far more than are offered again at once."""
    raw, ids = broker.client(), [f"c{number}" for number in range(150)]
    for content_id in ids:
        (tmp_path / content_id).write_bytes(b"no picture")
        raw.xadd(bus.UPLOADS, {"content_id": content_id})
    entries = Intake(connection.connect(broker.url), "test", 15).read([bus.UPLOADS], len(ids))
    raw.config_set("maxmemory", 1)
    pipeline.accept(entries)
    wait_until(lambda: pipeline.held_up() == len(ids), "all to be refused")
    raw.config_set("maxmemory", 0)
    wait_until(lambda: not pipeline.in_work(), "all to leave")
    assert (raw.xlen(bus.VERDICTS), raw.xlen(bus.UPLOADS)) == (len(ids), 0)


def test_an_unforeseen_fault_in_publishing_loses_nothing(
    pipeline: Pipeline, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was to be published is offered again."""
    publisher = pipeline._outbox._publisher
    publish, faults = publisher.publish, [RuntimeError("a fault of our own")]

    def fails_at_first(outcomes: Sequence[Outcome]) -> list[Published | ModerationError]:
        if faults:
            raise faults.pop()
        return publish(outcomes)

    monkeypatch.setattr(publisher, "publish", fails_at_first)
    (tmp_path / "one").write_bytes(picture("approved"))
    broker.client().xadd(bus.UPLOADS, {"content_id": "one"})
    pipeline.accept(Intake(connection.connect(broker.url), "test", 15).read([bus.UPLOADS], 1))
    wait_until(lambda: not pipeline.in_work(), "it to leave")
    assert not faults
    assert broker.client().xlen(bus.VERDICTS) == 1


def test_decisions_are_made_beside_the_device_and_a_failed_one_is_its_pictures_own(
    pipeline: Pipeline, broker: Broker, tmp_path: Path, version: Version
) -> None:
    """The thread that scores builds no verdicts. What cannot be decided is undecided; the next is judged as before."""
    client, intake = Moderation(broker.url), Intake(connection.connect(broker.url), "test", 15)
    for content_id, broken in (("first", False), ("bad", True), ("last", False)):
        (tmp_path / content_id).write_bytes(picture("approved"))
        version.broken = broken
        client.submit([content_id])
        pipeline.accept(intake.read([bus.UPLOADS], 1))
        wait_until(lambda: not pipeline.in_work(), f"{content_id} leaves")
    found = client.wait(["first", "bad", "last"], 5)
    assert [found[i].label for i in ("first", "bad", "last")] == ["approved", None, "approved"]
    assert found["bad"].reasons == ("model_failed",)
    assert set(version.asked_in) == {"outbox"}
    client.close()


def test_an_unforeseen_fault_of_a_stage_leaves_no_picture_in_work(
    pipeline: Pipeline, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is undecided, where it would otherwise be kept from others until it is overdue."""

    def fault(frames: Frames) -> None:
        raise LookupError

    monkeypatch.setattr(pipeline._batcher, "submit", fault)
    (tmp_path / "one").write_bytes(picture("approved"))
    client = Moderation(broker.url)
    client.submit("one")
    pipeline.accept(Intake(connection.connect(broker.url), "test", 15).read([bus.UPLOADS], 1))
    assert client.wait("one", 20)["one"].reasons == ("model_failed",)
    client.close()


def test_what_cannot_even_be_made_ends_nothing(pipeline: Pipeline, broker: Broker, tmp_path: Path) -> None:
    """A fault of our own in making one result leaves the thread that publishes at work."""

    def fault() -> Outcome:
        raise MemoryError

    (tmp_path / "next").write_bytes(picture("approved"))
    pipeline._outbox.put(fault)
    client = Moderation(broker.url)
    client.submit(["next"])
    pipeline.accept(Intake(connection.connect(broker.url), "test", 15).read([bus.UPLOADS], 1))
    assert client.wait(["next"], 20)["next"].label == "approved"
    client.close()


def test_whatever_becomes_of_a_picture_its_bytes_are_let_go(
    pipeline: Pipeline, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good, unreadable and missing ones, with room for one at a time: all are judged, nothing is held in the end."""
    monkeypatch.setattr("worker.pipeline.RATE_WINDOW_S", 60.0)
    client, intake = Moderation(broker.url), Intake(connection.connect(broker.url), "test", 15)
    pipeline._fetchers._most_held_bytes = 1
    kinds = {"good": picture("approved"), "unreadable": b"no picture", "large": bytes(100_001), "missing": None}
    ids = [f"{kind}{number}" for number in range(3) for kind in kinds]
    for content_id in ids:
        data = kinds[content_id[:-1]]
        if data is not None:
            (tmp_path / content_id).write_bytes(data)
    client.submit(ids)
    pipeline.accept(intake.read([bus.UPLOADS], len(ids)))
    found = client.wait(ids, 20)
    said = {kind: {d.reasons or d.label for i, d in found.items() if i[:-1] == kind} for kind in kinds}
    assert said == {
        "good": {"approved"},
        "unreadable": {("unsupported_format",)},
        "large": {("too_large",)},
        "missing": {("not_found",)},
    }
    assert pipeline._fetchers._held_bytes == 0
    wait_until(lambda: pipeline.judged_lately() == len(ids), "all to have left")
    assert pipeline.fetched_lately() == 6, "the store had two kinds, and no bytes of the others"
    client.close()


def test_fetches_that_hang_wait_for_no_server_that_says_nothing(tmp_path: Path, version: Version) -> None:
    """All of them are given up at once, for the thread that does so has claims and a watchdog to see to; none is left
    to others, who would take them for what killed this process."""
    timeout_s = 1.0
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts for it
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0?socket_timeout={timeout_s}"
        with made_pipeline(url, tmp_path, version, retry_s=60) as pipeline:
            hung = [entry(number, f"hung{number}") for number in range(FETCH_THREADS)]
            for one in hung:
                os.mkfifo(tmp_path / one.content_id)
            began = time.monotonic()
            pipeline.accept(hung)

            def given_up() -> bool:
                pipeline.leave_overdue(0.1, 120)
                return pipeline.fetchers_hang()

            wait_until(given_up, "all fetches to be given up")
            assert time.monotonic() - began < timeout_s
            assert len(pipeline.in_work()) == FETCH_THREADS
