"""The publish step on a real server: which verdict stands, and that an entry leaves only with one."""

import dataclasses
import datetime
from itertools import cycle, islice, repeat
from typing import Any

import pytest
import redis

from tests.support.meanwhile import Meanwhile
from tests.support.waiting import wait_until
from tests.support.worker import Broker, free_port
from worker import bus, connection
from worker.client import Moderation
from worker.entry import Entry
from worker.errors import UnavailableError, UsageError
from worker.intake import Intake
from worker.overrule import Overruler
from worker.publish import Outcome, Publisher
from worker.verdict import Probabilities, Undecided, Verdict, parse

TTL_S = 1000
NOW = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
SAID = {"weights": None, "engine": None, "content_sha256": "0" * 64, "frames": 1, "enqueued_at": NOW}
OTHER_BYTES = "1" * 64


def decided(label: str, *, ban: bool = False, **changed: Any) -> Verdict:
    """A verdict on `a`, usual but for what is named."""
    placement = "removed" if ban else {"approved": "collective", "not_suitable": "author_only", "risked": "held"}[label]
    shares = {name: float(name == label) for name in ("approved", "not_suitable", "risked")}
    return Verdict(
        content_id="a", label=label, ban=ban, review=placement == "held", placement=placement,
        probabilities=Probabilities(**shares), **SAID,
    ).model_copy(update=changed)  # fmt: skip


def undecided(reason: str = "unreadable", **changed: Any) -> Undecided:
    """An undecided outcome on `a`, usual but for what is named."""
    return Undecided(content_id="a", placement="held", reasons=(reason,), **{**SAID, **changed})


