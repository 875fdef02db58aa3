"""The suite's own instruments: each forged wrong is found, and nothing is where nothing is wrong.

Or the runs prove nothing.
"""

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.chaos.checks import Findings, check
from tests.chaos.record import Copy, Told, Witness, parse
from tests.chaos.scene import Pictures, Versions, label_of
from tests.support.proxy import Proxy
from tests.support.store import colour_store
from tests.support.waiting import wait_until
from tests.support.worker import Broker

EARLIER = "2026-11-24T02:00:00.000Z"


class Forger:
    """Writes verdicts as a worker would, true ones unless told otherwise."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        (folder / "content").mkdir()
        self.pictures = Pictures(folder, folder / "content")
        self.versions = Versions(colour_store(folder / "weights"))
        self.server = broker.client()
        self._times = itertools.count(1000)
        self.told = Told(set(), set())

    def writes(self, content_id: str, label: str, digest: str | None, **more: Any) -> str:
        """A verdict as one that names no model is written, but for `more`; returns when it was decided."""
        at = f"2026-11-24T03:00:0{next(self._times) / 1000:.3f}Z"
        document = {
            "content_id": content_id, "status": "decided", "label": label, "ban": label == "risked", "review": False,
            "reasons": [], "probabilities": None, "weights": None, "ban_threshold": None, "content_sha256": digest,
            "enqueued_at": EARLIER, "decided_at": at, "supersedes": None, **more,
        }  # fmt: skip
        said = json.dumps(document)
        self.server.xadd(
            "moderation:verdicts", {"content_id": content_id, "ban": int(document["ban"]), "verdict": said}
        )
        self.server.set(f"moderation:verdict:{content_id}", said, ex=1000)
        self.told.intended.add(content_id)
        self.told.taken.add(content_id)
        return at

    def judges(self, content_id: str, digest: str | None = None, **wrong: Any) -> str:
        """A model's verdict on a picture of the pool, or on these bytes; `wrong` in its document."""
        if digest is None:
            digest = hashlib.sha256((self.pictures.pool / content_id.rpartition("-p")[2]).read_bytes()).hexdigest()
        version, numbers = next(iter(self.versions.numbers.items()))
        said = {
            "weights": version,
            "ban_threshold": numbers.ban_threshold,
            "probabilities": numbers.probabilities(self.pictures.means(content_id, digest)),
        }
        label = wrong.pop("label", self.pictures.labels.get(digest) or label_of(content_id))
        return self.writes(content_id, label, digest, **(said | wrong))

    def decides(self, content_id: str, label: str, digest: str | None, *, named: bool = True, **more: Any) -> str:
        """A person's decision in force; with `named`, on these bytes."""
        self.told.decided.setdefault(content_id, []).append(label)
        about = {"content_sha256": digest} if named and digest is not None else {}
        self.server.xadd("moderation:corrections", {"content_id": content_id, "label": label, **about})
        return self.writes(content_id, label, digest, reasons=["human"], **more)

    def knows(self, content_id: str, label: str, digest: str, **more: Any) -> str:
        """A verdict by the person's decision on the same bytes."""
        return self.writes(content_id, label, digest, reasons=["known_content"], **more)

    def findings(self, **told: Any) -> Findings:
        """What the checks say."""
        entries = [parse(entry_id, fields) for entry_id, fields in self.server.xrange("moderation:verdicts")]
        return check(entries, replace(self.told, **told), self.pictures, self.versions, self.server)


@pytest.fixture
def forger(tmp_path: Path, broker: Broker) -> Iterator[Forger]:
    """A forger with a few verdicts that are right, and people's decisions, and what was shown again."""
    made = Forger(tmp_path, broker)
    for number in range(6):
        made.judges(f"u{number}-p{number:02}")
    digest = made.pictures.draw("k0", "approved")
    first = made.judges("k0", digest)
    made.judges("k0-copy1", digest)
    made.told.copies["k0-copy1"] = Copy("k0", known=False)
    made.decides("k0", "risked", digest, supersedes=first)
    made.knows("k0-copy2", "risked", digest)
    made.told.copies["k0-copy2"] = Copy("k0", known=True)
    made.server.xgroup_create("moderation:corrections", "moderation")
    yield made
    made.server.close()


def said_by(forger: Forger) -> str:
    """The one finding there is."""
    with pytest.raises(AssertionError) as failed:
        forger.findings().assert_none()
    return str(failed.value)


def test_what_is_right_is_not_found_wrong(forger: Forger) -> None:
    """Or every run would fail."""
    findings = forger.findings()
    findings.assert_none()
    assert (findings.known_copies, findings.copies_judged_before) == (1, 1)


def test_what_has_no_verdict_is_lost(forger: Forger) -> None:
    """By its ID."""
    forger.told.taken.add("u9-p00")
    assert "1 IDs are lost: ['u9-p00']" in said_by(forger)


def test_a_second_verdict_is_found_whatever_it_says(forger: Forger) -> None:
    """One that pretends to be the first, one that a model may not write, and a second ban."""
    at = forger.judges("u7-p02")
    forger.judges("u7-p02")
    assert forger.findings().twice == {"u7-p02"}
    forger.judges("u7-p02", supersedes=at)
    assert "1 IDs are banned_twice: ['u7-p02']" in said_by(forger)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"label": "risked", "ban": True}, "u7-p01 is risked"),
        ({"weights": "tiny-000000000000"}, "u7-p01 names tiny-000000000000 and was judged by"),
        ({"status": "undecided", "reasons": ["fetch_failed"]}, "a healthy picture, u7-p01, is undecided"),
        ({"ban": True}, "with ban True"),
        ({"reasons": ["human"]}, "nobody decided on u7-p01"),
    ],
)
def test_a_wrong_document_is_found(forger: Forger, wrong: dict[str, Any], said: str) -> None:
    """Another label, another version, no label, a ban of what is not risked, a person who said nothing."""
    forger.judges("u7-p01", **wrong)
    assert said in said_by(forger)


