"""Whatever anyone writes into Redis, a real worker lives, healthy pictures are judged, and nobody is banned by it.

Entries of all three streams, messages of the Celery task, people's decisions, the breaker's notes. Each example is
followed by a healthy picture whose verdict is waited for: what held the line up would be seen.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import Broker
from worker import breaker, bus, connection, corrections, exporter
from worker.client import Moderation
from worker.errors import ModerationError, UsageError
from worker.intake import Intake
from worker.model.labels import LABELS
from worker.overrule import Overruler
from worker.publish import Outcome, Published, Publisher
from worker.verdict import CONTENT_ID_PATTERN, Probabilities, Undecided, Verdict, parse

QUICK = settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example leaves traces: a smaller one may not fail again
)
MANY = settings(QUICK, max_examples=400)
TTL_S = 1000
SHA = "ab" * 32

RAW = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [b"0", b"1", b"-1", b"999999999999999", b"9" * 400, b"nan", b"../../etc/passwd", b"a\n", b"a\0", b"\xff" * 129,
         b"{content_id}", b"a" * 128, b"a" * 129, b"approved", b"risked", b"human", SHA.encode()]
    ),
)  # fmt: skip
NAMES = st.sampled_from(
    [
        b"content_id",
        b"rescan",
        b"enqueued_ms",
        b"not_found_since_ms",
        b"fetch_failed_since_ms",
        b"attempt",
        b"deaths",
        b"broken_devices",
        b"label",
        b"by",
        b"content_sha256",
    ]
)
FIELDS = st.dictionaries(st.one_of(NAMES, st.binary(max_size=20)), RAW, min_size=1, max_size=8)
BATCHES = st.lists(st.tuples(st.sampled_from([bus.UPLOADS, bus.BACKFILL, bus.CORRECTIONS]), FIELDS), max_size=12)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.just("../x")),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)),
    max_leaves=12,
)


def healthy_is_judged(place: Place) -> None:
    """And the worker is the same process as before."""
    [worker] = place.workers
    content_id = place.add(label="approved")
    assert place.judge(content_id, timeout_s=30)[content_id].label == "approved"
    assert worker.process.poll() is None


def throw_entries(place: Place, batch: list[tuple[str, dict[bytes, bytes]]]) -> None:
    """Adds them, waits until they are gone, and looks at what became of them."""
    raw = place.broker.client()
    letters = raw.xlen(bus.DEAD_LETTER)
    for stream, fields in batch:
        raw.xadd(stream, fields)
    healthy_is_judged(place)

    def gone() -> bool:
        applied = raw.xinfo_groups(bus.CORRECTIONS) if raw.exists(bus.CORRECTIONS) else []
        return not (raw.xlen(bus.UPLOADS) or raw.xlen(bus.BACKFILL)) and all(
            group["pending"] == 0 and group["lag"] in (0, None) for group in applied
        )

    wait_until(gone, "all to leave the streams", 30)
    malformed = sum(not_well_formed(stream, fields) for stream, fields in batch)
    wait_until(
        lambda: raw.xlen(bus.DEAD_LETTER) - letters == malformed,
        f"{malformed} dead letters, there are {raw.xlen(bus.DEAD_LETTER) - letters}",
        10,
    )


def not_well_formed(stream: str, fields: dict[bytes, bytes]) -> bool:
    """By the contract, written once more: an ID of the allowed characters; of a correction also a label and a name."""
    content_id = fields.get(b"content_id", b"")
    allowed = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
    if not 1 <= len(content_id) <= 128 or content_id.strip(allowed):
        return True
    if stream != bus.CORRECTIONS:
        return False
    name = fields.get(b"by", b"").decode("utf-8", "replace")
    digest = fields.get(b"content_sha256")
    well = fields.get(b"label", b"").decode("utf-8", "replace") in LABELS and name.strip() != "" and len(name) <= 128
    return not (well and name.isprintable() and (digest is None or digest == SHA.encode()))


def nobody_is_banned_but_by_a_person(place: Place) -> None:
    """There is no risked picture here: whoever is banned was so by a correction that was well formed."""
    for _, document in place.client.verdicts():
        assert not document.ban or document.reasons == ("human",), document
        assert document.label != "risked" or "human" in document.reasons, document
    log = place.workers[0].log()
    assert "Traceback" not in log, log[-3000:]


@QUICK
@given(batch=BATCHES)
def test_any_entry_of_any_stream(busy_place: Place, batch: list[tuple[str, dict[bytes, bytes]]]) -> None:
    """Well-formed IDs get a verdict, the rest becomes a dead letter each, and all of it leaves the streams."""
    throw_entries(busy_place, batch)


def send(place: Place, messages: list[tuple[Any, Any]]) -> None:
    """Sends each as a task's arguments, then one that is well formed, whose verdict is waited for."""
    content_id = place.add(label="approved")
    with Celery(broker=place.broker.url) as sender:
        for arguments, named in [*messages, ([[content_id]], {})]:
            sender.send_task("moderation.moderate", arguments, named, queue="moderation", serializer="json")
    assert place.client.wait(content_id, 30)[content_id].label == "approved"
    raw = place.broker.client()
    wait_until(lambda: raw.llen("moderation") == 0 and raw.hlen("unacked") == 0, "all messages to be done with", 30)
    assert place.workers[0].process.poll() is None


