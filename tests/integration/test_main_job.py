"""The main job through real parts: pictures in a folder, a Valkey server, a `celery worker` process, verdicts."""

import hashlib
import io
import json
import re
import time
from typing import Any

import pytest
from celery import Celery
from PIL import Image

from tests.support.pictures import COLOURS, animation, encoded, picture
from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, Broker
from worker.client import Moderation
from worker.errors import UsageError

LABELS = ("approved", "not_suitable", "risked")


def test_each_label_gets_its_verdict_ban_and_place(busy_place: Place) -> None:
    """Only risked is banned, and each ID has one entry in the stream."""
    ids = {busy_place.add(label=label): label for label in LABELS}
    found = busy_place.judge(ids)
    assert {content_id: document.label for content_id, document in found.items()} == ids
    by_label = {document.label: document for document in found.values()}
    assert [by_label[label].ban for label in LABELS] == [False, False, True]
    assert [by_label[label].placement for label in LABELS] == ["collective", "author_only", "removed"]
    assert sorted(i for i in busy_place.entries() if i in ids) == sorted(ids)


def test_the_document_tells_what_judged_it(busy_place: Place) -> None:
    """Weights, engine, thresholds, digest and times stand in the document, and in the stream's own fields."""
    content_id = busy_place.add(label="risked")
    document = busy_place.judge(content_id)[content_id]
    assert document.weights == busy_place.store.champion()
    assert document.engine == "cpu-fp32"
    assert (document.ban_threshold, document.review_threshold) == (0.6, 0.3)
    assert document.content_sha256 == hashlib.sha256((busy_place.content / content_id).read_bytes()).hexdigest()
    assert document.enqueued_at <= document.decided_at
    raw = busy_place.broker.client()
    _, fields = next(e for e in raw.xrange("moderation:verdicts") if e[1][b"content_id"] == content_id.encode())
    assert fields[b"label"] == b"risked"
    assert (fields[b"ban"], fields[b"review"], fields[b"placement"]) == (b"1", b"0", b"removed")
    assert fields[b"verdict"] == raw.get(f"moderation:verdict:{content_id}")
    assert json.loads(fields[b"verdict"])["supersedes"] is None
    assert 0 < raw.ttl(f"moderation:verdict:{content_id}") <= 604800


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP"])
def test_every_format_is_judged(busy_place: Place, format: str) -> None:
    """The formats of the contract, whatever the file is called."""
    content_id = busy_place.add(picture("not_suitable", format))
    assert busy_place.judge(content_id)[content_id].label == "not_suitable"


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_most_dangerous_frame_decides(busy_place: Place, format: str) -> None:
    """One risked frame among five harmless ones bans the animation."""
    labels = ["approved", "not_suitable", "approved", "risked", "approved", "not_suitable"]
    content_id = busy_place.add(animation(labels, format))
    document = busy_place.judge(content_id)[content_id]
    assert (document.label, document.ban, document.frames) == ("risked", True, 6)


@pytest.mark.parametrize("size", [(300, 1500), (1500, 300)])
def test_the_end_of_a_long_picture_decides(busy_place: Place, size: tuple[int, int]) -> None:
    """What is risked is banned wherever it stands in a strip, not in its middle alone."""
    strip = Image.new("RGB", size, COLOURS["approved"])
    strip.paste(COLOURS["risked"], (0, 0, 300, 300))
    content_id = busy_place.add(encoded(strip))
    document = busy_place.judge(content_id)[content_id]
    assert (document.label, document.ban, document.frames) == ("risked", True, 7)


def test_a_long_animation_is_sampled_over_its_time(busy_place: Place) -> None:
    """60 quick frames, then a risked one that stays for most of the time: it is seen, with at most 8 frames."""
    labels = ["approved" if n % 2 else "not_suitable" for n in range(60)] + ["risked"]
    content_id = busy_place.add(animation(labels, "GIF", [20] * 60 + [5000]))
    document = busy_place.judge(content_id)[content_id]
    assert (document.label, document.frames) == ("risked", 8)


def test_bad_pictures_are_undecided_and_take_nobody_along(busy_place: Place) -> None:
    """Missing, truncated, unsupported, oversized and too large pictures among good ones, submitted together."""
    big = io.BytesIO()
    Image.new("1", (9000, 9000)).save(big, "PNG")
    bad = {
        busy_place.add(picture("approved", "PNG")[:-200]): "unreadable",
        busy_place.add(b""): "unreadable",
        busy_place.add(b"%PDF-1.7 this is no picture at all"): "unsupported_format",
        busy_place.add(big.getvalue()): "too_large",
        busy_place.add(b"\xff" * (21 * 2**20)): "too_large",
        "there_is_no_such_picture": "not_found",
    }
    good = {busy_place.add(label=label): label for label in LABELS * 3}
    mixed = [content_id for pair in zip(good, [*bad, *[None] * 3], strict=True) for content_id in pair if content_id]
    found = busy_place.judge(mixed)
    for content_id, reason in bad.items():
        document = found[content_id]
        assert (document.status, document.reasons) == ("undecided", (reason,)), content_id
        assert (document.label, document.ban, document.review, document.placement) == (None, False, True, "held")
    assert {content_id: found[content_id].label for content_id in good} == good


