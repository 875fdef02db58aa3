"""A bounded intake on a real server: who submits too much is told, or waits, and nobody's work is lost."""

import subprocess
import sys
import threading

import pytest
from celery import Celery

from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, Broker
from worker import bus
from worker.client import Moderation
from worker.errors import IntakeFullError


@pytest.fixture
def narrow(broker: Broker) -> Moderation:
    """A client of an intake with room for 1,000."""
    return Moderation(broker.url, intake_max=1000)


def ids(number: int, prefix: str = "c") -> list[str]:
    """So many content IDs."""
    return [f"{prefix}{index}" for index in range(number)]


def test_what_has_no_room_is_refused_whole(broker: Broker, narrow: Moderation) -> None:
    """One sentence with the limit and the setting, and not one ID enqueued; the other stream has its own room."""
    narrow.submit(ids(600))
    with pytest.raises(IntakeFullError, match=r"1000.*MODERATION_INTAKE_MAX.*0 of these 401") as refused:
        narrow.submit(ids(401, "d"))
    assert refused.value.enqueued == 0
    assert broker.client().xlen(bus.UPLOADS) == 600
    assert narrow.submit(ids(400, "d")) == 400
    assert narrow.submit(ids(1000, "e"), backfill=True) == 1000


def test_zero_is_no_limit(broker: Broker) -> None:
    """MODERATION_INTAKE_MAX=0 takes everything."""
    assert Moderation(broker.url, intake_max=0).submit(ids(3000)) == 3000


@pytest.mark.parametrize("durable", [False, True])
def test_who_has_patience_waits_for_room(broker: Broker, narrow: Moderation, durable: bool) -> None:
    """More than the intake holds goes in as others take out; with nobody there, patience ends and says what went in."""
    raw = broker.client()
    taken: list[bytes] = []

    def take() -> None:
        while len(taken) < 5000:
            if entries := raw.xrange(bus.UPLOADS, count=500):
                taken.extend(fields[b"content_id"] for _, fields in entries)
                raw.xdel(bus.UPLOADS, *[entry_id for entry_id, _ in entries])

    taker = threading.Thread(target=take)
    taker.start()
    assert narrow.submit(ids(5000), patience_s=60, durable=durable) == 5000
    taker.join(60)
    assert [content_id.decode() for content_id in taken] == ids(5000)
    with pytest.raises(IntakeFullError) as refused:
        narrow.submit(ids(1500), patience_s=0.1, durable=durable)
    assert refused.value.enqueued == raw.xlen(bus.UPLOADS) == 1000


def test_many_at_once_never_exceed_it(broker: Broker) -> None:
    """Room is checked where it is taken, in the server."""
    refused: list[int] = []

    def submit() -> None:
        client = Moderation(broker.url, intake_max=1000)
        for number in range(20):
            try:
                client.submit(ids(40, f"t{threading.get_ident()}-{number}-"))
            except IntakeFullError as error:
                refused.append(error.enqueued)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert broker.client().xlen(bus.UPLOADS) == 1000
    assert len(refused) == 80 - 1000 // 40 and set(refused) == {0}


def test_a_task_that_finds_it_full_waits_in_its_queue(place: Place) -> None:
    """A Celery client's IDs are enqueued when there is room; the caller needs to do nothing."""
    raw = place.broker.client()
    place.client.submit(ids(256))
    bus.ensure_groups(raw, [bus.UPLOADS])
    [(_, others)] = raw.xreadgroup(bus.GROUP, "another worker", {bus.UPLOADS: ">"}, count=256)
    worker = place.start_worker(intake_max="256", takeover_idle_s="600").wait_ready()
    late = place.add()
    with Celery(broker=place.broker.url) as sender:
        sender.send_task("moderation.moderate", [[late]], queue="moderation")
        wait_until(lambda: "the intake is full" in worker.log().lower(), "the task to find no room")
        assert place.client.verdict(late) is None
        raw.xdel(bus.UPLOADS, *[entry_id for entry_id, _ in others])
        assert place.client.wait(late, 60)[late].label == "approved"


def test_backfill_tasks_that_find_it_full_keep_no_upload_waiting(place: Place) -> None:
    """Each would hold a thread of the worker's on its way back to the queue, in which the upload stands behind them."""
    raw = place.broker.client()
    place.client.submit(ids(256, "b"), backfill=True)
    bus.ensure_groups(raw, [bus.BACKFILL])
    raw.xreadgroup(bus.GROUP, "another worker", {bus.BACKFILL: ">"}, count=256)
    place.start_worker(intake_max="256", takeover_idle_s="600").wait_ready()
    upload = place.add()
    later = [place.add() for _ in range(100)]
    with Celery(broker=place.broker.url) as sender:
        for content_id in later:
            sender.send_task("moderation.moderate", [[content_id]], {"backfill": True}, queue="moderation")
        sender.send_task("moderation.moderate", [[upload]], queue="moderation")
        assert place.client.wait(upload, 12)[upload].label == "approved"
    assert {document.label for document in place.client.wait(later, 60).values()} == {"approved"}


def test_the_command_says_it(broker: Broker) -> None:
    """One sentence and exit 2; what can never fit is not told to come again later."""
    command = [sys.executable, "-m", "worker.cli", "submit", *ids(257)]
    environment = {"MODERATION_REDIS_URL": broker.url, "MODERATION_INTAKE_MAX": "256", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "intake is full" in done.stderr
    assert "they never fit in at once, so give time for room (patience_s, --patience)" in done.stderr
    assert broker.client().xlen(bus.UPLOADS) == 0
    patient = [*command[:4], "--patience", "0.1", *command[4:]]
    done = subprocess.run(patient, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "250 of these 257 were enqueued" in done.stderr
    assert broker.client().xlen(bus.UPLOADS) == 250
