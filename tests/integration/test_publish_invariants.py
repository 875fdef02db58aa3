"""Exactly one effective verdict: any sequence of deliveries, publishes, rescans, retries; and garbage in every key."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.worker import Broker
from worker import bus, connection
from worker.client import Moderation
from worker.entry import Entry
from worker.errors import UnavailableError
from worker.intake import Intake
from worker.overrule import Overruler
from worker.publish import Outcome, Publisher
from worker.verdict import Label, Placement, Undecided, Verdict, parse

TTL_S = 1000
Document = Verdict | Undecided
ENQUEUED = datetime(2026, 11, 24, tzinfo=UTC)

# label, ban, review, placement: all that can be told apart from outside.
DECISIONS: dict[str, tuple[Any, bool, bool, Placement]] = {
    "approved": ("approved", False, False, "collective"),
    "approved, audited": ("approved", False, True, "collective"),
    "approved, held": ("approved", False, True, "held"),
    "not suitable": ("not_suitable", False, False, "author_only"),
    "risked": ("risked", False, True, "held"),
    "banned": ("risked", True, False, "removed"),
}
PERSONS = {"approved": "approved", "not suitable": "not_suitable", "banned": "risked"}
KINDS = [*DECISIONS, "unreadable", "not_found"]


def document(content_id: str, kind: str) -> Document:
    """What a worker would publish."""
    said: dict[str, Any] = {
        "content_id": content_id, "weights": "tiny-0123456789ab", "engine": "cpu-fp32", "content_sha256": "0" * 64,
        "frames": 1, "enqueued_at": ENQUEUED,
    }  # fmt: skip
    if kind not in DECISIONS:
        return Undecided(placement="held", reasons=(kind,), **said)
    label, ban, review, placement = DECISIONS[kind]
    return Verdict(label=label, ban=ban, review=review, placement=placement, probabilities=None, **said)


def outside(shown: Document) -> tuple[str | None, bool, bool, str]:
    """What decides whether a rescan changed anything."""
    return (shown.label, shown.ban, shown.review, shown.placement)


class Desk:
    """One worker's intake and publisher."""

    def __init__(self, broker: Broker, name: str = "desk", ttl_s: int = TTL_S) -> None:
        self.redis: redis.Redis = connection.connect(broker.url)
        self.intake = Intake(self.redis, name, 15)
        self.intake.ensure_groups()
        self.publisher = Publisher(self.redis, ttl_s)
        self.client = Moderation(broker.url)
        self.overruler = Overruler(self.redis, ttl_s)

    def deliver(self, content_id: str = "a", *, rescan: bool = False, backfill: bool = False) -> Entry:
        """One more entry, claimed."""
        stream = bus.BACKFILL if backfill else bus.UPLOADS
        self.redis.xadd(stream, {"content_id": content_id, "rescan": int(rescan)})
        (entry,) = self.intake.read([stream], 1)
        return entry

    def publish(self, entry: Entry, kind: str) -> str:
        """What became of it."""
        return self.publisher.publish([Outcome(entry, document(entry.content_id, kind))])[0][0]

    def effective(self, content_id: str = "a") -> list[Document]:
        """The entries of the verdict stream about one ID, each checked against its own document."""
        found = []
        for _, fields in bus.range_stream(self.redis, bus.VERDICTS, "-", count=100_000):
            if fields[b"content_id"] == content_id.encode():
                shown = parse(fields[b"verdict"])
                assert shown.content_id == content_id
                assert {name: value.decode() for name, value in fields.items() if name != b"verdict"} == {
                    b"content_id": content_id,
                    b"status": shown.status,
                    b"label": shown.label or "",
                    b"ban": str(int(shown.ban)),
                    b"review": str(int(shown.review)),
                    b"placement": shown.placement,
                }
                found.append(shown)
        return found

    def standing(self, content_id: str = "a") -> Document:
        """The verdict in force."""
        found: Any = self.redis.get(bus.verdict_key(content_id))
        return parse(found)

    def waiting(self) -> int:
        """Entries in the intake, claimed or not."""
        return int(self.redis.xlen(bus.UPLOADS)) + int(self.redis.xlen(bus.BACKFILL))


@pytest.fixture
def desk(broker: Broker) -> Desk:
    """A desk on this test's server."""
    return Desk(broker)


def place(entry: Entry) -> tuple[str, bytes]:
    """Names an entry; two streams may have the same ID in the same millisecond."""
    return (entry.stream, entry.entry_id)