def test_submitting_again_changes_nothing(busy_place: Place) -> None:
    """However often an ID is submitted, one verdict takes effect; all other times are counted as duplicates."""
    content_id = busy_place.add(label="risked")
    worker = busy_place.workers[0]
    before = worker.metric("moderation_duplicates_total")
    busy_place.client.submit([content_id] * 50)
    first = busy_place.client.wait(content_id, 30)[content_id]
    busy_place.client.submit([content_id] * 50)
    after = busy_place.add()
    busy_place.judge(after)
    assert busy_place.entries().count(content_id) == 1
    assert busy_place.client.verdict(content_id) == first
    wait_until(lambda: worker.metric("moderation_duplicates_total") == before + 99, "99 duplicates")


def test_a_rescan_replaces_only_what_changed(busy_place: Place) -> None:
    """Same picture: no new entry. Another picture under the ID: a new entry that names the old one."""
    content_id = busy_place.add(label="approved")
    first = busy_place.judge(content_id)[content_id]
    busy_place.client.submit(content_id, rescan=True)
    busy_place.judge(busy_place.add())
    assert busy_place.entries().count(content_id) == 1
    (busy_place.content / content_id).write_bytes(picture("risked"))
    busy_place.client.submit(content_id, rescan=True)
    wait_until(lambda: busy_place.entries().count(content_id) == 2, "the rescan's entry")
    second = busy_place.client.verdict(content_id)
    assert second is not None and second.label == "risked"
    assert first.decided_at is not None and second.supersedes == first.to_dict()["decided_at"]


def test_an_undecided_picture_is_judged_again_when_resubmitted(busy_place: Place) -> None:
    """A decision takes an undecided outcome's place; no rescan is needed."""
    content_id = busy_place.add(b"not a picture")
    assert busy_place.judge(content_id)[content_id].status == "undecided"
    (busy_place.content / content_id).write_bytes(picture("approved"))
    busy_place.client.submit(content_id)
    wait_until(lambda: busy_place.client.verdict(content_id).status == "decided", "the decision")
    assert busy_place.entries().count(content_id) == 2


def test_backfill_is_judged_too(busy_place: Place) -> None:
    """Entries of the second stream get the same verdicts."""
    ids = [busy_place.add() for _ in range(20)]
    busy_place.client.submit(ids, backfill=True)
    assert all(document.label == "approved" for document in busy_place.client.wait(ids, 30).values())


def test_any_celery_client_can_enqueue(busy_place: Place) -> None:
    """The task by name, from an app that knows nothing but the broker; malformed IDs are dead-lettered."""
    sender = Celery(broker=busy_place.broker.url)
    one, two, three = (busy_place.add(label=label) for label in LABELS)
    send = sender.signature("moderation.moderate", queue="moderation").clone
    send(args=[one]).apply_async()
    send(kwargs={"content_ids": [two, "no such/ID", three], "backfill": True}).apply_async()
    send(args=[[]]).apply_async()
    send(args=[["x"] * 257]).apply_async()
    assert set(busy_place.client.wait([one, two, three], 30)) == {one, two, three}
    raw = busy_place.broker.client()
    wait_until(lambda: raw.xlen("moderation:dead-letter") >= 3, "the dead letters of malformed IDs and tasks")
    reasons = [fields[b"reason"] for _, fields in raw.xrange("moderation:dead-letter")]
    assert reasons.count(b"malformed_id") >= 1 and reasons.count(b"malformed_task") >= 2
    assert "Traceback" not in busy_place.workers[0].log()
    sender.close()


def test_any_redis_client_can_enqueue(busy_place: Place) -> None:
    """XADD alone is enough, and entries that are no UTF-8, or have no ID, hurt nobody."""
    raw = busy_place.broker.client()
    good = busy_place.add()
    for fields in (
        {"content_id": b"\xff\xfe\x00"},
        {"other": "x"},
        {"content_id": "../../etc/passwd"},
        {"content_id": ""},
    ):
        raw.xadd("moderation:uploads", fields)
    raw.xadd("moderation:uploads", {"content_id": b"x" * 100_000})
    raw.xadd("moderation:uploads", {"content_id": good, "attempt": "\xff", "enqueued_ms": "-5", "\xff": "y"})
    assert busy_place.client.wait(good, 30)[good].label == "approved"
    wait_until(lambda: raw.xlen("moderation:uploads") == 0, "the malformed entries to leave")
    buried = [fields for _, fields in raw.xrange("moderation:dead-letter") if fields[b"reason"] == b"malformed_id"]
    assert b"\xff\xfe\x00" in [fields[b"content_id"] for fields in buried]
    assert max(len(fields[b"content_id"]) for fields in buried) == 128