MESSAGES = st.lists(
    st.tuples(
        st.lists(JSON, max_size=4),
        st.dictionaries(st.sampled_from(["content_ids", "rescan", "backfill", "self", "x", ""]), JSON, max_size=3),
    ),
    max_size=8,
)


@QUICK
@given(messages=MESSAGES)
def test_any_arguments_of_the_task(busy_place: Place, messages: list[tuple[Any, Any]]) -> None:
    """None is delivered for ever, none ends the worker."""
    send(busy_place, messages)


@pytest.mark.long
@pytest.mark.timeout(900)
@MANY
@given(batch=BATCHES, messages=MESSAGES)
def test_any_entry_and_any_task_long(
    busy_place: Place, batch: list[tuple[str, dict[bytes, bytes]]], messages: list[tuple[Any, Any]]
) -> None:
    """The same, more of it and mixed."""
    throw_entries(busy_place, batch)
    send(busy_place, messages)


def test_and_nobody_was_banned_by_any_of_it(busy_place: Place) -> None:
    """After all that the tests above threw at this worker."""
    nobody_is_banned_but_by_a_person(busy_place)
    assert busy_place.workers[0].get("/healthz")[0] == 200


# -- hashes, which only workers and moderators may write


class Desk:
    """Publishes and corrects in this process, on one server that all examples share."""

    def __init__(self, url: str) -> None:
        self.redis = connection.connect(url)
        self.client = Moderation(url)
        self.intake = Intake(self.redis, "desk", 15)
        self.intake.ensure_groups()
        self.publisher = Publisher(self.redis, TTL_S)

    def outcome(self, content_id: str, label: str) -> Outcome:
        """An approved picture, or a ban, or undecided."""
        self.client.submit(content_id, rescan=True)
        [entry] = self.intake.read([bus.UPLOADS], 1)
        known: dict[str, Any] = {
            "content_id": content_id, "content_sha256": SHA, "frames": 1,
            "enqueued_at": "2026-11-24T00:00:00.000Z", "engine": "cpu-fp32", "weights": "tiny-0123456789ab",
        }  # fmt: skip
        if label == "undecided":
            return Outcome(entry, Undecided(**known, placement="held", reasons=("unreadable",)))
        risk = 0.9 if label == "risked" else 0.1
        odds = Probabilities(approved=1 - risk, not_suitable=0.0, risked=risk)
        ban = label == "risked"
        placement = "removed" if ban else "collective"
        document = Verdict(
            **known,
            label=label,
            ban=ban,
            review=False,
            placement=placement,
            probabilities=odds,
        )
        return Outcome(entry, document)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """On a server without workers."""
    broker = Broker(tmp_path_factory.mktemp("valkey"), appendonly="no")
    yield Desk(broker.url)
    broker.stop()