def test_a_reader_past_whom_verdicts_run_out_is_told(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and not while all is read in time: a slow reader misses bans as one does who was away."""
    raw, document = broker.client(), decided("approved", decided_at=NOW).to_json()
    for number in range(1, 1501):
        raw.xadd(bus.VERDICTS, {"verdict": document}, id=f"{number}-1")
    client = Moderation(broker.url)
    reader = client.verdicts()
    next(reader)
    raw.xtrim(bus.VERDICTS, minid="400-1", approximate=False)
    assert len(list(islice(reader, 500))) == 500
    assert not caplog.messages, "what ran out had been read"
    raw.xtrim(bus.VERDICTS, minid="1200-1", approximate=False)
    assert [entry_id for entry_id, _ in reader][499:] == [f"{number}-1" for number in range(1200, 1501)]
    client.close()
    assert [message.partition(":")[0] for message in caplog.messages] == ["the stream of verdicts begins after 1000-1"]


class Desk:
    """Delivers `a` again and again and publishes what it is told."""

    def __init__(self, broker: Broker) -> None:
        self.raw: redis.Redis = broker.client()
        self._bus = connection.connect(broker.url)
        self.intake = Intake(self._bus, "desk", 15)
        self.intake.ensure_groups()
        self.publisher = Publisher(self._bus, TTL_S)

    def deliver(self, *, rescan: bool = False) -> Entry:
        """One more entry for `a`, claimed."""
        self.raw.xadd(bus.UPLOADS, {"content_id": "a", "rescan": int(rescan)})
        return self.intake.read([bus.UPLOADS], 1)[0]

    def publish(self, document: Verdict | Undecided, *, rescan: bool = False) -> str:
        """What became of it."""
        return self.publisher.publish([Outcome(self.deliver(rescan=rescan), document)])[0][0]

    def standing(self) -> Verdict | Undecided:
        """The verdict in force."""
        return parse(self.raw.get(bus.verdict_key("a")))

    def entries(self) -> int:
        """Entries in the verdict stream."""
        return int(self.raw.xlen(bus.VERDICTS))


@pytest.fixture
def desk(broker: Broker) -> Desk:
    """A desk on this test's server."""
    return Desk(broker)


@pytest.mark.parametrize(
    ("first", "second", "rescan", "became", "entries"),
    [
        (decided("approved"), decided("risked", ban=True), False, "duplicate", 1),
        (decided("approved"), decided("risked", ban=True), True, "published", 2),
        (decided("approved"), decided("approved"), True, "unchanged", 1),
        (decided("risked"), decided("risked", ban=True), True, "published", 2),
        (decided("approved"), decided("risked", ban=True, content_sha256=OTHER_BYTES), False, "duplicate", 1),
        (decided("approved"), undecided(), False, "duplicate", 1),
        (decided("approved"), undecided(content_sha256=OTHER_BYTES), True, "duplicate", 1),
        (decided("approved"), undecided(), True, "duplicate", 1),
        (decided("risked"), decided("risked", placement="author_only"), True, "published", 2),
        (decided("not_suitable"), decided("not_suitable", review=True), True, "published", 2),
        (decided("not_suitable", review=True), decided("risked", placement="author_only"), True, "published", 2),
        (undecided(), decided("approved"), False, "published", 2),
        (undecided(), undecided("not_found", content_sha256=None), False, "duplicate", 1),
        (undecided(), undecided("not_found", content_sha256=None), True, "duplicate", 1),
    ],
)
def test_which_verdict_stands(desk: Desk, first, second, rescan: bool, became: str, entries: int) -> None:
    """The contract's rules for a second outcome on one content ID."""
    assert desk.publish(first) == "published"
    before = desk.standing()
    assert desk.publish(second, rescan=rescan) == became
    assert desk.entries() == entries
    after = desk.standing()
    if became == "published":
        shown = ("label", "ban", "review", "placement")
        assert [getattr(after, name) for name in shown] == [getattr(second, name) for name in shown]
        assert after.supersedes == before.to_dict()["decided_at"]
    else:
        assert after == before
    assert desk.raw.xlen(bus.UPLOADS) == 0
    assert 0 < desk.raw.ttl(bus.verdict_key("a")) <= TTL_S


@pytest.mark.parametrize(
    ("second", "judged"),
    [(decided("approved"), True), (decided("risked", ban=True), True), (undecided(), False)],
)
def test_what_a_model_decided_is_told_apart(broker: Broker, desk: Desk, second, judged: bool) -> None:
    """Whether it changes the verdict or agrees; not what a person's decision stands in for."""
    desk.publish(decided("approved"))
    [told] = desk.publisher.publish([Outcome(desk.deliver(rescan=True), second)])
    assert told.judged == (second if judged else None)
    Moderation(broker.url).correct("a", "approved", by="ann")
    Overruler(connection.connect(broker.url), TTL_S).apply_waiting()
    [told] = desk.publisher.publish([Outcome(desk.deliver(rescan=True), second)])
    assert told.judged is None


def test_what_agrees_on_other_bytes_is_the_same_verdict_on_those(desk: Desk) -> None:
    """For whoever looks at the picture now; it runs out like any other."""
    desk.publish(decided("approved"))
    before = desk.standing()
    assert desk.publish(decided("approved", content_sha256=OTHER_BYTES), rescan=True) == "unchanged"
    assert desk.standing() == before.model_copy(update={"content_sha256": OTHER_BYTES})
    assert 0 < desk.raw.ttl(bus.verdict_key("a")) <= TTL_S


def asked(entry: Entry, document: Verdict, at_ms: int) -> Outcome:
    """The outcome of a request that was made at that moment."""
    moment = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    return Outcome(dataclasses.replace(entry, enqueued_ms=at_ms), document.model_copy(update={"enqueued_at": moment}))


def test_of_two_rescans_the_answer_to_the_later_request_stands(desk: Desk) -> None:
    """Bytes are replaced twice, and the worker that read the older ones publishes last."""
    desk.publish(decided("approved"))
    earlier, later = desk.deliver(rescan=True), desk.deliver(rescan=True)
    now_ms = later.enqueued_ms
    assert desk.publisher.publish([asked(later, decided("risked", ban=True), now_ms - 1000)])[0][0] == "published"
    assert desk.publisher.publish([asked(earlier, decided("approved"), now_ms - 2000)])[0][0] == "duplicate"
    assert desk.standing().label == "risked"
    assert desk.raw.xlen(bus.UPLOADS) == 0


def test_a_later_rescan_that_agreed_counts_as_well(desk: Desk) -> None:
    """Bytes are replaced and put back: the answer to the later request is no news, and still the one that stands."""
    desk.publish(decided("approved"))
    earlier, later = desk.deliver(rescan=True), desk.deliver(rescan=True)
    now_ms = later.enqueued_ms
    assert desk.publisher.publish([asked(later, decided("approved"), now_ms - 1000)])[0][0] == "unchanged"
    assert desk.publisher.publish([asked(earlier, decided("risked", ban=True), now_ms - 2000)])[0][0] == "duplicate"
    assert desk.standing().label == "approved"


def test_a_later_rescan_that_found_nothing_out_answers_nothing(desk: Desk) -> None:
    """The picture could not be fetched then: what the earlier one found still takes effect."""
    desk.publish(decided("approved"))
    earlier, later = desk.deliver(rescan=True), desk.deliver(rescan=True)
    earlier = dataclasses.replace(earlier, enqueued_ms=later.enqueued_ms - 1000)
    assert desk.publisher.publish([Outcome(later, undecided("fetch_failed"))])[0][0] == "duplicate"
    assert desk.publisher.publish([Outcome(earlier, decided("risked", ban=True))])[0][0] == "published"


def test_a_request_dated_in_the_future_bars_no_rescan(desk: Desk) -> None:
    """Whoever may submit may write any date."""
    first, second = desk.deliver(rescan=True), desk.deliver(rescan=True)
    now_ms = second.enqueued_ms
    assert desk.publisher.publish([asked(first, decided("approved"), now_ms + 86_400_000)])[0][0] == "published"
    wait_until(lambda: bus.now_ms(desk.raw) > now_ms + 50, "time to pass")
    third = desk.deliver(rescan=True)
    assert desk.publisher.publish([asked(third, decided("risked", ban=True), third.enqueued_ms)])[0][0] == "published"


def test_who_lost_the_entry_publishes_nothing(desk: Desk) -> None:
    """The same entry published twice, as by a worker that was stopped, taken over and resumed."""
    entry = desk.deliver()
    assert desk.publisher.publish([Outcome(entry, decided("approved"))])[0][0] == "published"
    assert desk.publisher.publish([Outcome(entry, decided("risked", ban=True))])[0][0] == "gone"
    assert desk.entries() == 1 and desk.standing().label == "approved"


def test_an_entry_id_given_out_twice_takes_nobody_elses_entry(desk: Desk) -> None:
    """A server that lost its newest entries, with its clock behind, gives their IDs to others: what is still in work
    on the first owner of one must neither publish, nor postpone, nor drop the second."""
    mine = desk.deliver()
    desk.raw.delete(bus.UPLOADS)
    desk.intake.ensure_groups()
    desk.raw.xadd(bus.UPLOADS, {"content_id": "b"}, id=mine.entry_id)
    assert desk.publisher.publish([Outcome(mine, decided("risked", ban=True))])[0][0] == "gone"
    assert not desk.intake.postpone(mine, "not_found", 1000, desk.intake.now_ms())
    standing = decided("approved").model_copy(update={"decided_at": NOW})
    desk.raw.set(bus.verdict_key("a"), standing.to_json())
    assert desk.intake.without_known([mine]) == []
    assert [entry.content_id for entry in desk.intake.read([bus.UPLOADS], 5)] == ["b"]
    assert (desk.entries(), desk.raw.zcard(bus.RETRY)) == (0, 0)


def test_a_server_that_became_a_replica_is_left(desk: Desk) -> None:
    """Its refusals lie inside the script's answer: they must close the connection, or the same one is asked for ever
    after a fail-over behind one address."""
    outcome = Outcome(desk.deliver(), decided("approved"))
    desk.raw.replicaof("127.0.0.1", str(free_port()))
    with pytest.raises(UnavailableError, match="does not answer"):
        desk.publisher.publish([outcome])
    connections = desk._bus.connection_pool
    assert not any(connection.is_connected for connection in connections._available_connections)
    desk.raw.replicaof("NO", "ONE")
    assert desk.publisher.publish([outcome])[0][0] == "published"


def test_times_are_the_servers(desk: Desk) -> None:
    """decided_at is Redis's clock to the millisecond, written as everywhere."""
    at_ms = desk.publisher.publish([Outcome(desk.deliver(), decided("approved"))])[0][1]
    moment = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    assert desk.standing().to_dict()["decided_at"] == moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at_ms % 1000:03d}Z"