def test_the_readmes_redis_commands_are_enough(broker: Broker, client: Moderation) -> None:
    """They enqueue and read; a read is bounded, for a server that sends all verdicts at once serves nobody else."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    add, read = (line.split() for line in re.findall("^X(?:ADD|READ) .*$", readme, re.MULTILINE))
    raw = broker.client()
    raw.execute_command(*add)
    assert raw.xrange("moderation:uploads")[0][1] == {b"content_id": b"H6f8XI2i8"}
    for _ in range(1200):
        raw.xadd("moderation:verdicts", {"content_id": "H6f8XI2i8"})
    after, seen = b"0", 0
    while seen < 1200:
        reply: Any = raw.execute_command(*read[:-1], after)
        ((_, entries),) = reply.items() if isinstance(reply, dict) else reply
        assert 1 <= len(entries) <= 500
        after, seen = entries[-1][0], seen + len(entries)


def test_the_client_refuses_what_is_malformed(busy_place: Place) -> None:
    """One sentence, and nothing of the call is enqueued."""
    before = busy_place.broker.client().xinfo_stream("moderation:uploads")["entries-added"]
    for wrong in ("", "a b", "x" * 129, "ä", "a/b", "a\n", ["good", "../bad"], [], [None]):
        with pytest.raises(UsageError, match="content ID"):
            busy_place.client.submit(wrong)
    assert busy_place.broker.client().xinfo_stream("moderation:uploads")["entries-added"] == before


def test_how_long_uploads_took_is_told_apart_from_backfill(busy_place: Place) -> None:
    """Backfill may wait for days: together with it nothing could be said of what people wait for."""
    worker = busy_place.workers[0]

    def of_backfill() -> float:
        everything, uploads = (
            worker.metric(f"moderation_{what}_to_verdict_seconds_count") for what in ("enqueue", "upload")
        )
        return everything - uploads

    before = of_backfill()
    backfilled = [busy_place.add() for _ in range(5)]
    busy_place.client.submit(backfilled, backfill=True)
    busy_place.client.wait(backfilled, 60)
    uploads = worker.metric("moderation_upload_to_verdict_seconds_count")
    busy_place.judge([busy_place.add() for _ in range(2)])
    wait_until(
        lambda: worker.metric("moderation_upload_to_verdict_seconds_count") >= uploads + 2, "two more uploads counted"
    )
    # Two looks: an upload of a test before that is counted between them made the first difference too small.
    wait_until(lambda: of_backfill() >= before + 5, "five of backfill counted, and not as uploads")


def test_metrics_and_probes(busy_place: Place) -> None:
    """The contract's names are there, with what happened in them; the probes answer."""
    worker = busy_place.workers[0]
    before = worker.metric("moderation_verdicts_total", label="risked", ban="1")
    waited, began = worker.metric("moderation_enqueue_to_verdict_seconds_sum"), time.monotonic()
    busy_place.judge([busy_place.add(label="risked") for _ in range(3)])
    wait_until(
        lambda: worker.metric("moderation_verdicts_total", label="risked", ban="1") == before + 3,
        "three more bans counted",
    )
    more_s = worker.metric("moderation_enqueue_to_verdict_seconds_sum") - waited
    assert 0 < more_s < 3 * (time.monotonic() - began), "of three, and in seconds"
    text = worker.get("/metrics")[1]
    for name in (
        "moderation_verdicts_total", "moderation_decisions_total", "moderation_undecided_total",
        "moderation_enqueue_to_verdict_seconds_bucket", "moderation_upload_to_verdict_seconds_bucket",
        "moderation_stage_seconds_bucket", "moderation_batch_images_bucket", "moderation_risked_probability_bucket",
        "moderation_weights_info", "moderation_weights_loads_total", "moderation_duplicates_total",
        "moderation_reclaimed_total", "moderation_decoder_restarts_total",
    ):  # fmt: skip
        assert f"\n{name}" in text, name
    for stage in ("fetch", "decode", "wait", "forward", "publish"):
        assert worker.metric("moderation_stage_seconds_count", stage=stage) > 0, stage
    assert worker.metric("moderation_weights_info", weights=busy_place.store.champion() or "", role="champion") == 1
    assert worker.get("/healthz")[0] == 200
    assert worker.get("/readyz")[0] == 200
    assert worker.get("/nothing")[0] == 404


def test_a_rescan_that_agrees_is_a_decision(busy_place: Place) -> None:
    """It changes no verdict; but of changes alone a night of rescans would look like a version that only bans."""
    worker = busy_place.workers[0]
    ids = [busy_place.add(label=label) for label in ("approved", "approved", "risked")]

    def counted() -> list[float]:
        return [
            worker.metric("moderation_verdicts_total"),
            worker.metric("moderation_unchanged_total"),
            worker.metric("moderation_decisions_total", label="approved", ban="0"),
            worker.metric("moderation_decisions_total", label="risked", ban="1"),
            worker.metric("moderation_risked_probability_count"),
        ]

    for more in ((3, 0, 2, 1, 3), (0, 3, 2, 1, 3)):
        after = [a + b for a, b in zip(counted(), more, strict=True)]
        busy_place.client.submit(ids, rescan=True)
        wait_until(lambda after=after: counted() == after, "three decisions more")


def test_colours_are_what_the_tests_think() -> None:
    """The stand-in pictures' labels differ, or every test above proves nothing."""
    assert len(set(COLOURS.values())) == 3
