"""What a process has claimed it keeps, whichever command after that fails; on a real server that refuses it."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import redis

from tests.support.proxy import Proxy
from tests.support.worker import Broker
from worker import bus, connection
from worker.entry import MOST_BROKEN_DEVICES, MOST_DEATHS_ALONE, Entry
from worker.errors import ModerationError, UnavailableError
from worker.intake import DUE_AT_ONCE, Intake
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.puller import FIRST_IN_WORK, MOST_LOTS_DUE, Puller

LONG_MS = 60_000


class EmptyPipeline:
    """One with nothing in work that takes what it is given."""

    def __init__(self) -> None:
        self.accepted: list[Entry] = []
        self.abandoned: set[tuple[str, bytes]] = set()
        self.fetched = 0

    def in_work(self) -> list[Any]:
        """Nothing."""
        return []

    def left(self) -> set[tuple[str, bytes]]:
        """What a test says, and what it was given: nothing is published here."""
        return self.abandoned | {entry.key for entry in self.accepted}

    def held_up(self) -> int:
        """Of nothing."""
        return 0

    def wait_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """At once."""
        return reached()

    def judged_lately(self) -> int:
        """None."""
        return 0

    def fetched_lately(self) -> int:
        """What a test says."""
        return self.fetched

    def leave_overdue(self, fetch_s: float, work_s: float) -> None:
        """There is nothing to leave."""

    def accept(self, entries: list[Entry]) -> None:
        """Takes them."""
        self.accepted += entries


def puller_of(intake: Intake, pipeline: EmptyPipeline, takeover_idle_s: float) -> Puller:
    """Not started: a test takes its steps."""
    return Puller(
        intake, cast(Pipeline, pipeline), Metrics(), max_batch=8, in_flight=1, claim_deadline_s=120,
        fetch_timeout_s=30, takeover_idle_s=takeover_idle_s, watch=lambda: None, on_housekeeping=lambda: None,
    )  # fmt: skip


@pytest.fixture
def raw(broker: Broker) -> redis.Redis:
    """A plain client of this test's server."""
    return broker.client()


@pytest.fixture
def intake(broker: Broker) -> Intake:
    """Takes over what was idle for a second."""
    made = Intake(connection.connect(broker.url), "living", takeover_idle_s=1)
    made.ensure_groups()
    return made


def leave(raw: redis.Redis, ids: list[str], stream: str = bus.UPLOADS, *, idle_ms: int = LONG_MS) -> None:
    """As a process leaves entries that claimed them once and died."""
    for content_id in ids:
        raw.xadd(stream, {"content_id": content_id})
    [[_, entries]] = raw.xreadgroup(bus.GROUP, "dead", {stream: ">"})
    claimed = [entry_id for entry_id, _ in entries]
    raw.xclaim(stream, bus.GROUP, "dead", 0, claimed, idle=idle_ms, retrycount=1, justid=True)


def refuse(raw: redis.Redis, command: str) -> None:
    """The server refuses this command from now on."""
    raw.execute_command("ACL", "SETUSER", "default", f"-{command}")


def test_what_is_taken_over_was_delivered_once_more(raw: redis.Redis, intake: Intake) -> None:
    """The oldest first; not what is fresh, and nothing of what has left the stream since, which nobody holds then."""
    leave(raw, ["gone", "a", "b", "c"])
    leave(raw, ["fresh"], idle_ms=0)
    raw.xdel(bus.UPLOADS, raw.xrange(bus.UPLOADS, count=1)[0][0])
    taken = intake.take_over(bus.UPLOADS, 3)
    assert [(entry.content_id, entry.deliveries, entry.suspect) for entry in taken] == [("a", 2, True), ("b", 2, True)]
    held = raw.xpending_range(bus.UPLOADS, bus.GROUP, "-", "+", 10)
    assert [(info["consumer"], info["times_delivered"]) for info in held] == [(b"living", 2)] * 2 + [(b"dead", 1)] * 2
    assert [entry.content_id for entry in intake.take_over(bus.UPLOADS, 3)] == ["c"]
    assert intake.take_over(bus.UPLOADS, 3) == [] == intake.take_over(bus.UPLOADS, -1)