def test_a_verdict_that_nobody_asked_for_is_found(forger: Forger) -> None:
    """Such as one under a wrong ID."""
    forger.judges("u7-p01")
    forger.told.intended.discard("u7-p01")
    assert "u7-p01 has a verdict and was never submitted" in said_by(forger)


def test_a_decision_that_does_not_stand_is_found(forger: Forger) -> None:
    """The last one is what counts."""
    forger.told.decided["k0"].append("approved")
    assert "the decision on k0, approved, does not stand" in said_by(forger)


@pytest.mark.parametrize("asked", [True, False], ids=["the server was asked", "the verdict names the bytes"])
def test_a_copy_judged_by_a_model_when_the_decision_was_in_force_is_found(forger: Forger, asked: bool) -> None:
    """A decision made before anybody had seen the bytes is known by asking only."""
    digest = forger.pictures.draw("k1", "approved")
    forger.decides("k1", "not_suitable", None if asked else digest)
    forger.judges("k1-copy3", digest)
    forger.told.copies["k1-copy3"] = Copy("k1", known=asked)
    assert "k1-copy3 was judged by a model when the decision on k1 was in force" in said_by(forger)


@pytest.mark.parametrize("seen_since", [True, False])
def test_a_copy_judged_while_nobody_had_decided_on_the_bytes_is_right(forger: Forger, seen_since: bool) -> None:
    """The decision was in force for the original's ID, whose bytes nobody had seen, or a worker after the decision."""
    digest = forger.pictures.draw("k1", "approved")
    forger.decides("k1", "not_suitable", digest if seen_since else None, named=False)
    forger.judges("k1-copy3", digest)
    forger.told.copies["k1-copy3"] = Copy("k1", known=False)
    forger.findings().assert_none()


def test_a_copy_by_a_decision_that_is_not_in_force_is_found(forger: Forger) -> None:
    """One that was replaced, and one that comes later."""
    digest = forger.pictures.draw("k1", "approved")
    at = forger.decides("k1", "risked", digest)
    forger.decides("k1", "approved", digest, supersedes=at)
    forger.knows("k1-copy3", "risked", digest)
    forger.told.copies["k1-copy3"] = Copy("k1", known=True)
    assert "k1-copy3 is known content and risked; decided before it was: ['risked', 'approved']" in said_by(forger)


def test_what_is_left_on_the_server_is_found(forger: Forger) -> None:
    """Work, a dead letter, an endless key, a verdict that the witness did not see."""
    forger.server.xadd("moderation:uploads", {"content_id": "u7-p01"})
    forger.server.xadd("moderation:dead-letter", {"content_id": "u7-p01"})
    forger.server.set("moderation:other", "1")
    forger.server.delete("moderation:verdict:u0-p00")
    said = said_by(forger)
    for what in (
        "moderation:uploads still holds 1",
        "moderation:dead-letter still holds 1",
        "other has no TTL",
        "1 IDs",
    ):
        assert what in said


def test_work_has_resumed_only_with_what_was_submitted_since(forger: Forger, broker: Broker, tmp_path: Path) -> None:
    """Neither a person's decision nor a verdict on what was submitted before says so."""
    witness = Witness(broker.url, tmp_path / "witness.log")
    moment = time.time()
    wait_until(lambda: forger.server.time()[0] > moment, "the server's clock to be past the moment")
    since = "2100-01-01T00:00:00.000Z"
    forger.judges("u7-p01")
    forger.knows("k0-copy3", "risked", "", enqueued_at=since)
    forger.judges("u8-p01", enqueued_at=since)
    assert witness.wait_for(lambda: len(witness.entries) == 13, 10)
    first = witness.first(lambda entry: entry.by_model and entry.submitted_s > moment, moment)
    assert first is not None and first.content_id == "u8-p01"
    any_model = witness.first(lambda entry: entry.by_model, moment)
    assert any_model is not None and any_model.content_id == "u7-p01"
    witness.close()


def test_a_half_open_connection_takes_its_delivery_along(broker: Broker) -> None:
    """The server answers a blocked read into it, believes that its client is there, and nobody reads it."""
    server = broker.client()
    server.xgroup_create("stream", "group", mkstream=True)
    failed: list[BaseException] = []
    with Proxy(broker.port) as proxy:
        client = redis.Redis(port=proxy.port, socket_timeout=3, client_name="lost", retry=Retry(NoBackoff(), 0))

        def read() -> None:
            try:
                client.xreadgroup("group", "consumer", {"stream": ">"}, block=60_000)
            except redis.exceptions.RedisError as error:
                failed.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: server.info("clients")["blocked_clients"] == 1, "the read to block", 10)
        proxy.go_dark()
        server.xadd("stream", {"content_id": "u0"})
        reader.join(20)
        assert [type(error) for error in failed] == [redis.exceptions.TimeoutError], failed
        assert server.xpending("stream", "group")["consumers"] == [{"name": b"consumer", "pending": 1}]
        assert proxy.swallowed["server"] > 0
        client.close()
        assert [info for info in server.client_list() if info["name"] == "lost"], "the server was told"
        assert redis.Redis(port=proxy.port).ping(), "new connections are not forwarded"
    server.close()