@dataclass
class Model:
    """The contract's rules for one content ID, in Python."""

    effective: list[str] = field(default_factory=list)
    alive: set[tuple[str, bytes]] = field(default_factory=set)
    person: str | None = None
    answered_ms: int = 0  # when the latest rescan that a model answered was asked for

    def correct(self, kind: str) -> None:
        """A person decides, perhaps before any bytes were seen."""
        self.person = kind
        self.effective.append(kind)

    def publish(self, entry: Entry, kind: str) -> str:
        """What should become of it."""
        if place(entry) not in self.alive:
            return "gone"
        self.alive.discard(place(entry))
        kind = self.person or kind
        late = entry.rescan and self.answered_ms > entry.enqueued_ms
        if entry.rescan and kind in DECISIONS and not late:
            self.answered_ms = entry.enqueued_ms
        if self.effective:
            standing = self.effective[-1]
            if kind not in DECISIONS or (standing in DECISIONS and (late or not entry.rescan)):
                return "duplicate"
            if standing == kind:
                return "unchanged"
        self.effective.append(kind)
        return "published"


Step = tuple[str, Any]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), st.tuples(st.booleans(), st.booleans())),
        st.tuples(st.just("publish"), st.lists(st.tuples(st.integers(0, 9), st.sampled_from(KINDS)), min_size=1)),
        st.tuples(st.just("retry"), st.integers(0, 9)),
        st.tuples(st.just("look up"), st.none()),
        st.tuples(st.just("correct"), st.sampled_from(list(PERSONS))),
    ),
    max_size=30,
)  # fmt: skip


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_any_sequence_leaves_exactly_one_effective_verdict(broker: Broker, steps: Sequence[Step]) -> None:
    """The real server does at every step what the rules say, and the verdict stream tells one connected story.

    Entries are delivered (again), published by whoever holds or once held them, several in one round trip, put aside
    and back, and dropped where a verdict is known; people decide in between.
    """
    broker.client().flushall()
    content_id = "a"
    desk, model, entries = Desk(broker), Model(), []
    for what, how in steps:
        if what == "deliver":
            entries.append(desk.deliver(content_id, rescan=how[0], backfill=how[1]))
            model.alive.add(place(entries[-1]))
        elif what == "publish" and entries:
            chosen = [(entries[index % len(entries)], kind) for index, kind in how]
            became = desk.publisher.publish([Outcome(entry, document(content_id, kind)) for entry, kind in chosen])
            assert [published.result for published in became] == [model.publish(entry, kind) for entry, kind in chosen]
        elif what == "retry" and entries:
            entry = entries[how % len(entries)]
            assert desk.intake.postpone(entry, "not_found", 0, desk.intake.now_ms()) == (place(entry) in model.alive)
            if place(entry) in model.alive:
                model.alive.discard(place(entry))
                assert desk.intake.wake_due() == 1
                (again,) = desk.intake.read([entry.stream], 1)
                assert (again.content_id, again.rescan, again.attempt) == (content_id, entry.rescan, entry.attempt + 1)
                assert again.enqueued_ms == entry.enqueued_ms
                entries.append(again)
                model.alive.add(place(again))
        elif what == "correct":
            desk.client.correct(content_id, PERSONS[how], by="ann")
            assert desk.overruler.apply_waiting() == 1
            model.correct(how)
        elif what == "look up":
            held = [entry for entry in entries if place(entry) in model.alive]
            left = [entry for entry in held if desk.intake.without_known([entry])]
            known = bool(model.effective) and model.effective[-1] in DECISIONS
            assert left == [entry for entry in held if entry.rescan or not known]
            model.alive = {place(entry) for entry in left}
    check_story(desk, content_id, model)
    for entry in [entry for entry in entries if place(entry) in model.alive]:
        assert desk.publish(entry, "unreadable") == model.publish(entry, "unreadable")
    check_story(desk, content_id, model)
    assert desk.waiting() == 0