DECISION = st.one_of(
    RAW,
    st.fixed_dictionaries(
        {},
        optional={
            "entry": st.one_of(st.sampled_from(["1-1", "9" * 30 + "-0", "x", "", "1", "-", "1-1-1", "é-1"]), JSON),
            "label": st.one_of(st.sampled_from([*LABELS, "ban"]), JSON),
            "by": JSON,
        },
    ).map(lambda decision: json.dumps(decision).encode()),
)
OPENED = st.one_of(
    RAW,
    st.fixed_dictionaries({}, optional={"at": JSON, "bans": JSON, "decided": JSON}).map(
        lambda x: json.dumps(x).encode()
    ),
)


def is_a_decision(raw: bytes, label: str) -> bool:
    """Whether it says `label` in the form that correct.lua writes."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("label") == label and isinstance(said.get("entry"), str)


def publish_beside(desk: Desk, own: bytes, same: bytes, opened: bytes | None) -> None:
    """Everything is published, whatever the hashes hold, and only what is a decision of a person bans."""
    desk.redis.flushdb()
    desk.intake.ensure_groups()
    desk.redis.hset(bus.OVERRIDES, "mine", own)
    desk.redis.hset(bus.KNOWN, SHA, same)
    if opened is not None:
        desk.redis.hset(bus.WITHHELD, "#opened", opened)
    for label in ("approved", "undecided"):
        [became] = desk.publisher.publish([desk.outcome("mine", label)])
        assert isinstance(became, Published), became
    document = desk.client.verdict("mine")
    assert document is not None
    if document.ban:
        assert is_a_decision(own, "risked") or is_a_decision(same, "risked")
    assert desk.redis.xlen(bus.UPLOADS) == 0
    desk.client.correct("mine", "not_suitable", by="ann")
    Overruler(desk.redis, TTL_S).apply_waiting()
    if b"9" * 30 not in own:  # a person's decision of the far future stands against one of today
        assert desk.client.verdict("mine").label == "not_suitable"


@QUICK
@given(own=DECISION, same=DECISION, opened=st.none() | OPENED)
def test_any_override_and_known_content(desk: Desk, own: bytes, same: bytes, opened: bytes | None) -> None:
    """What is no decision of a person decides nothing and holds up nothing; a correction replaces it."""
    publish_beside(desk, own, same, opened)


@pytest.mark.long
@settings(MANY, max_examples=3000)
@given(own=DECISION, same=DECISION, opened=st.none() | OPENED)
def test_any_override_and_known_content_long(desk: Desk, own: bytes, same: bytes, opened: bytes | None) -> None:
    """The same, three thousand times."""
    publish_beside(desk, own, same, opened)


@QUICK
@given(opened=OPENED, bans=st.dictionaries(st.one_of(st.just(b"held"), st.binary(max_size=30)), RAW, max_size=5))
def test_any_withheld_ban(desk: Desk, opened: bytes, bans: dict[bytes, bytes]) -> None:
    """The breaker is open, can be looked at and closed, and what is no ban of ours takes no effect."""
    desk.redis.flushdb()
    desk.intake.ensure_groups()
    bans.pop(b"#opened", None)
    if bans:
        desk.redis.hset(bus.WITHHELD, mapping=bans)
    desk.redis.hset(bus.WITHHELD, "#opened", opened)
    [became] = desk.publisher.publish([desk.outcome("real", "risked")])
    assert isinstance(became, Published) and became.result == "withheld"
    said = breaker.status(desk.redis)
    assert said.opened_at is not None and said.opened_at.isprintable() and said.withheld == len(bans) + 1
    assert exporter.read(desk.redis).breaker == said
    assert "real" in list(breaker.withheld(desk.redis))
    done = breaker.close(desk.redis, apply=True, verdict_ttl_s=TTL_S)
    assert (done.applied, done.superseded) == (1, len(bans))
    assert [document.content_id for _, document in desk.client.verdicts() if document.ban] == ["real"]
    assert breaker.status(desk.redis).opened_at is None


def test_a_ban_withheld_for_another_takes_no_effect(desk: Desk) -> None:
    """A sound ban, copied under another content ID."""
    desk.redis.flushdb()
    desk.intake.ensure_groups()
    desk.redis.hset(bus.WITHHELD, "#opened", "{}")
    desk.publisher.publish([desk.outcome("real", "risked")])
    desk.redis.hset(bus.WITHHELD, "victim", desk.redis.hget(bus.WITHHELD, "real"))
    assert breaker.close(desk.redis, apply=True, verdict_ttl_s=TTL_S).applied == 1
    assert desk.client.verdict("victim") is None and desk.client.verdict("real").ban


# -- what a client is given


@QUICK
@given(
    content_id=st.one_of(st.text(max_size=140), st.binary(max_size=9), st.none(), st.integers(), st.lists(st.text()))
)
def test_a_client_takes_a_content_id_or_says_why_not(desk: Desk, content_id: Any) -> None:
    """The same rule at every door; nothing is enqueued or recorded where it is none."""
    desk.redis.flushdb()
    doors = {
        "submit": lambda: desk.client.submit([content_id]),
        "verdict": lambda: desk.client.verdict(content_id),
        "wait": lambda: desk.client.wait([content_id], 0.0),
        "correct": lambda: desk.client.correct(content_id, "approved", by="ann"),
    }
    well = isinstance(content_id, str) and re.match(CONTENT_ID_PATTERN, content_id) is not None
    for door in doors.values():
        try:
            door()
            refused = False
        except UsageError as error:
            refused = True
            assert len(str(error)) < 200 and "\n" not in str(error)
        except ModerationError:  # no verdict within no time
            refused = False
        assert refused != well
    assert desk.redis.xlen(bus.UPLOADS) == desk.redis.xlen(bus.CORRECTIONS) == well


@QUICK
@given(label=st.text(max_size=20) | st.sampled_from(LABELS), by=st.text(max_size=140))
def test_a_correction_is_recorded_or_refused(desk: Desk, label: str, by: str) -> None:
    """What is recorded can be read back as it was said."""
    desk.redis.flushdb()
    try:
        entry = desk.client.correct("c", label, by=by)
    except UsageError as error:
        assert "\n" not in str(error)
        assert label not in LABELS or not by.isprintable() or not by.strip() or len(by) > 128
        assert not desk.redis.exists(bus.CORRECTIONS)
    else:
        [said] = desk.client.corrections()
        assert (said.id, said.label, said.by) == (entry, label, by)


@QUICK
@given(after=st.text(max_size=45) | st.sampled_from(["$", "0-0-0", "18446744073709551616-0", "\udcff"]))
def test_any_place_to_go_on_from(desk: Desk, after: str) -> None:
    """Of verdicts and corrections: read from there, or one sentence."""
    for read in (desk.client.verdicts, desk.client.corrections):
        try:
            list(read(after))
        except ModerationError as error:
            assert str(error).endswith(".") and "\n" not in str(error)


@settings(deadline=None, max_examples=200)
@given(fields=FIELDS)
def test_any_entry_is_a_correction_or_none(fields: dict[bytes, bytes]) -> None:
    """As the trainer reads them, with no worker between."""
    try:
        said = corrections.parse(b"1-1", fields)
    except UsageError:
        assert not_well_formed(bus.CORRECTIONS, fields)
    else:
        assert not not_well_formed(bus.CORRECTIONS, fields) and said.at.year == 1970


@settings(deadline=None, max_examples=200)
@given(document=JSON, stuffing=st.dictionaries(st.sampled_from(["status", "ban", "label", "schema", "reasons"]), JSON))
def test_any_foreign_document_is_refused_by_the_parser(document: Any, stuffing: dict[str, Any]) -> None:
    """With ValueError and nothing else; a sound document with foreign values in it is no ban that was none."""
    sound = Undecided(
        content_id="c", placement="held", reasons=("unreadable",), weights=None, engine=None, content_sha256=None,
        frames=0, enqueued_at="2026-11-24T00:00:00.000Z",  # as documents have it
    )  # fmt: skip
    for text in (json.dumps(document), json.dumps(sound.to_dict() | stuffing)):
        try:
            read = parse(text)
        except ValueError:
            continue
        assert not read.ban and parse(read.to_json()) == read
