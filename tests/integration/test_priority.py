"""How much a worker has in work; uploads go first, however much backfill waits."""

import json
from itertools import count

import pytest

from tests.support.pictures import picture
from tests.support.place import Place
from tests.support.waiting import wait_until
from worker import bus
from worker.puller import MOST_POSTPONED_FOR_BACKFILL

BATCH = 4
SMALL = 2  # three of them are fewer than a process may hold that has judged nothing yet
BACKLOG = 240
UPLOADS = 8


def test_an_upload_waits_for_one_batch_of_backfill_at_most(place: Place) -> None:
    """Between an upload's submission and its verdict no more of the backfill is judged than one batch holds, and one
    that was claimed after the upload and fetched before it.

    Uploads come one by one into the middle of a backlog, and the backlog is not empty at the end.
    """
    worker = place.start_worker(max_batch=str(BATCH), decoders="1").wait_ready()
    data = picture("approved", size=(1200, 1000))
    place.client.submit([place.add(data) for _ in range(BACKLOG)], backfill=True)
    wait_until(lambda: worker.metric("moderation_verdicts_total") > 0, "the backfill to be begun")
    raw = place.broker.client()
    between = []
    for _ in range(UPLOADS):
        upload = place.add(data)
        with raw.pipeline(transaction=True) as at_once:  # what is published between the two would be counted as well
            at_once.xinfo_stream("moderation:verdicts")
            at_once.xadd("moderation:uploads", {"content_id": upload})
            before = at_once.execute()[0]["entries-added"]
        place.client.wait(upload, 30)
        numbers = count(1)
        [mine] = [
            n
            for n, (_, document) in zip(numbers, place.client.verdicts(), strict=False)
            if document.content_id == upload
        ]
        between.append(mine - before - 1)
    assert raw.xlen("moderation:backfill") > 0, "the backlog was over too soon, or this proves nothing"
    assert max(between) <= BATCH + 1, between
    assert max(between) > 0, "no backfill was in work"


@pytest.mark.parametrize(("app", "in_flight"), [("hanging_app", 1), ("hanging_deep_app", 2)])
def test_one_batch_more_is_in_work_than_the_device_takes(place: Place, app: str, in_flight: int) -> None:
    """So that it is decoded meanwhile; of the backfill only what the device takes, for an upload waits for that."""
    place.start_worker(app=f"tests.support.{app}", max_batch=str(SMALL), takeover_idle_s="2").wait_ready()
    raw = place.broker.client()

    def settled(stream: str, claimed: int) -> None:
        """Waits for it, then until two housekeepings have passed, after which more would be claimed if it were."""

        def in_work() -> int:
            return int(raw.xpending(f"moderation:{stream}", "moderation")["pending"])

        def looks() -> int:
            return int(raw.info("commandstats").get("cmdstat_zcard", {"calls": 0})["calls"])

        wait_until(lambda: in_work() >= claimed, f"{claimed} of {stream} to be claimed")
        before = looks()
        wait_until(lambda: looks() >= before + 2, "two housekeepings, each with a look at what was put aside")
        assert in_work() == claimed

    place.client.submit([place.add() for _ in range(4 * SMALL)], backfill=True)
    settled("backfill", in_flight * SMALL)
    place.client.submit([place.add() for _ in range(4 * SMALL)])
    settled("uploads", SMALL)


def test_while_too_many_wait_for_another_attempt_no_backfill_is_claimed(place: Place) -> None:
    """Each of it that fails would join them and make room for more. Uploads are judged; it is once fewer wait."""
    raw = place.broker.client()
    due_ms = bus.now_ms(raw) + 50_000  # no pause is longer than a minute
    member = {"backfill": 1, "rescan": 0, "enqueued_ms": 1, "attempt": 1}
    ids = [f"failed{number}" for number in range(MOST_POSTPONED_FOR_BACKFILL + 1)]
    raw.zadd(bus.RETRY, {json.dumps({"content_id": content_id, **member}): due_ms for content_id in ids})
    backfill = [place.add() for _ in range(BATCH)]
    place.client.submit(backfill, backfill=True)
    place.start_worker().wait_ready()
    for _ in range(2 * BATCH):  # with none waiting in between, when backfill would be claimed
        place.judge(place.add())
    assert raw.xpending(bus.BACKFILL, bus.GROUP)["pending"] == 0
    assert raw.xlen(bus.BACKFILL) == len(backfill)
    raw.zremrangebyrank(bus.RETRY, 0, 0)
    assert {document.label for document in place.client.wait(backfill, 40).values()} == {"approved"}