def check_story(desk: Desk, content_id: str, model: Model) -> None:
    """Each entry of the stream supersedes the one before it and differs from it; the last one is in force, on the bytes
    seen last: a rescan that agreed may have been the first to see any."""
    effective = desk.effective(content_id)
    assert [outside(shown) for shown in effective] == [outside(document(content_id, kind)) for kind in model.effective]
    moments = [shown.to_dict()["decided_at"] for shown in effective]
    assert [shown.supersedes for shown in effective] == [None, *moments][: len(moments)]
    assert sorted(set(moments)) == moments
    if effective:
        standing, last = desk.standing(content_id), effective[-1]
        assert (outside(standing), standing.decided_at, standing.supersedes) == (
            outside(last), last.decided_at, last.supersedes,
        )  # fmt: skip
        assert standing == last or (last.content_sha256, standing.content_sha256) == (None, "0" * 64)
    else:
        assert desk.redis.exists(bus.verdict_key(content_id)) == 0


def test_a_decision_made_before_any_look_is_about_no_bytes(desk: Desk) -> None:
    """A worker looks between the person's decision and the step that puts it into force: those bytes were not meant."""
    entry, twin = desk.deliver("a"), desk.deliver("twin")
    desk.client.correct("a", "risked", by="ann")
    assert desk.publish(entry, "approved") == "published"
    desk.overruler.apply_waiting()
    standing = desk.standing("a")
    assert (standing.label, standing.content_sha256) == ("risked", "0" * 64)
    assert desk.publish(twin, "approved") == "published"
    assert not desk.standing("twin").ban