def test_what_two_processes_see_idle_is_taken_over_by_one(
    raw: redis.Redis, intake: Intake, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other is faster, between this one's look and its claim."""
    leave(raw, ["a", "b"])
    other = Intake(connection.connect(broker.url), "other", takeover_idle_s=1)
    look = intake._redis.xpending_range

    def then_the_other(*arguments: Any, **named: Any) -> Any:
        seen = look(*arguments, **named)
        assert [entry.content_id for entry in other.take_over(bus.UPLOADS, 1)] == ["a"]
        return seen

    monkeypatch.setattr(intake._redis, "xpending_range", then_the_other)
    assert [(entry.content_id, entry.deliveries) for entry in intake.take_over(bus.UPLOADS, 2)] == [("b", 2)]


@pytest.mark.parametrize("command", ["xpending", "xclaim"])
def test_a_take_over_that_is_refused_is_said_and_takes_nothing(raw: redis.Redis, intake: Intake, command: str) -> None:
    """Neither the look nor the claim."""
    leave(raw, ["a"])
    refuse(raw, command)
    with pytest.raises(ModerationError):
        intake.take_over(bus.UPLOADS, 2)
    raw.execute_command("ACL", "SETUSER", "default", f"+{command}")
    assert [entry.deliveries for entry in intake.take_over(bus.UPLOADS, 2)] == [2]


def test_a_take_over_that_finds_nothing_costs_one_call(raw: redis.Redis, intake: Intake) -> None:
    """However many fresh claims others have: fifty processes look every second."""
    with raw.pipeline() as at_once:
        for content_id in range(3000):
            at_once.xadd(bus.UPLOADS, {"content_id": content_id})
        at_once.execute()
    raw.xreadgroup(bus.GROUP, "busy", {bus.UPLOADS: ">"}, count=3000)
    raw.config_resetstat()
    for stream in (bus.UPLOADS, bus.BACKFILL):
        assert intake.take_over(stream, 8) == []
    calls = {name: stat["calls"] for name, stat in raw.info("commandstats").items() if name.startswith("cmdstat_x")}
    assert calls == {"cmdstat_xpending": 2}


def test_a_group_that_vanished_is_made_again_by_the_next_take_over(raw: redis.Redis, intake: Intake) -> None:
    """And what is in the stream is there for whoever reads next."""
    leave(raw, ["a"])
    raw.xgroup_destroy(bus.UPLOADS, bus.GROUP)
    assert intake.take_over(bus.UPLOADS, 2) == []
    assert [entry.content_id for entry in intake.read([bus.UPLOADS], 2)] == ["a"]


def test_uploads_taken_over_are_kept_where_backfill_cannot_be(raw: redis.Redis, intake: Intake) -> None:
    """The backfill's key is something else: the uploads claimed just before are held, and wait for their turn."""
    puller = puller_of(intake, EmptyPipeline(), takeover_idle_s=0)
    leave(raw, ["a", "b"])
    raw.delete(bus.BACKFILL)
    raw.set(bus.BACKFILL, "no stream")
    with pytest.raises(UnavailableError, match="WRONGTYPE"):
        puller._keep_house()
    assert [entry.content_id for entry in puller._held()] == ["a", "b"]
    for info in raw.xpending_range(bus.UPLOADS, bus.GROUP, "-", "+", 10):
        assert info["consumer"] == b"living"
    puller._turn()
    assert [entry.content_id for entry in puller._held()] == ["a", "b"]
    assert puller._claimed == [], "not handed on"


def test_what_is_held_is_kept_from_others(raw: redis.Redis, intake: Intake, broker: Broker) -> None:
    """However long it takes: here for its turn to be judged alone."""
    raw.xadd(bus.UPLOADS, {"content_id": "a", "deaths": 1})
    puller = puller_of(intake, EmptyPipeline(), takeover_idle_s=15)
    puller._claim(8)
    [held] = puller._held()
    raw.xclaim(bus.UPLOADS, bus.GROUP, "living", 0, [held.entry_id], idle=LONG_MS, justid=True)
    puller._keep_house()
    assert Intake(connection.connect(broker.url), "other", takeover_idle_s=1).take_over(bus.UPLOADS, 8) == []


def test_what_a_dead_process_left_waits_for_no_room(
    raw: redis.Redis, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog keeps a process full; and an upload does not wait for backfill that is to be judged alone."""
    pipeline = EmptyPipeline()
    monkeypatch.setattr(pipeline, "held_up", lambda: 1000)
    puller = puller_of(intake, pipeline, takeover_idle_s=0)
    leave(raw, [f"backfill{number}" for number in range(FIRST_IN_WORK)], bus.BACKFILL)
    puller._keep_house()
    puller._hand_on()
    assert len(puller._held()) == FIRST_IN_WORK
    leave(raw, ["upload"])
    puller._keep_house()
    assert puller._held()[0].content_id == "upload"


def test_consumers_of_processes_long_gone_are_removed(
    raw: redis.Redis, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start leaves one behind. Not of those that hold a claim still, which would be nobody's then."""
    monkeypatch.setattr("worker.puller.PRUNE_S", 0.0)
    puller = puller_of(intake, EmptyPipeline(), takeover_idle_s=15)
    leave(raw, ["held"])
    raw.xgroup_createconsumer(bus.UPLOADS, bus.GROUP, "gone")
    puller._keep_house()
    assert [info["name"] for info in raw.xinfo_consumers(bus.UPLOADS, bus.GROUP)] == [b"dead", b"gone"], "too early"
    monkeypatch.setattr("worker.intake.CONSUMER_IDLE_MS", 0)
    puller._keep_house()
    assert [info["name"] for info in raw.xinfo_consumers(bus.UPLOADS, bus.GROUP)] == [b"dead"]


def test_malformed_entries_wait_together_for_a_server_that_says_nothing(raw: redis.Redis, broker: Broker) -> None:
    """It answers no more once it gave out four: one time-out for all of them, and what was between them is claimed."""
    timeout_s = 1.0
    with Proxy(broker.port, dark_at=b"EVALSHA") as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0?socket_timeout={timeout_s}"
        intake = Intake(connection.connect(url), "living", takeover_idle_s=0)
        intake.ensure_groups()
        for content_id in ("no/1", "a", "no/2", "no/3", "b", "no/4"):
            raw.xadd(bus.UPLOADS, {"content_id": content_id})
        began = time.monotonic()
        assert [entry.content_id for entry in intake.read([bus.UPLOADS], 8)] == ["a", "b"]
        assert timeout_s <= time.monotonic() - began < 2 * timeout_s
    assert raw.xlen(bus.DEAD_LETTER) == 0
    later = Intake(connection.connect(broker.url), "later", takeover_idle_s=0)
    assert [entry.content_id for entry in later.take_over(bus.UPLOADS, 8)] == ["a", "b"]
    assert raw.xlen(bus.DEAD_LETTER) == 4


def test_claims_whose_answer_was_lost_are_found_as_they_are(raw: redis.Redis, intake: Intake) -> None:
    """By a process that has one of its five: one was taken over, and is a suspect; others' are left alone."""
    leave(raw, ["taken"])
    intake.take_over(bus.UPLOADS, 8)
    for content_id in ("had", "read1", "no/id", "read2", "theirs"):
        raw.xadd(bus.UPLOADS, {"content_id": content_id})
    [had] = intake.read([bus.UPLOADS], 1)
    intake.read([bus.UPLOADS], 3)
    raw.xreadgroup(bus.GROUP, "other", {bus.UPLOADS: ">"})
    before = raw.xpending_range(bus.UPLOADS, bus.GROUP, "-", "+", 10)
    for _ in range(2):  # the answer to this may be lost, too
        found = intake.regain(bus.UPLOADS, {had.key})
        assert {entry.content_id: entry.deliveries for entry in found} == {"taken": 2, "read1": 1, "read2": 1}
    assert intake.regain(bus.UPLOADS, {had.key, *(entry.key for entry in found)}) == []
    after = raw.xpending_range(bus.UPLOADS, bus.GROUP, "-", "+", 10)
    same = ("message_id", "consumer", "times_delivered")
    assert [[info[name] for name in same] for info in before] == [[info[name] for name in same] for info in after]


def test_a_lost_claim_that_another_took_over_meanwhile_stays_its_own(
    raw: redis.Redis, intake: Intake, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between this process's look and its claim."""
    leave(raw, ["a"])
    intake.take_over(bus.UPLOADS, 1)
    [claim] = raw.xpending_range(bus.UPLOADS, bus.GROUP, "-", "+", 1)
    raw.xclaim(bus.UPLOADS, bus.GROUP, "living", 0, [claim["message_id"]], idle=LONG_MS, justid=True)
    other = Intake(connection.connect(broker.url), "other", takeover_idle_s=1)
    look = intake._redis.xpending_range

    def then_the_other(*arguments: Any, **named: Any) -> Any:
        seen = look(*arguments, **named)
        assert len(other.take_over(bus.UPLOADS, 1)) == 1
        return seen

    monkeypatch.setattr(intake._redis, "xpending_range", then_the_other)
    assert intake.regain(bus.UPLOADS, set()) == []
    [claim] = raw.xpending_range(bus.UPLOADS, bus.GROUP, "-", "+", 1)
    assert claim["consumer"] == b"other"


@pytest.mark.parametrize("spoilt", [bus.UPLOADS, bus.BACKFILL])
def test_a_process_takes_up_what_it_lost_and_not_what_it_left_to_others(
    raw: redis.Redis, intake: Intake, spoilt: str
) -> None:
    """Of one stream, where the other's key is something else."""
    stream = bus.BACKFILL if spoilt == bus.UPLOADS else bus.UPLOADS
    for content_id in ("abandoned", "lost"):
        raw.xadd(stream, {"content_id": content_id})
    abandoned, lost = intake.read([stream], 2)
    raw.delete(spoilt)
    raw.set(spoilt, "no stream")
    pipeline = EmptyPipeline()
    pipeline.abandoned = {abandoned.key}
    puller = puller_of(intake, pipeline, takeover_idle_s=15)
    with contextlib.suppress(UnavailableError):
        puller._keep_house()
    assert puller._held() == [lost]


def test_what_is_given_back_is_anothers_at_once_and_was_never_delivered(
    raw: redis.Redis, intake: Intake, broker: Broker
) -> None:
    """A clean stop makes no suspect, which would be judged alone, and unmakes none."""
    leave(raw, ["suspect"])
    suspects = intake.take_over(bus.UPLOADS, 1)
    for content_id in ("a", "b"):
        raw.xadd(bus.UPLOADS, {"content_id": content_id})
    intake.give_back([*suspects, *intake.read([bus.UPLOADS], 2)])
    other = Intake(connection.connect(broker.url), "other", takeover_idle_s=15)
    taken = other.take_over(bus.UPLOADS, 3)
    assert [(entry.content_id, entry.suspect) for entry in taken] == [("suspect", True), ("a", False), ("b", False)]


def test_an_entry_that_says_what_died_of_it_is_not_given_up_for_that_alone(raw: redis.Redis, intake: Intake) -> None:
    """Anyone may write one: it is judged alone, and one death that Redis saw is still to come."""
    raw.xadd(bus.UPLOADS, {"content_id": "a", "deaths": 99, "broken_devices": 99})
    [entry] = intake.read([bus.UPLOADS], 1)
    assert entry.suspect
    assert intake.mark_alone(entry) == (MOST_DEATHS_ALONE - 1, MOST_BROKEN_DEVICES - 1)


def test_a_flood_of_such_entries_is_not_claimed_faster_than_it_is_judged(raw: redis.Redis, intake: Intake) -> None:
    """Else each turn would claim several for the one that was judged."""
    with raw.pipeline() as at_once:
        for number in range(300):
            at_once.xadd(bus.UPLOADS, {"content_id": f"c{number}", "deaths": 1})
        at_once.execute()
    pipeline = EmptyPipeline()
    puller = puller_of(intake, pipeline, takeover_idle_s=15)
    while len(pipeline.accepted) < 50:
        puller._turn()
    assert len(puller._held()) <= 2 * 16 + 8


def test_no_backfill_is_claimed_while_uploads_wait(raw: redis.Redis, intake: Intake) -> None:
    """Not even beside them, where there are more than are claimed at once."""
    for stream in (bus.BACKFILL, bus.UPLOADS):
        for number in range(20):
            raw.xadd(stream, {"content_id": f"c{number}"})
    pipeline = EmptyPipeline()
    puller = puller_of(intake, pipeline, takeover_idle_s=15)
    while len(pipeline.accepted) < 40:
        puller._turn()
    assert [entry.backfill for entry in pipeline.accepted] == [False] * 20 + [True] * 20


def test_after_an_outage_what_is_due_goes_back_as_fast_as_it_can_be_judged(raw: redis.Redis, intake: Intake) -> None:
    """By a process that runs out of uploads and whose content store has what it asks for; else a lot a second."""
    due = {json.dumps({"content_id": f"c{number}", "backfill": 0, "rescan": 0}): 1 for number in range(3000)}
    raw.zadd(bus.RETRY, due)
    pipeline = EmptyPipeline()
    puller = puller_of(intake, pipeline, takeover_idle_s=15)

    def woken(fetched_lately: int) -> int:
        pipeline.fetched = fetched_lately
        before = raw.zcard(bus.RETRY)
        puller._keep_house()
        return before - raw.zcard(bus.RETRY)

    puller._claim(8)  # of nothing
    assert woken(0) == DUE_AT_ONCE, "the store is away"
    puller._claim(8)
    assert woken(450) == DUE_AT_ONCE, "uploads wait"
    raw.delete(bus.UPLOADS)
    puller._claim(8)
    assert woken(450) == 5 * DUE_AT_ONCE
    raw.delete(bus.UPLOADS)
    puller._claim(8)
    assert woken(10**6) == MOST_LOTS_DUE * DUE_AT_ONCE