def test_dates_are_right_for_a_century(broker: Broker) -> None:
    """The script's own calendar against Python's, leap years and century's end included."""
    raw = broker.client()
    for day in range(0, 47_500, 97):
        ms = day * 86_400_000 + 86_399_999
        moment = datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC)
        assert (
            raw.eval(f"{bus.script('clock')} return iso({ms})", 0) == moment.strftime("%Y-%m-%dT%H:%M:%S.999Z").encode()
        )


def test_a_dead_letter_and_its_verdict_are_one_step(desk: Desk) -> None:
    """What is given up is undecided for everybody else, and kept with its reason."""
    outcome = Outcome(desk.deliver(), undecided("model_failed"), dead_letter=("killed_its_worker", "three times"))
    assert desk.publisher.publish([outcome])[0][0] == "published"
    (_, letter), = desk.raw.xrange(bus.DEAD_LETTER)  # fmt: skip
    assert (letter[b"content_id"], letter[b"reason"]) == (b"a", b"killed_its_worker")
    assert desk.standing().reasons == ("model_failed",)


def test_garbage_in_the_verdicts_place_is_replaced(desk: Desk) -> None:
    """Somebody wrote there: the picture gets its verdict all the same."""
    desk.raw.set(bus.verdict_key("a"), b"\xff not json")
    assert desk.publish(decided("approved")) == "published"


