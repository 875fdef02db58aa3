"""A picture that kills every process that judges it: it is given up alone, and nobody beside it is."""

import io

from PIL import Image

from tests.support.deadly_app import DEADLY
from tests.support.place import Place
from tests.support.waiting import wait_until

WORKERS_MOST = 12


def test_a_picture_that_kills_is_given_up_and_its_neighbours_are_judged(place: Place) -> None:
    """One deadly picture among forty: workers die and are started again until all have a verdict."""
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300), DEADLY).save(buffer, "PNG")
    good = [place.add() for _ in range(20)]
    deadly = place.add(buffer.getvalue())
    good += [place.add() for _ in range(20)]
    place.client.submit([*good[:20], deadly, *good[20:]])

    def judged() -> bool:
        return place.client.verdict(deadly) is not None and len(place.entries()) == 41

    while not judged():
        assert len(place.workers) < WORKERS_MOST, place.workers[-1].log()[-2000:]
        worker = place.start_worker(app="tests.support.deadly_app", takeover_idle_s="2")
        wait_until(lambda worker=worker: judged() or worker.process.poll() is not None, "all verdicts or a death", 90)
    document = place.client.verdict(deadly)
    assert document is not None
    assert (document.status, document.reasons, document.ban) == ("undecided", ("model_failed",), False)
    assert all(place.client.verdict(content_id).label == "approved" for content_id in good)
    (_, letter), = place.broker.client().xrange("moderation:dead-letter")  # fmt: skip
    assert (letter[b"content_id"], letter[b"reason"]) == (deadly.encode(), b"killed_its_worker")
    deaths = sum(worker.process.poll() is not None for worker in place.workers)
    assert 3 <= deaths <= 5, "one death in company, three alone, and no more"
