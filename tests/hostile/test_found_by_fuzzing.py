"""What fuzzing found, by name: each of these once ended in a traceback, or held a picture up for good."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hostile.test_fuzz_redis import SHA, TTL_S, Desk
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, Broker
from trainer import labelling
from trainer.errors import DataError
from worker import breaker, bus, exporter
from worker.errors import UsageError
from worker.publish import Published


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """On a server without workers."""
    broker = Broker(tmp_path_factory.mktemp("valkey"), appendonly="no")
    yield Desk(broker.url)
    broker.stop()


@pytest.fixture(autouse=True)
def _empty(desk: Desk) -> None:
    desk.redis.flushdb()
    desk.intake.ensure_groups()


@pytest.mark.parametrize("entry", ["x", "1", "", "-", "1-1-1", "é-1"])
def test_an_override_whose_entry_is_no_id_beside_known_content(desk: Desk, entry: str) -> None:
    """It could not be compared with the other decision, so that each publish of its picture failed, again and again."""
    desk.redis.hset(bus.OVERRIDES, "mine", json.dumps({"entry": entry, "label": "risked"}))
    desk.redis.hset(bus.KNOWN, SHA, json.dumps({"entry": "1-1", "label": "approved"}))
    [became] = desk.publisher.publish([desk.outcome("mine", "approved")])
    assert isinstance(became, Published) and not became.document.ban


def test_an_override_whose_entry_is_no_text(desk: Desk) -> None:
    """Its bytes could not be read back, which held up all that was published together with it."""
    desk.redis.hset(bus.OVERRIDES, "mine", b'{"entry": "\xff-1", "label": "risked"}')
    both = [desk.outcome("mine", "approved"), desk.outcome("neighbour", "approved")]
    assert all(isinstance(became, Published) and not became.document.ban for became in desk.publisher.publish(both))


@pytest.mark.parametrize("note", ["x", "{}", "[]", "null", b"\xff", '{"at": 1, "bans": "x", "decided": []}'])
def test_an_opened_note_that_is_none(desk: Desk, note: str | bytes) -> None:
    """Status, exporter and closing failed; publishing takes it for open, and so do they."""
    desk.redis.hset(bus.WITHHELD, "#opened", note)
    assert breaker.status(desk.redis).opened_at == breaker.UNKNOWN == exporter.read(desk.redis).breaker.opened_at
    breaker.close(desk.redis, apply=True, verdict_ttl_s=TTL_S)
    assert breaker.status(desk.redis).opened_at is None


@pytest.mark.parametrize(("field", "ban"), [(b"\xff", "x"), (b"a", ""), (b"a", "2026-11-24T00:00:00.000Z {}")])
def test_a_withheld_ban_that_is_none(desk: Desk, field: bytes, ban: str) -> None:
    """One of them kept every withheld ban from being applied; it is taken away and bans nobody."""
    desk.redis.hset(bus.WITHHELD, "#opened", "{}")
    desk.redis.hset(bus.WITHHELD, field, ban)
    assert len(list(breaker.withheld(desk.redis))) == 1
    assert breaker.close(desk.redis, apply=True, verdict_ttl_s=TTL_S) == breaker.Closed(0, 1, 0)
    assert not desk.redis.exists(bus.VERDICTS)


@pytest.mark.parametrize("after", ["\udcff", "x", "", "1-1-1", str(2**64), f"1-{2**64}"])
def test_a_place_to_go_on_from_that_is_none(desk: Desk, after: str) -> None:
    """The caller's fault, in one sentence; no server is asked."""
    for read in (desk.client.verdicts, desk.client.corrections):
        with pytest.raises(UsageError, match="is no entry ID"):
            list(read(after))


def test_times_that_are_no_numbers_or_have_no_end(desk: Desk) -> None:
    """Nothing is ever after NaN: refused, and nothing enqueued. Without an end it waits as with one."""
    with pytest.raises(UsageError, match="`timeout_s` is no number"):
        desk.client.wait("mine", math.nan)
    with pytest.raises(UsageError, match="`patience_s` is no number"):
        desk.client.submit("mine", patience_s=math.nan)
    assert desk.redis.xlen(bus.UPLOADS) == 0
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(desk.client.wait, "mine", math.inf)
        wait_until(lambda: "xread" in {one["cmd"] for one in desk.redis.client_list()}, "somebody waits")
        desk.publisher.publish([desk.outcome("mine", "approved")])
        assert waiting.result(30)["mine"].label == "approved"


def test_a_password_that_is_no_text() -> None:
    """Bytes in the environment that no server can be told."""
    environment = {**os.environb, b"MODERATION_REDIS_URL": b"redis://:geheim\xff@127.0.0.1:1/0"}
    command = [sys.executable, "-m", "worker.cli", "verdict", "x"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith(b"error: MODERATION_REDIS_URL cannot be used")
    assert b"geheim" not in done.stderr


@pytest.mark.parametrize("cluster", ["Infinity", "NaN", "[" * 50_000])
def test_a_cluster_that_is_no_number(tmp_path: Path, cluster: str) -> None:
    """In the trainer's own record, damaged."""
    record = f'{{"schema": 1, "root": "/", "doubt_max": 0.5, "made": {{}}, "pictures": [["a", "b", {cluster}, 0]]}}'
    (tmp_path / labelling.CLUSTERS).write_text(record)
    (tmp_path / labelling.NAMES).write_text("[names]\n")
    with pytest.raises(DataError, match="run cluster again"):
        labelling.read(tmp_path / labelling.NAMES)
