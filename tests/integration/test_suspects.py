"""What was in a process that died is judged alone: what that costs others, and what a clean stop leaves of it."""

import json
import os
import time
from itertools import count

import pytest

from tests.support.pictures import picture
from tests.support.place import Place
from tests.support.waiting import wait_until
from worker import bus, connection
from worker.intake import Intake

BATCH = 4
SUSPECTS = 40
UPLOADS = 8
FETCH_TIMEOUT_S = 4.0


def die_with(place: Place, ids: list[str], *, backfill: bool = False) -> None:
    """Submits IDs and leaves them as several processes do that claimed them and died one after the other."""
    stream = bus.BACKFILL if backfill else bus.UPLOADS
    raw = place.broker.client()
    place.client.submit(ids, backfill=backfill)
    bus.ensure_groups(raw, [stream])
    [[_, entries]] = raw.xreadgroup(bus.GROUP, "dead", {stream: ">"}, count=len(ids))
    claimed = [entry_id for entry_id, _ in entries]
    raw.xclaim(stream, bus.GROUP, "dead", 0, claimed, idle=60_000, retrycount=2, justid=True)


def alone_marks(place: Place) -> set[bytes]:
    """The marks of entries that a process is judging alone, or died of."""
    return set(place.broker.client().scan_iter(f"{bus.ALONE_PREFIX}*"))


def judged_before(place: Place, upload: str) -> int:
    """Submits an upload and returns how many others were judged between that and its verdict."""
    with place.broker.client().pipeline(transaction=True) as at_once:  # else what is published between counts as well
        at_once.xinfo_stream(bus.VERDICTS)
        at_once.xadd(bus.UPLOADS, {"content_id": upload})
        before = at_once.execute()[0]["entries-added"]
    place.client.wait(upload, 60)
    return next(n for n, entry in zip(count(), place.entries(), strict=False) if entry == upload) - before


@pytest.mark.parametrize("fresh", [0, 60], ids=["suspects", "suspects and backlog"])
def test_an_upload_waits_for_one_batch_of_suspect_backfill_at_most(place: Place, fresh: int) -> None:
    """Backfill that killed before, with and without more of it behind; uploads come one by one into the middle.

    A batch, for backfill in work is not stopped, and one suspect, whose turn it may be. All are judged in the end.
    """
    data = picture("approved", size=(1200, 1000))
    suspects = [place.add(data) for _ in range(SUSPECTS)]
    die_with(place, suspects, backfill=True)
    backlog = [place.add(data) for _ in range(fresh)]
    if backlog:
        place.client.submit(backlog, backfill=True)
    place.start_worker(max_batch=str(BATCH), decoders="1", takeover_idle_s="1").wait_ready()
    wait_until(lambda: set(place.entries()) & set(suspects), "the first suspect to be judged")
    between = [judged_before(place, place.add(data)) for _ in range(UPLOADS)]
    raw = place.broker.client()
    assert raw.xpending(bus.BACKFILL, bus.GROUP)["pending"] > 0, "the suspects were gone too soon: this shows nothing"
    assert max(between) <= BATCH + 1, between
    assert max(between) > 0, "no backfill was in work"
    found = place.client.wait([*suspects, *backlog], 120)
    assert {document.label for document in found.values()} == {"approved"}
    assert raw.xlen(bus.BACKFILL) == raw.xlen(bus.DEAD_LETTER) == 0


def test_a_clean_stop_is_no_death_of_what_was_judged_alone(place: Place) -> None:
    """Three workers are stopped while they judge one picture alone: each takes its mark off, and none counts."""
    stuck = place.content / "stuck"
    os.mkfifo(stuck)
    die_with(place, ["stuck"])
    for _ in range(3):
        worker = place.start_worker(takeover_idle_s="1", drain_s="0.5", fetch_timeout_s="60").wait_ready()
        wait_until(lambda: alone_marks(place), "the picture to be judged alone")
        assert worker.stop() == 0
        assert not alone_marks(place), "a clean stop looks like a death"
    stuck.unlink()
    stuck.write_bytes(picture("approved"))
    place.start_worker(takeover_idle_s="1").wait_ready()
    assert place.client.wait("stuck", 60)["stuck"].label == "approved"
    assert place.broker.client().xlen(bus.DEAD_LETTER) == 0