def test_a_failing_publish_loses_no_entry(desk: Desk) -> None:
    """The verdict stream's key holds something else: the entry stays, and is published once that is mended."""
    desk.raw.set(bus.VERDICTS, "no stream")
    entry = desk.deliver()
    assert isinstance(desk.publisher.publish([Outcome(entry, decided("approved"))])[0], UnavailableError)
    assert desk.raw.xlen(bus.UPLOADS) == 1
    desk.raw.delete(bus.VERDICTS)
    assert desk.publisher.publish([Outcome(entry, decided("approved"))])[0][0] == "published"
    assert desk.raw.xlen(bus.UPLOADS) == 0


def test_a_decision_that_changes_at_every_look_leaves_the_entry_in_work(broker: Broker, desk: Desk) -> None:
    """Not settled is not gone: whoever publishes keeps it, and tries again."""
    people, overruler = Moderation(broker.url), Overruler(desk._bus, TTL_S)
    labels = cycle(["risked", "approved"])

    def decide() -> None:
        people.correct("a", next(labels), by="ann")
        overruler.apply_waiting()

    outcome = Outcome(desk.deliver(), decided("not_suitable"))
    busy = Publisher(Meanwhile.of(broker, before_scripts=repeat(decide)), TTL_S)
    assert isinstance(busy.publish([outcome])[0], UnavailableError)
    assert desk.raw.xlen(bus.UPLOADS) == 1
    latest = desk.standing().label
    assert desk.publisher.publish([outcome])[0][0] == "duplicate"
    assert (desk.standing().label, desk.standing().reasons) == (latest, ("human",))
    assert desk.raw.xlen(bus.UPLOADS) == 0


def test_a_call_that_is_refused_as_a_whole_loses_no_entry(desk: Desk) -> None:
    """As by an access list: each outcome is told why, all entries stay, and are published once that is mended."""
    for content_id in ("a", "b"):
        desk.raw.xadd(bus.UPLOADS, {"content_id": content_id})
    entries = desk.intake.read([bus.UPLOADS], 2)
    outcomes = [Outcome(e, decided("approved", content_id=e.content_id)) for e in entries]
    desk.raw.execute_command("ACL", "SETUSER", "default", "-evalsha")
    refused = desk.publisher.publish(outcomes)
    assert [type(became) for became in refused] == [UsageError] * 2
    assert all("ACL" in str(became) for became in refused)
    desk.raw.execute_command("ACL", "SETUSER", "default", "+evalsha")
    assert (desk.raw.xlen(bus.UPLOADS), desk.entries()) == (2, 0)
    assert [became[0] for became in desk.publisher.publish(outcomes)] == ["published"] * 2


def test_scripts_survive_a_flush(desk: Desk) -> None:
    """A fail-over or SCRIPT FLUSH forgets the scripts; they are sent again."""
    assert desk.publish(decided("approved")) == "published"
    desk.raw.script_flush()
    assert desk.publish(decided("approved")) == "duplicate"
    assert desk.intake.wake_due() == 0


def test_a_hundred_outcomes_take_a_handful_of_calls(desk: Desk) -> None:
    """Each is published, in the order given, and the server is asked once for many: not several times for each."""
    ids = [f"many{number}" for number in range(100)]
    for content_id in ids:
        desk.raw.xadd(bus.UPLOADS, {"content_id": content_id})
    entries = desk.intake.read([bus.UPLOADS], len(ids))
    outcomes = [Outcome(e, decided("approved").model_copy(update={"content_id": e.content_id})) for e in entries]
    desk.publish(undecided())  # the server knows the script
    desk.raw.config_resetstat()
    assert [became.result for became in desk.publisher.publish(outcomes)] == ["published"] * len(ids)
    sent = {name: stat["calls"] for name, stat in desk.raw.info("commandstats").items()}
    assert sent["cmdstat_evalsha"] <= 4
    assert "cmdstat_script|exists" not in sent
    assert [fields[b"content_id"].decode() for _, fields in desk.raw.xrange(bus.VERDICTS)][1:] == ids
    assert desk.raw.xlen(bus.UPLOADS) == 0


def test_one_refused_outcome_leaves_the_others_of_its_call_alone(desk: Desk) -> None:
    """The server's error stands in its place, its entry stays in the intake, and the others are published."""
    for content_id in ("before", "refused", "after"):
        desk.raw.xadd(bus.UPLOADS, {"content_id": content_id})
    entries = desk.intake.read([bus.UPLOADS], 3)
    desk.raw.set(bus.DEAD_LETTER, "not a stream")
    outcomes = [
        Outcome(
            entry,
            undecided().model_copy(update={"content_id": entry.content_id}),
            dead_letter=("why", "so") if entry.content_id == "refused" else None,
        )
        for entry in entries
    ]
    first, second, third = desk.publisher.publish(outcomes)
    assert (first[0], third[0]) == ("published", "published")
    assert isinstance(second, UnavailableError)
    assert [fields[b"content_id"] for _, fields in desk.raw.xrange(bus.UPLOADS)] == [b"refused"]
