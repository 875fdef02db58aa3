"""Beside a later release, which has added a field and a reason to what it writes: nothing that it says is passed over.

What a release may add, none of the readers from before knows; a verdict that one of them leaves out is lost to it.
"""

import json

import pytest

from tests.support.worker import Broker
from worker import breaker
from worker.client import Moderation
from worker.overrule import Overruler

SHA256 = "0123456789abcdef" * 4


def later(content_id: str, status: str = "decided", *, ban: bool = True) -> dict[str, object]:
    """A document as a later release might write it."""
    decided = status == "decided"
    return {
        "schema": 1, "content_id": content_id, "status": status, "label": "risked" if decided else None, "ban": ban,
        "review": not ban, "placement": "removed" if ban else "held", "reasons": ["seen_elsewhere"],
        "probabilities": {"approved": 0.1, "not_suitable": 0.0, "risked": 0.9} if decided else None,
        "weights": "vgg11-3f9c0a71b2d4", "engine": "cpu-fp32", "ban_threshold": 0.6, "review_threshold": 0.3,
        "content_sha256": SHA256, "frames": 1, "enqueued_at": "2026-11-24T02:00:00.000Z",
        "decided_at": "2026-11-24T02:00:00.140Z", "supersedes": None, "similar_to": ["H6f8XI2i8"],
    }  # fmt: skip


@pytest.mark.parametrize(("status", "ban"), [("decided", True), ("undecided", False)])
def test_a_client_reads_its_verdicts(broker: Broker, client: Moderation, status: str, ban: bool) -> None:
    """By the stream, by the key and by waiting; the reason is there as it was written."""
    written = later("one", status, ban=ban)
    raw = broker.client()
    raw.set("moderation:verdict:one", json.dumps(written))
    raw.xadd("moderation:verdicts", {"content_id": "one", "verdict": json.dumps(written)})
    ((_, streamed),) = client.verdicts()
    assert streamed == client.verdict("one") == client.wait("one", 1)["one"]
    assert (streamed.status, streamed.ban, streamed.reasons) == (status, ban, ("seen_elsewhere",))
    assert streamed.to_dict() == {name: value for name, value in written.items() if name != "similar_to"}


def test_a_correction_of_one_holds_for_its_bytes(broker: Broker, client: Moderation) -> None:
    """The person saw them: under another content ID they are known as well."""
    raw = broker.client()
    raw.set("moderation:verdict:one", json.dumps(later("one")))
    client.correct("one", "approved", by="ann")
    assert Overruler(client.redis, 1000).apply_waiting() == 1
    corrected = client.verdict("one")
    assert (corrected.label, corrected.content_sha256, corrected.frames) == ("approved", SHA256, 1)
    assert raw.hexists("moderation:known", SHA256)


def test_a_withheld_ban_of_its_takes_effect(broker: Broker, client: Moderation) -> None:
    """Whichever release's command closes the circuit breaker."""
    raw = broker.client()
    ban = later("one")
    held = ban | {"ban": False, "review": True, "placement": "held", "reasons": ["circuit_breaker"]}
    raw.set("moderation:verdict:one", json.dumps(held))
    raw.hset("moderation:withheld", "#opened", json.dumps({"at": ban["decided_at"], "bans": 4, "decided": 4}))
    raw.hset("moderation:withheld", "one", f"{ban['decided_at']} {json.dumps(ban)}")
    assert breaker.close(client.redis, apply=True, verdict_ttl_s=1000) == breaker.Closed(1, 0, 0)
    assert client.verdict("one").ban