def test_a_suspect_whose_fetch_hangs_costs_others_one_fetch_timeout(place: Place) -> None:
    """An upload that comes while it is judged alone is judged once its fetch was given up, which is after one."""
    os.mkfifo(place.content / "hung")
    die_with(place, ["hung"])
    place.start_worker(takeover_idle_s="1", fetch_timeout_s=str(FETCH_TIMEOUT_S)).wait_ready()
    wait_until(lambda: alone_marks(place), "the picture to be judged alone")
    began = time.monotonic()
    assert place.judge(place.add()).popitem()[1].label == "approved"
    waited_s = time.monotonic() - began
    assert waited_s < FETCH_TIMEOUT_S + 3, "longer than one time-out and the second that it is looked for in"
    assert waited_s > FETCH_TIMEOUT_S / 2, "it was not behind the suspect: this shows nothing"


def test_a_suspect_upload_goes_before_suspect_backfill(place: Place) -> None:
    """Ten backfill suspects whose fetches hang, more than are taken over at once, and one upload that died later."""
    hung = [f"hung{number}" for number in range(10)]
    for content_id in hung:
        os.mkfifo(place.content / content_id)
    die_with(place, hung, backfill=True)
    place.start_worker(takeover_idle_s="1", fetch_timeout_s="3").wait_ready()
    wait_until(lambda: alone_marks(place), "the first of the backfill to be judged alone")
    upload = place.add()
    began = time.monotonic()
    die_with(place, [upload])
    assert place.client.wait(upload, 60)[upload].label == "approved"
    waited_s = time.monotonic() - began
    assert waited_s < 3 * 3, f"{waited_s:.1f} s, longer than the one in work, the take-over and one more"


def test_a_suspect_that_was_judged_while_it_waited_is_not_judged_again(place: Place) -> None:
    """As where its process was only cut off for a while, and publishes what it had: behind one whose fetch hangs, seven
    get their verdicts from elsewhere."""
    os.mkfifo(place.content / "hung")
    die_with(place, ["hung"])
    waiting = [place.add() for _ in range(7)]
    die_with(place, waiting)
    worker = place.start_worker(takeover_idle_s="1", fetch_timeout_s="60").wait_ready()
    wait_until(lambda: alone_marks(place) and worker.metric("moderation_reclaimed_total") == 8, "it to be judged alone")
    for content_id in waiting:
        place.client.correct(content_id, "not_suitable", by="ann")
    place.client.wait(waiting, 30)
    (place.content / "hung").write_bytes(b"no picture")
    wait_until(lambda: place.broker.client().xlen(bus.UPLOADS) == 0, "all to leave", 30)
    assert worker.metric("moderation_stage_seconds_count", stage="fetch") == 1
    assert worker.metric("moderation_duplicates_total") == 7


def test_deaths_are_counted_over_failed_fetches(place: Place) -> None:
    """Two processes have died of a picture alone, then it is missing for a while: when a third dies of it, alone again,
    it is given up."""
    die_with(place, ["killer"])
    for number in range(2):
        dead = Intake(connection.connect(place.broker.url), f"dead{number}", takeover_idle_s=0)
        [entry] = dead.take_over(bus.UPLOADS, 1)
        dead.mark_alone(entry)
    options = {"takeover_idle_s": "1", "not_found_retry_s": "600", "fetch_timeout_s": "60"}
    worker = place.start_worker(**options).wait_ready()
    raw = place.broker.client()
    seen: list[dict[str, int]] = []

    def postponed_again() -> bool:
        seen.extend(json.loads(member) for member in raw.zrange(bus.RETRY, 0, -1))
        return bool(seen) and seen[-1]["attempt"] >= 2

    wait_until(postponed_again, "two attempts to fail")
    assert {(member["deaths"], member["broken_devices"]) for member in seen} == {(2, 0)}
    os.mkfifo(place.content / "killer")
    since_ms = bus.now_ms(raw)
    wait_until(
        lambda: any(int(mark.split(b":")[-1].split(b"-")[0]) >= since_ms for mark in alone_marks(place)),
        "it to be judged alone, which does not end",
    )
    worker.kill()
    place.start_worker(**options).wait_ready()
    assert place.client.wait("killer", 60)["killer"].reasons == ("model_failed",)
    [(_, letter)] = raw.xrange(bus.DEAD_LETTER)
    assert letter[b"reason"] == b"killed_its_worker" and b"3 processes died" in letter[b"detail"]