def test_a_verdict_that_comes_while_a_decision_is_put_into_force_is_what_it_replaces(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what stands and the step: the document is made anew, of what stands then."""
    entry, put = desk.deliver("a"), desk.overruler._correct

    def after_the_verdict(**named: Any) -> Any:
        desk.publish(entry, "approved")
        return put(**named)

    desk.client.correct("a", "risked", by="ann")
    monkeypatch.setattr(desk.overruler, "_correct", after_the_verdict)
    desk.overruler.apply_waiting()
    before, standing = desk.effective("a")
    assert (standing.label, standing.supersedes) == ("risked", before.to_dict()["decided_at"])
    assert (standing.frames, standing.content_sha256) == (before.frames, before.content_sha256)


@pytest.mark.parametrize("key", [bus.OVERRIDES, bus.KNOWN, bus.WITHHELD])
def test_a_decision_that_cannot_be_kept_changes_no_verdict(desk: Desk, key: str) -> None:
    """The key holds something else: once that is mended the decision takes effect, and once only."""
    desk.publish(desk.deliver("a"), "approved")
    desk.client.correct("a", "risked", by="ann")
    desk.redis.set(key, "no hash")
    for _ in range(2):
        desk.overruler._reread_at = 0.0  # as its thread sets it after a failure
        with pytest.raises(UnavailableError):
            desk.overruler.apply_waiting()
    assert len(desk.effective("a")) == 1
    desk.redis.delete(key)
    desk.overruler._reread_at = 0.0
    desk.overruler.apply_waiting()
    assert [shown.ban for shown in desk.effective("a")] == [False, True]


def test_a_decision_on_new_bytes_leaves_the_one_on_those_before(desk: Desk) -> None:
    """The author of a banned picture puts another one there, which a person approves: who shows the first is banned."""
    desk.publish(desk.deliver("a"), "approved")
    desk.client.correct("a", "risked", by="ann")
    desk.overruler.apply_waiting()
    new = {"content_sha256": "1" * 64}
    desk.publisher.publish([Outcome(desk.deliver("a", rescan=True), document("a", "approved").model_copy(update=new))])
    desk.client.correct("a", "approved", by="ann")
    desk.overruler.apply_waiting()
    desk.publish(desk.deliver("twin"), "approved")
    assert (desk.standing("twin").label, desk.standing("twin").reasons) == ("risked", ("known_content",))
    desk.publisher.publish([Outcome(desk.deliver("other"), document("other", "banned").model_copy(update=new))])
    assert (desk.standing("other").label, desk.standing("other").reasons) == ("approved", ("known_content",))


@pytest.mark.parametrize(("first", "second"), [("approved", "risked"), ("risked", "approved"), ("risked", "risked")])
def test_a_decision_after_the_verdict_ran_out_says_of_the_bytes_before_no_more_than_that(
    desk: Desk, first: Label, second: Label
) -> None:
    """The author may have put others there since: a ban of those bans nobody who shows the first, nor is what was
    banned free for everybody. The same decision again leaves the first in force."""
    desk.publish(desk.deliver("a"), "approved")
    for label in (first, second):
        desk.client.correct("a", label, by="ann")
        desk.overruler.apply_waiting()
        assert desk.standing("a").label == label
        desk.redis.delete(bus.verdict_key("a"))
    desk.publish(desk.deliver("twin"), "not suitable")
    assert desk.standing("twin").label == (first if first == second else "not_suitable")
    desk.client.correct("a", "not_suitable", by="ann")
    desk.overruler.apply_waiting()
    assert desk.redis.hlen(bus.KNOWN) == 0


def test_a_decision_after_the_verdict_ran_out_takes_no_other_decision_back(desk: Desk) -> None:
    """Somebody has decided on the same bytes since, under another ID."""
    desk.publish(desk.deliver("a"), "approved")
    desk.publish(desk.deliver("b"), "approved")
    for content_id in ("a", "b"):
        desk.client.correct(content_id, "risked", by="ann")
    desk.overruler.apply_waiting()
    desk.redis.delete(bus.verdict_key("a"))
    desk.client.correct("a", "approved", by="ann")
    desk.overruler.apply_waiting()
    desk.publish(desk.deliver("twin"), "approved")
    assert desk.standing("twin").reasons == ("known_content",) and desk.standing("twin").ban


def test_a_decision_taken_back_between_two_looks_bans_nobody(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes were banned under another ID when they were looked up, and are free when the ban would be written."""
    desk.publish(desk.deliver("a"), "approved")
    desk.client.correct("a", "risked", by="ann")
    desk.overruler.apply_waiting()
    twin, ask = desk.deliver("twin"), desk.publisher._script

    def then_taken_back(**named: Any) -> Any:
        replies = ask(**named)
        desk.redis.delete(bus.KNOWN)
        return replies

    monkeypatch.setattr(desk.publisher, "_script", then_taken_back)
    assert desk.publish(twin, "approved") == "published"
    assert (desk.standing("twin").ban, desk.standing("twin").reasons) == (False, ())


def test_verdicts_of_one_millisecond_have_names_of_their_own(desk: Desk) -> None:
    """However many rescans go through in one round trip: content ID and decided_at together name one verdict."""
    entries = [desk.deliver(rescan=True) for _ in range(100)]
    kinds = [("approved", "risked")[number % 2] for number in range(100)]
    desk.publisher.publish([Outcome(entry, document("a", kind)) for entry, kind in zip(entries, kinds, strict=True)])
    effective = desk.effective()
    assert len({shown.decided_at for shown in effective}) == len(effective) == 100
    assert [shown.decided_at for shown in effective] == sorted(
        shown.decided_at for shown in effective if shown.decided_at
    )


@pytest.mark.parametrize(
    "garbage",
    [
        "", "null", "5", '"decided"', "[]", "{", "{}", '{"status":"decided"}', "\xff\xfe decided",
        '{"status":"decided","decided_at":null}', '{"status":"decided","decided_at":5}',
        '{"status":"decided","decided_at":{}}', '{"status":"decided","decided_at":"\\",\\"label\\":\\"approved"}',
        '{"status":"decided","decided_at":"soon"}', '{"status":"decided","decided_at":"2026-11-24T02:00:00.000Z\\n"}',
        "[" * 5000, '{"decided_at":' * 2000,
    ],
    ids=lambda garbage: garbage[:40],
)  # fmt: skip
def test_garbage_in_the_standing_key_holds_up_nothing(desk: Desk, garbage: str) -> None:
    """Whatever somebody wrote there, looking it up fails nobody, and the next verdict is a valid document."""
    desk.redis.set(bus.verdict_key("a"), garbage.encode("latin-1"))
    entry, other = desk.deliver("a"), desk.deliver("b")
    assert desk.intake.without_known([entry, other]) == [entry, other]
    assert desk.publish(entry, "approved") == "published"
    assert desk.publish(other, "approved") == "published"
    assert desk.standing().label == "approved"
    assert desk.standing().supersedes is None
    assert [outside(shown) for shown in desk.effective()] == [DECISIONS["approved"]]


def test_a_standing_key_of_another_type_holds_up_nothing(desk: Desk) -> None:
    """A list where the document should be: overwritten, and the others in the round trip are not concerned."""
    desk.redis.rpush(bus.verdict_key("a"), "x")
    entries = [desk.deliver("b"), desk.deliver("a"), desk.deliver("c")]
    assert desk.intake.without_known(entries) == entries
    became = desk.publisher.publish([Outcome(entry, document(entry.content_id, "approved")) for entry in entries])
    assert [published.result for published in became] == ["published"] * 3
    assert desk.standing("a").label == "approved"


@pytest.mark.parametrize("key", [bus.VERDICTS, bus.DEAD_LETTER])
def test_a_stream_key_of_another_type_loses_no_entry(desk: Desk, key: str) -> None:
    """The entry stays until the key is mended; then there is one verdict, one dead letter, and the entry leaves."""
    desk.redis.set(key, "no stream")
    entry = desk.deliver()
    outcome = Outcome(entry, document("a", "unreadable"), dead_letter=("killed_its_worker", "three times"))
    for _ in range(3):
        assert isinstance(desk.publisher.publish([outcome])[0], UnavailableError)
        assert desk.waiting() == 1
    desk.redis.delete(key)
    desk.publisher.publish([outcome])
    assert desk.waiting() == 0
    assert len(desk.effective()) == 1
    assert desk.redis.xlen(bus.DEAD_LETTER) == 1


def test_one_failing_outcome_keeps_no_other_from_being_published(desk: Desk) -> None:
    """Those beside it in the round trip take effect, once, however often the whole round trip is tried again."""
    desk.redis.set(bus.DEAD_LETTER, "no stream")
    entries = [desk.deliver(name) for name in ("a", "b", "c")]
    outcomes = [Outcome(entry, document(entry.content_id, "approved")) for entry in entries]
    outcomes[1] = Outcome(entries[1], document("b", "unreadable"), dead_letter=("killed_its_worker", ""))
    became = desk.publisher.publish(outcomes)
    assert [isinstance(one, UnavailableError) for one in became] == [False, True, False]
    assert isinstance(desk.publisher.publish(outcomes)[1], UnavailableError)
    assert (len(desk.effective("a")), len(desk.effective("c")), desk.waiting()) == (1, 1, 1)


def test_a_dead_letter_can_be_replayed_into_a_verdict(desk: Desk) -> None:
    """What was given up is undecided; replayed and judged after all, the decision takes its place."""
    outcome = Outcome(desk.deliver(), document("a", "unreadable"), dead_letter=("killed_its_worker", "three times"))
    desk.publisher.publish([outcome])
    assert desk.publish(desk.deliver(), "approved") == "published"
    first, second = desk.effective()
    assert second.supersedes == first.to_dict()["decided_at"]


def test_an_unchanged_rescan_keeps_the_verdict_for_another_ttl(desk: Desk) -> None:
    """The key's time starts anew, and no entry is written; a duplicate does not prolong it."""
    desk.publish(desk.deliver(), "approved")
    desk.redis.expire(bus.verdict_key("a"), 10)
    assert desk.publish(desk.deliver(), "approved") == "duplicate"
    assert desk.redis.ttl(bus.verdict_key("a")) <= 10
    assert desk.publish(desk.deliver(rescan=True), "approved") == "unchanged"
    assert desk.redis.ttl(bus.verdict_key("a")) > 10
    assert len(desk.effective()) == 1


def test_a_verdict_that_ran_out_is_made_again(desk: Desk) -> None:
    """After the TTL nothing stands: the next delivery is judged and published, superseding nothing."""
    desk.publish(desk.deliver(), "approved")
    desk.redis.delete(bus.verdict_key("a"))
    entry = desk.deliver()
    assert desk.intake.without_known([entry]) == [entry]
    assert desk.publish(entry, "banned") == "published"
    assert desk.standing().supersedes is None


def test_the_verdict_stream_reaches_back_as_far_as_the_ttl(broker: Broker) -> None:
    """What is older goes, in lots of a hundred as streams are stored; what is younger stays."""
    desk = Desk(broker, ttl_s=3600)
    now_ms = bus.now_ms(desk.redis)
    for number in range(500):
        desk.redis.xadd(bus.VERDICTS, {"content_id": "old"}, id=f"{now_ms - 7_200_000}-{number + 1}")
    for number in range(300):
        desk.redis.xadd(bus.VERDICTS, {"content_id": "young"}, id=f"{now_ms - 1_800_000}-{number + 1}")
    desk.publish(desk.deliver(), "approved")
    names = [fields[b"content_id"] for _, fields in bus.range_stream(desk.redis, bus.VERDICTS, "-", count=10_000)]
    assert names.count(b"young") == 300
    assert names.count(b"old") < 100
    assert names[-1] == b"a"


def test_no_key_without_a_ttl_but_those_that_live_on(desk: Desk) -> None:
    """After every way an entry can leave."""
    desk.intake.mark_alone(alone := desk.deliver("alone"))
    assert 0 < desk.redis.ttl(alone.alone_key) <= 86400
    desk.publish(alone, "approved")
    assert desk.redis.exists(alone.alone_key) == 0
    desk.publish(desk.deliver("alone", rescan=True), "approved")
    assert desk.redis.ttl(bus.ANSWERED_PREFIX + "alone") > 600, "longer than anything stays in work"
    desk.intake.mark_alone(postponed := desk.deliver("postponed"))
    desk.intake.postpone(postponed, "not_found", 60_000, desk.intake.now_ms())
    assert desk.redis.exists(postponed.alone_key) == 0
    desk.publisher.publish([Outcome(desk.deliver("dead"), document("dead", "unreadable"), dead_letter=("x", "y"))])
    lasting = {key.encode() for key in (bus.UPLOADS, bus.BACKFILL, bus.VERDICTS, bus.DEAD_LETTER, bus.RETRY)}
    assert {key for key in desk.redis.scan_iter() if desk.redis.ttl(key) == -1} <= lasting


GARBAGE_MEMBERS = [
    "", "null", "{", "5", "[]", '{"content_id":null}', '{"content_id":{}}', '{"content_id":5}',
    '{"content_id":"x","rescan":"often","enqueued_ms":null,"not_found_since_ms":[],"fetch_failed_since_ms":-5,"attempt":{}}',
    '{"content_id":"x","enqueued_ms":1e400}', '{"content_id":"../x"}',
]  # fmt: skip


def test_garbage_among_what_waits_for_another_attempt_holds_up_nothing(desk: Desk) -> None:
    """Members that are none of ours go; ours come back, and so does what names an ID at all."""
    for member in GARBAGE_MEMBERS:
        desk.redis.zadd(bus.RETRY, {member: 1})
    desk.intake.postpone(desk.deliver("ours", rescan=True), "not_found", 0, desk.intake.now_ms())
    assert desk.intake.wake_due() == len(GARBAGE_MEMBERS) + 1
    assert desk.redis.zcard(bus.RETRY) == 0
    read = desk.intake.read([bus.UPLOADS], 100)
    assert [entry.content_id for entry in read if entry.content_id != "x"] == ["ours"]
    assert all(desk.publish(entry, "approved") in ("published", "duplicate") for entry in read)
    assert desk.waiting() == 0


def test_what_is_not_due_yet_waits(desk: Desk) -> None:
    """A postponed entry comes back after its pause, not before."""
    desk.intake.postpone(desk.deliver(), "not_found", 59_000, desk.intake.now_ms())
    assert desk.intake.wake_due() == 0
    assert (desk.waiting(), desk.redis.zcard(bus.RETRY)) == (0, 1)
    ((_, due_ms),) = desk.redis.zrange(bus.RETRY, 0, -1, withscores=True)
    assert abs(due_ms - desk.intake.now_ms() - 59_000) < 30_000


def test_a_clock_set_back_strands_nothing(desk: Desk) -> None:
    """What is due in an hour was put there before: no pause lasts longer than a minute."""
    desk.intake.postpone(desk.deliver(), "not_found", 1000, desk.intake.now_ms())
    ((member, due_ms),) = desk.redis.zrange(bus.RETRY, 0, -1, withscores=True)
    desk.redis.zadd(bus.RETRY, {member: due_ms + 3_600_000})
    assert desk.intake.wake_due() == 1
    assert (desk.waiting(), desk.redis.zcard(bus.RETRY)) == (1, 0)


def test_an_outcome_about_another_picture_cannot_be_built(desk: Desk) -> None:
    """Nor one that says itself when it was decided."""
    entry = desk.deliver()
    with pytest.raises(ValueError, match="own content ID"):
        Outcome(entry, document("b", "approved"))
    decided = parse(json.dumps(document("a", "approved").to_dict() | {"decided_at": "2026-11-24T02:00:00.000Z"}))
    with pytest.raises(ValueError, match="decided_at"):
        Outcome(entry, decided)
    again = parse(json.dumps(document("a", "approved").to_dict() | {"supersedes": "2026-11-24T02:00:00.000Z"}))
    with pytest.raises(ValueError, match="supersedes"):
        Outcome(entry, again)
