"""What a process has claimed it keeps, whichever command after that fails; on a real server that refuses it."""

from typing import Any, cast

import pytest
import redis

from tests.support.worker import Broker
from worker import bus, connection
from worker.entry import Entry
from worker.errors import ModerationError, UnavailableError
from worker.intake import Intake
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.puller import Puller

LONG_MS = 60_000


class EmptyPipeline:
    """One with nothing in work that takes what it is given."""

    def __init__(self) -> None:
        self.accepted: list[Entry] = []

    def in_work(self) -> list[Any]:
        """Nothing."""
        return []

    def held_up(self) -> int:
        """Of nothing."""
        return 0

    def judged_lately(self) -> int:
        """None."""
        return 0

    def leave_overdue(self, fetch_s: float, work_s: float) -> None:
        """There is nothing to leave."""

    def accept(self, entries: list[Entry]) -> None:
        """Takes them."""
        self.accepted += entries


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


def test_claims_whose_deliveries_cannot_be_read_are_suspects(raw: redis.Redis, intake: Intake) -> None:
    """They are this process's by then; that others died of them is what must be thought of them."""
    leave(raw, ["a", "b"])
    refuse(raw, "xpending")
    taken = intake.take_over(bus.UPLOADS, 8)
    assert [(entry.content_id, entry.deliveries, entry.suspect) for entry in taken] == [("a", 2, True), ("b", 2, True)]


def test_what_was_taken_over_before_a_command_failed_is_kept(
    raw: redis.Redis, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of several calls is refused: what the first claimed is returned. Only a first refusal is raised."""
    leave(raw, ["a"])
    leave(raw, [f"fresh{number}" for number in range(40)], idle_ms=0)  # one call looks at ten times as many as it wants
    autoclaim = intake._redis.xautoclaim

    def once(*arguments: Any, **named: Any) -> Any:
        reply = autoclaim(*arguments, **named)
        refuse(raw, "xautoclaim")
        return reply

    monkeypatch.setattr(intake._redis, "xautoclaim", once)
    assert [entry.content_id for entry in intake.take_over(bus.UPLOADS, 2)] == ["a"]
    with pytest.raises(ModerationError):
        intake.take_over(bus.UPLOADS, 2)


def test_uploads_taken_over_are_kept_where_backfill_cannot_be(raw: redis.Redis, intake: Intake) -> None:
    """The backfill's key is something else: the uploads claimed just before are held, and wait for their turn."""
    pipeline = EmptyPipeline()
    puller = Puller(
        intake, cast(Pipeline, pipeline), Metrics(), max_batch=8, in_flight=1, claim_deadline_s=120,
        fetch_timeout_s=30, takeover_idle_s=0, watch=lambda: None, on_housekeeping=lambda: None,
    )  # fmt: skip
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
