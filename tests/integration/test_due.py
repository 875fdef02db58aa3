"""What waits for its next attempt goes back when it is due, whatever else is due or refused; on a real server."""

import json
from dataclasses import replace

import pytest
import redis

from tests.support.worker import Broker
from worker import bus, connection, exporter, intake
from worker.entry import Fates
from worker.errors import UnavailableError
from worker.intake import Intake

LAST_ID = "18446744073709551615-18446744073709551615"


class Waiting:
    """A server, one worker's intake, and what waits there."""

    def __init__(self, broker: Broker) -> None:
        self.raw: redis.Redis = broker.client()
        self.intake = Intake(connection.connect(broker.url), "desk", 15)
        self.intake.ensure_groups()
        self._now_ms = self.intake.now_ms()

    def put_aside(self, ids: list[str], stream: str, *, due_ms_ago: int) -> None:
        """As postpone.lua keeps them."""
        members = {}
        for content_id in ids:
            said = {"content_id": content_id, "backfill": int(stream == bus.BACKFILL), "rescan": 0}
            members[json.dumps({**said, "enqueued_ms": self._now_ms, "attempt": 1})] = self._now_ms - due_ms_ago
        self.raw.zadd(bus.RETRY, members)

    def back(self, stream: str) -> list[str]:
        """The content IDs in a stream."""
        return [fields[b"content_id"].decode() for _, fields in self.raw.xrange(stream) if b"content_id" in fields]

    def still(self) -> set[str]:
        """Those that wait on."""
        return {json.loads(member)["content_id"] for member in self.raw.zrange(bus.RETRY, 0, -1)}


@pytest.fixture
def waiting(broker: Broker) -> Waiting:
    """Nothing yet."""
    return Waiting(broker)


def exhaust(raw: redis.Redis, stream: str) -> None:
    """Its last entry has the last ID there is."""
    raw.xadd(stream, {"said": "nothing"}, id=LAST_ID)


def mistake(raw: redis.Redis, stream: str) -> None:
    """The key is something else."""
    raw.delete(stream)
    raw.set(stream, "no stream")


@pytest.mark.parametrize("stream", [bus.UPLOADS, bus.BACKFILL])
@pytest.mark.parametrize("fates", [Fates(0, 0), Fates(2, 0), Fates(0, 3)])
def test_what_comes_back_is_what_was_put_aside(waiting: Waiting, stream: str, fates: Fates) -> None:
    """All that is known of it, or a picture that is missing would be looked for without an end, and one that kills its
    process would never have killed enough of them."""
    since = {"not_found_since_ms": 1_000_001, "fetch_failed_since_ms": 1_000_002}
    said = {"content_id": "a", "rescan": 1, "enqueued_ms": 1_000_000, "attempt": 4, **since, **fates._asdict()}
    waiting.raw.xadd(stream, said)
    [entry] = waiting.intake.read([stream], 1)
    assert waiting.intake.postpone(entry, "not_found", 0, waiting.intake.now_ms())
    assert waiting.intake.wake_due() == 1
    [again] = waiting.intake.read([stream], 1)
    assert again == replace(entry, entry_id=again.entry_id, attempt=5)
    assert (again.fates, again.failing_since_ms, again.rescan) == (
        fates, {"not_found": 1_000_001, "fetch_failed": 1_000_002}, True,
    )  # fmt: skip


@pytest.mark.parametrize("spoil", [exhaust, mistake])
@pytest.mark.parametrize("stream", [bus.UPLOADS, bus.BACKFILL])
def test_a_stream_that_takes_nothing_holds_up_only_its_own(waiting: Waiting, stream: str, spoil) -> None:
    """More of its own are due than go back at once, and for longer: the other's go back, it is said, none is lost."""
    other = bus.BACKFILL if stream == bus.UPLOADS else bus.UPLOADS
    stuck = [f"stuck{n}" for n in range(intake.DUE_AT_ONCE + 20)]
    waiting.put_aside(stuck, stream, due_ms_ago=2000)
    waiting.put_aside(["free1", "free2"], other, due_ms_ago=1000)
    spoil(waiting.raw, stream)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="Redis refused a command"):
            waiting.intake.wake_due()
    assert sorted(waiting.back(other)) == ["free1", "free2"]
    assert waiting.still() == set(stuck)
    assert waiting.intake.wake_due() == 0, "what was refused is asked for again at once"


def test_what_was_refused_goes_back_once_the_stream_is_mended(waiting: Waiting) -> None:
    """After a pause that is no longer than any other."""
    waiting.put_aside(["a"], bus.BACKFILL, due_ms_ago=1000)
    mistake(waiting.raw, bus.BACKFILL)
    with pytest.raises(UnavailableError):
        waiting.intake.wake_due()
    ((member, due_ms),) = waiting.raw.zrange(bus.RETRY, 0, -1, withscores=True)
    assert 0 < due_ms - waiting.intake.now_ms() <= intake.REFUSED_PAUSE_MS
    waiting.raw.delete(bus.BACKFILL)
    waiting.raw.zadd(bus.RETRY, {member: 1})  # as if the pause were over
    assert waiting.intake.wake_due() == 1
    assert (waiting.back(bus.BACKFILL), waiting.still()) == (["a"], set())


def test_a_full_server_loses_nothing_that_is_due(waiting: Waiting) -> None:
    """It takes neither entries nor later dates."""
    waiting.put_aside(["a", "b"], bus.UPLOADS, due_ms_ago=1000)
    waiting.raw.config_set("maxmemory-policy", "noeviction")
    waiting.raw.config_set("maxmemory", 1)
    with pytest.raises(UnavailableError, match="out of memory"):
        waiting.intake.wake_due()
    assert waiting.still() == {"a", "b"}
    waiting.raw.config_set("maxmemory", 0)
    assert waiting.intake.wake_due() == 2


@pytest.mark.parametrize("behind", [1, 3000, 7000, 12_000, 60_000], ids=lambda behind: f"{behind} later")
def test_due_uploads_go_before_more_due_backfill_than_goes_back_at_once(waiting: Waiting, behind: int) -> None:
    """12,000 stand before the upload, some behind: it is found within as many looks as there are parts."""
    waiting.put_aside([f"early{n}" for n in range(12_000)], bus.BACKFILL, due_ms_ago=9000)
    waiting.put_aside(["upload"], bus.UPLOADS, due_ms_ago=8000)
    waiting.put_aside([f"late{n}" for n in range(behind)], bus.BACKFILL, due_ms_ago=7000)
    parts = -(-min(12_001 + behind, intake.DUE_REACH) // intake.DUE_LOOKED_THROUGH)
    looks = 0
    while not waiting.back(bus.UPLOADS):
        assert waiting.intake.wake_due() == intake.DUE_AT_ONCE
        looks += 1
    assert looks <= parts
    assert waiting.raw.xlen(bus.BACKFILL) == looks * intake.DUE_AT_ONCE - 1, "the upload took the place of one"


def test_the_exporter_tells_of_a_stream_whose_last_entry_is_in_work(broker: Broker, waiting: Waiting) -> None:
    """A worker holds it, and may have died with it: that must not cost all other figures."""
    exhaust(waiting.raw, bus.UPLOADS)
    waiting.raw.xreadgroup(bus.GROUP, "gone", {bus.UPLOADS: ">"})
    [uploads, _] = exporter.read(connection.connect(broker.url)).streams
    assert (uploads.waiting, uploads.in_work, uploads.oldest_waiting_s) == (0, 1, 0)
    assert uploads.ahead_s > 0
