"""Uploads go first, however much backfill waits."""

from itertools import count

from tests.support.pictures import picture
from tests.support.place import Place
from tests.support.waiting import wait_until

BATCH = 4
BACKLOG = 240
UPLOADS = 8


def test_an_upload_waits_for_one_batch_of_backfill_at_most(place: Place) -> None:
    """Between an upload's submission and its verdict no more of the backfill is judged than one batch holds.

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
    assert max(between) <= BATCH, between
    assert max(between) > 0, "no backfill was in work"
