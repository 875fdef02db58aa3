"""The ban circuit breaker on a real server: it opens in the publish step, over all workers, and a person closes it."""

import datetime
import subprocess
import sys
import urllib.request
from dataclasses import replace
from itertools import count

import pytest

from tests.support.meanwhile import Meanwhile
from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY, Broker, free_port
from worker import breaker, bus, connection
from worker.client import Moderation
from worker.errors import UnavailableError
from worker.intake import Intake
from worker.overrule import Overruler
from worker.publish import BAN_SHARE_DECIDED, Outcome, Published, Publisher, Quota
from worker.verdict import Probabilities, Undecided, Verdict
from worker.verdict import withheld as for_a_person

TTL_S = 1000
NOW = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
_numbers = count()


class Desk:
    """Publishes whatever it is told, as workers would."""

    def __init__(self, broker: Broker, quota: Quota) -> None:
        self.raw = broker.client()
        self.client = Moderation(broker.url)
        self._bus = connection.connect(broker.url)
        self._intake = Intake(self._bus, "desk", 15)
        self._intake.ensure_groups()
        self.publisher = Publisher(self._bus, TTL_S, quota=quota)
        self.overruler = Overruler(self._bus, TTL_S)

    def outcome(self, risk: float, content_id: str | None = None, *, rescan: bool = False) -> Outcome:
        """A picture judged: banned from p(risked) 0.6 on, else approved."""
        content_id = content_id or f"c{next(_numbers)}"
        self.client.submit(content_id, rescan=rescan)
        [entry] = self._intake.read([bus.UPLOADS], 1)
        ban = risk >= 0.6
        document = Verdict(
            content_id=content_id, label="risked" if ban else "approved", ban=ban, review=False,
            placement="removed" if ban else "collective",
            probabilities=Probabilities(approved=1 - risk, not_suitable=0.0, risked=risk),
            weights="tiny-0123456789ab", engine="cpu-fp32", content_sha256=f"{hash(content_id) % 16**9:064x}", frames=1,
            enqueued_at=NOW,
        )  # fmt: skip
        return Outcome(entry, document)

    def publish(self, *outcomes: Outcome) -> list[str]:
        """What became of them."""
        found = []
        for published in self.publisher.publish(outcomes):
            assert isinstance(published, Published)
            found.append(published.result)
        return found

    def harmless(self, number: int) -> None:
        """So many approved pictures."""
        assert set(self.publish(*[self.outcome(0.1) for _ in range(number)])) <= {"published"}

    def bans(self, number: int) -> list[str]:
        """What became of so many bans."""
        return self.publish(*[self.outcome(0.9) for _ in range(number)])

    def effective(self, content_id: str) -> list[Verdict | Undecided]:
        """The effective verdicts on one content ID."""
        return [document for _, document in self.client.verdicts() if document.content_id == content_id]


@pytest.fixture
def desk(broker: Broker) -> Desk:
    """Opens above three bans."""
    return Desk(broker, Quota(share=1.0, count=3))


def test_a_share_counts_among_enough_pictures_only(broker: Broker) -> None:
    """A fifth of at least 500 decided: the ban that would exceed it is the first to be withheld."""
    desk = Desk(broker, Quota(share=0.2))
    assert set(desk.bans(50)) == {"published"}, "however great the share of a few"
    desk.harmless(BAN_SHARE_DECIDED - 50 - 1)
    assert set(desk.bans(62)) == {"published"}, "112 of 561 are below a fifth"
    assert desk.bans(3) == ["opened", "withheld", "withheld"]
    said = breaker.status(desk.raw)
    assert said.opened_at is not None
    assert (said.bans, said.decided, said.withheld) == (113, 562, 3)


@pytest.mark.parametrize("harmless", [399, 400], ids=["from the 500th on", "above it, not at it"])
def test_where_a_share_begins_to_count(broker: Broker, harmless: int) -> None:
    """A hundred bans are published, the last of them at most a fifth of 500 decided; one more is too many."""
    desk = Desk(broker, Quota(share=0.2))
    desk.harmless(harmless)
    assert set(desk.bans(100)) == {"published"}
    assert desk.bans(1) == ["opened"]


def test_a_withheld_ban_waits_for_a_person(desk: Desk) -> None:
    """As risked as before and in the stream like any verdict, but no ban; nothing else is held up."""
    assert desk.bans(3) == ["published"] * 3
    assert desk.publish(desk.outcome(0.9, "late")) == ["opened"]
    document = desk.client.verdict("late")
    assert (document.label, document.ban, document.review, document.placement) == ("risked", False, True, "held")
    assert document.reasons == ("circuit_breaker",) and document.probabilities.risked == 0.9
    assert desk.effective("late") == [document]
    assert desk.publish(desk.outcome(0.1, "harmless")) == ["published"]
    assert set(breaker.withheld(desk.raw)) == {"late"}


def test_apply_lets_the_bans_take_effect_once(desk: Desk) -> None:
    """Each supersedes what was published instead; the count begins anew."""
    desk.bans(3)
    held = [desk.outcome(0.9, f"held{number}") for number in range(450)]
    assert desk.publish(*held) == ["opened"] + ["withheld"] * 449
    before = desk.client.verdict("held0")
    done = breaker.close(desk.raw, apply=True, verdict_ttl_s=TTL_S)
    assert (done.applied, done.superseded, done.discarded) == (450, 0, 0)
    after = desk.client.verdict("held0")
    assert (after.ban, after.review, after.placement, after.reasons) == (True, False, "removed", ())
    assert after.supersedes == before.to_dict()["decided_at"]
    assert (after.probabilities, after.weights) == (before.probabilities, before.weights)
    assert all(len(desk.effective(outcome.entry.content_id)) == 2 for outcome in held[:3])
    assert breaker.status(desk.raw) == breaker.Status(None, 0, 0, 0)
    assert 0 < desk.raw.ttl("moderation:verdict:held0") <= TTL_S
    assert breaker.close(desk.raw, apply=True, verdict_ttl_s=TTL_S) is None
    assert desk.bans(4) == ["published"] * 3 + ["opened"]


def test_a_ban_withheld_just_before_it_closes_takes_effect_too(broker: Broker, desk: Desk) -> None:
    """Workers go on while a person closes it: what came after the last look at what is withheld is not thrown away."""
    desk.bans(3)
    desk.publish(desk.outcome(0.9, "held"))
    during = Meanwhile.of(broker, before_scripts=[lambda: desk.publish(desk.outcome(0.9, "late"))])
    done = breaker.close(during, apply=True, verdict_ttl_s=TTL_S)
    assert (done.applied, done.superseded, done.discarded) == (2, 0, 0)
    assert desk.client.verdict("held").ban and desk.client.verdict("late").ban


def test_a_ban_withheld_anew_while_it_closes_takes_effect(broker: Broker, desk: Desk) -> None:
    """The picture is judged again twice between the look at its ban and the ban's turn: the newest is what counts."""
    desk.bans(3)
    desk.publish(desk.outcome(0.9, "held"))

    def judge_again() -> None:
        for risk in (0.1, 0.95):
            desk.publish(desk.outcome(risk, "held", rescan=True))

    done = breaker.close(Meanwhile.of(broker, after_scans=[judge_again]), apply=True, verdict_ttl_s=TTL_S)
    assert (done.applied, done.superseded, done.discarded) == (1, 0, 0)
    assert desk.client.verdict("held").ban and desk.client.verdict("held").probabilities.risked == 0.95


def test_what_others_wrote_among_the_withheld_bans_nobody(desk: Desk) -> None:
    """Neither another picture's ban under a name of its own choice, nor what is no verdict; ours takes effect."""
    desk.bans(3)
    desk.publish(desk.outcome(0.9, "held"))
    ban = desk.raw.hget(bus.WITHHELD, "held")
    desk.raw.hset(bus.WITHHELD, mapping={"innocent": ban, "noise": "no ban", "\xff": b"\xff"})
    done = breaker.close(desk.raw, apply=True, verdict_ttl_s=TTL_S)
    assert (done.applied, done.superseded, done.discarded) == (1, 3, 0)
    assert desk.client.verdict("held").ban and desk.client.verdict("innocent") is None
    assert desk.raw.xlen(bus.VERDICTS) == 5


def test_who_closes_a_closed_one_changes_nothing(desk: Desk) -> None:
    """What was counted towards the next opening stays counted."""
    desk.bans(3)
    for apply in (True, False):
        assert breaker.close(desk.raw, apply=apply, verdict_ttl_s=TTL_S) is None
    assert desk.bans(1) == ["opened"]


def test_what_the_verdict_stream_refuses_stays_to_be_done(desk: Desk) -> None:
    """It takes no entry for a while: neither a withheld ban nor a person's correction is lost, both are done later."""
    desk.bans(3)
    held = [f"held{number}" for number in range(5)]
    desk.publish(*[desk.outcome(0.9, content_id) for content_id in held])
    last = "18446744073709551615-18446744073709551615"
    desk.raw.rename(bus.VERDICTS, "verdicts")
    desk.raw.xadd(bus.VERDICTS, {"x": "y"}, id=last)
    desk.client.correct(held[0], "approved", by="ann")
    with pytest.raises(UnavailableError):
        desk.overruler.apply_waiting()
    with pytest.raises(UnavailableError):
        breaker.close(desk.raw, apply=True, verdict_ttl_s=TTL_S)
    assert set(breaker.withheld(desk.raw)) == set(held)
    assert desk.raw.hlen(bus.OVERRIDES) == 0
    desk.raw.delete(bus.VERDICTS)
    desk.raw.rename("verdicts", bus.VERDICTS)
    desk.overruler._reread_at = 0.0  # as its thread sets it after a failure
    desk.overruler.apply_waiting()
    assert breaker.close(desk.raw, apply=True, verdict_ttl_s=TTL_S).applied == 4
    assert [desk.client.verdict(content_id).ban for content_id in held] == [False, True, True, True, True]
    assert desk.client.verdict(held[0]).reasons == ("human",)


def test_who_closes_it_trims_nothing(desk: Desk) -> None:
    """Its shell may be told of a shorter TTL than the workers, who keep the stream."""
    desk.publisher = Publisher(desk._bus, 10**9, quota=Quota(share=1.0, count=3))  # workers keep thirty years
    old_ms = bus.now_ms(desk.raw) - 10**11
    for number in range(300):
        desk.raw.xadd(bus.VERDICTS, {"old": number}, id=f"{old_ms + number}-0")
    desk.bans(3)
    assert desk.publish(desk.outcome(0.9, "held")) == ["opened"]
    assert breaker.close(desk.raw, apply=True, verdict_ttl_s=TTL_S).applied == 1
    assert desk.raw.xlen(bus.VERDICTS) == 305


def test_discard_leaves_them_with_a_person(desk: Desk) -> None:
    """The verdicts stay as they are."""
    desk.bans(3)
    desk.publish(desk.outcome(0.9, "a"), desk.outcome(0.9, "b"))
    before = desk.client.verdict("a")
    done = breaker.close(desk.raw, apply=False, verdict_ttl_s=TTL_S)
    assert (done.applied, done.superseded, done.discarded) == (0, 0, 2)
    assert desk.client.verdict("a") == before
    assert len(desk.effective("a")) == 1


def test_repeated_publishes_do_not_count(desk: Desk) -> None:
    """A rescan that agrees, a duplicate, an entry that is gone: none is a ban more. Nor is a duplicate one more that
    was decided, or a picture that cannot be read, of which bans would be a smaller share."""
    first = desk.outcome(0.9, "a")
    assert desk.publish(first) == ["published"]
    assert desk.publish(desk.outcome(0.9, "a")) == ["duplicate"]
    unread = desk.outcome(0.1, "unread").entry
    nothing = Undecided(
        content_id="unread", placement="held", reasons=("unreadable",), weights=None, engine=None, content_sha256=None,
        frames=0, enqueued_at=NOW,
    )  # fmt: skip
    assert desk.publish(Outcome(unread, nothing)) == ["published"]
    assert desk.raw.hmget(bus.BAN_WINDOW, "decided", "bans") == [b"1", b"1"]
    for _ in range(5):
        assert desk.publish(desk.outcome(0.9, "a", rescan=True)) == ["unchanged"]
        assert desk.publish(first) == ["gone"]
    assert desk.bans(2) == ["published"] * 2
    assert desk.bans(1) == ["opened"]
    assert desk.publish(desk.outcome(0.9, "a", rescan=True)) == ["unchanged"], "what is banned stays so"
    assert desk.client.verdict("a").ban


def test_a_rescan_after_a_rollback_does_not_open_it(broker: Broker) -> None:
    """As the runbook has it: a version that banned nobody is judged again by the one before, beside fresh uploads. One
    in twenty is a ban, though nearly all that the rescan changes is."""
    desk = Desk(broker, Quota(share=0.2))
    old = [f"old{number}" for number in range(2400)]
    for start in range(0, len(old), 400):
        desk.publish(*[desk.outcome(0.1, content_id) for content_id in old[start : start + 400]])
    desk.raw.delete(bus.BAN_WINDOW)  # as ten minutes later
    became: list[str] = []
    for start in range(0, len(old), 120):
        became += desk.publish(*[desk.outcome(0.1 if n % 20 else 0.9) for n in range(20)])
        again = enumerate(old[start : start + 120])
        became += desk.publish(*[desk.outcome(0.1 if n % 20 else 0.9, name, rescan=True) for n, name in again])
    assert (became.count("published"), became.count("unchanged")) == (400 + 120, 2280)
    assert breaker.status(desk.raw) == breaker.Status(None, 0, 0, 0)
    fields = {name.decode(): int(value) for name, value in desk.raw.hgetall(bus.BAN_WINDOW).items()}
    assert (fields["decided"], fields["bans"]) == (2800, 140)


def test_a_rescan_by_a_version_gone_wrong_opens_it(broker: Broker) -> None:
    """Every third that stood is to be banned: above the quota, whatever the others add to what was decided."""
    desk = Desk(broker, Quota(share=0.2))
    old = [f"old{number}" for number in range(600)]
    desk.publish(*[desk.outcome(0.1, content_id) for content_id in old])
    desk.raw.delete(bus.BAN_WINDOW)
    again = [desk.outcome(0.1 if n % 3 else 0.9, name, rescan=True) for n, name in enumerate(old)]
    assert desk.publish(*again).count("opened") == 1
    assert breaker.status(desk.raw).decided >= BAN_SHARE_DECIDED


def test_a_persons_bans_neither_count_nor_wait(desk: Desk) -> None:
    """Corrections, and known content of theirs, are no sign of a model gone wrong."""
    known = [desk.outcome(0.1, f"p{number}") for number in range(10)]
    desk.publish(*known)
    for outcome in known:
        desk.client.correct(outcome.entry.content_id, "risked", by="ann")
    desk.overruler.apply_waiting()
    assert all(desk.client.verdict(outcome.entry.content_id).ban for outcome in known)
    decided = desk.raw.hget(bus.BAN_WINDOW, "decided")
    twin = desk.outcome(0.9, "twin")
    seen = twin.document.model_copy(update={"content_sha256": known[0].document.content_sha256})
    assert desk.publish(Outcome(twin.entry, seen)) == ["published"]
    assert desk.client.verdict("twin").reasons == ("known_content",)
    assert desk.raw.hget(bus.BAN_WINDOW, "decided") == decided
    assert desk.bans(3) == ["published"] * 3
    assert desk.bans(1) == ["opened"]
    desk.client.correct("open", "risked", by="ann")
    desk.overruler.apply_waiting()
    assert desk.client.verdict("open").ban


def test_what_a_person_settled_is_not_applied(desk: Desk) -> None:
    """A correction while it is open takes its picture, and the same bytes, out of the withheld ones."""
    desk.bans(3)
    twins = [desk.outcome(0.9, name) for name in ("a", "twin")]
    digest = twins[0].document.content_sha256
    twin = Outcome(twins[1].entry, twins[1].document.model_copy(update={"content_sha256": digest}))
    desk.publish(twins[0], twin, desk.outcome(0.9, "b"))
    desk.client.correct("a", "approved", by="ann")
    desk.overruler.apply_waiting()
    assert set(breaker.withheld(desk.raw)) == {"twin", "b"}
    done = breaker.close(desk.raw, apply=True, verdict_ttl_s=TTL_S)
    assert (done.applied, done.superseded) == (1, 1)
    assert not desk.client.verdict("a").ban and not desk.client.verdict("twin").ban and desk.client.verdict("b").ban
    assert [fields[b"content_id"] for _, fields in desk.raw.xrange(bus.UPLOADS)] == [b"twin"], "to be judged again"


def test_a_rescan_that_would_ban_again_leaves_the_ban_to_be_applied(desk: Desk) -> None:
    """What stands says already that a person is to look: no entry more, and the ban still takes effect once."""
    desk.bans(3)
    assert desk.publish(desk.outcome(0.9, "a")) == ["opened"]
    standing = desk.client.verdict("a")
    wait_until(lambda: bus.now_ms(desk.raw) > standing.decided_at.timestamp() * 1000 + 1, "another millisecond")
    assert desk.publish(desk.outcome(0.9, "a", rescan=True)) == ["unchanged"]
    assert desk.effective("a") == [standing]
    assert breaker.close(desk.raw, apply=True, verdict_ttl_s=TTL_S).applied == 1
    assert desk.client.verdict("a").ban


def test_a_rescan_that_comes_too_late_settles_nothing(desk: Desk) -> None:
    """Of two in work at once the one asked for first may have read older bytes, and publishes last. It says what
    stands, which is for a person, and leaves the withheld ban where it is."""
    desk.bans(3)
    earlier, later = (desk.outcome(0.9, "a", rescan=True) for _ in range(2))
    asked_first = replace(earlier.entry, enqueued_ms=earlier.entry.enqueued_ms - 1000)
    earlier = Outcome(asked_first, for_a_person(earlier.document, "held"))
    assert desk.publish(later) == ["opened"]
    before = desk.client.verdict("a")
    assert desk.publish(earlier) == ["duplicate"]
    assert desk.client.verdict("a") == before
    assert breaker.close(desk.raw, apply=True, verdict_ttl_s=TTL_S).applied == 1
    assert desk.client.verdict("a").ban


def test_what_was_judged_again_meanwhile_is_not_applied(desk: Desk) -> None:
    """A rescan by a better version says approved: the old ban does not come back."""
    desk.bans(3)
    desk.publish(desk.outcome(0.9, "a"))
    assert desk.publish(desk.outcome(0.1, "a", rescan=True)) == ["published"]
    assert desk.client.verdict("a").label == "approved"
    assert list(breaker.withheld(desk.raw)) == []
    desk.raw.delete(bus.verdict_key("a"))  # as when its time has run out before anybody closes the breaker
    done = breaker.close(desk.raw, apply=True, verdict_ttl_s=TTL_S)
    assert (done.applied, done.superseded) == (0, 0)
    assert desk.client.verdict("a") is None


def test_the_window_moves_on(desk: Desk) -> None:
    """What was banned long ago counts no more; the key itself runs out."""
    desk.bans(3)
    assert 0 < desk.raw.ttl(bus.BAN_WINDOW) <= 1200
    fields = {name.decode(): int(value) for name, value in desk.raw.hgetall(bus.BAN_WINDOW).items()}
    slice_now = fields.pop("newest")
    assert fields == {"decided": 3, "bans": 3, f"decided:{slice_now}": 3, f"bans:{slice_now}": 3}
    for kind in ("decided", "bans"):  # as if the same had happened 600 s ago
        desk.raw.hdel(bus.BAN_WINDOW, f"{kind}:{slice_now}")
        desk.raw.hset(bus.BAN_WINDOW, f"{kind}:{slice_now - 60}", 3)
    desk.raw.hset(bus.BAN_WINDOW, "newest", slice_now - 60)
    assert desk.bans(3) == ["published"] * 3
    desk.raw.hset(bus.BAN_WINDOW, "newest", slice_now - 1)  # what was forgotten is not forgotten a second time
    assert desk.bans(1) == ["opened"]


def test_what_a_clock_set_back_left_in_the_future_counts_no_more(broker: Broker) -> None:
    """Ten minutes of many decided and few bans, dated an hour ahead, are no part of what bans are a share of now."""
    desk = Desk(broker, Quota(share=0.2))
    ahead = int(desk.raw.time()[0] / 10) + 360
    window = {"newest": ahead, "decided": 60_000, "bans": 600}
    for slice_ in range(ahead - 59, ahead + 1):
        window |= {f"decided:{slice_}": 1000, f"bans:{slice_}": 10}
    desk.raw.hset(bus.BAN_WINDOW, mapping=window)
    desk.harmless(BAN_SHARE_DECIDED - 1)
    assert desk.bans(1) == ["published"]
    fields = {name.decode(): int(value) for name, value in desk.raw.hgetall(bus.BAN_WINDOW).items()}
    assert (fields["decided"], fields["bans"]) == (BAN_SHARE_DECIDED, 1)
    assert desk.bans(130)[-1] == "withheld"


def moderation(broker: Broker, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    environment = {"MODERATION_REDIS_URL": broker.url, "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "worker.cli", *words]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)


def test_through_workers_the_command_and_the_exporter(place: Place) -> None:
    """Two workers share one quota; the exporter shows it open; the command closes it."""
    for _ in range(2):
        place.start_worker(ban_quota_count="4")
    for worker in place.workers:
        worker.wait_ready()
    found = place.judge([place.add(label="risked") for _ in range(12)])
    assert {document.label for document in found.values()} == {"risked"}
    assert sum(document.ban for document in found.values()) == 4
    assert sum("circuit_breaker" in document.reasons for document in found.values()) == 8
    port = free_port()
    exporter = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "exporter", "--port", str(port)],
        cwd=REPOSITORY, env={"MODERATION_REDIS_URL": place.broker.url, "PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        exporter.stderr.readline()
        figures = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        assert "moderation_circuit_breaker_open 1.0" in figures and "moderation_withheld 8.0" in figures
    finally:
        exporter.terminate()
        exporter.wait(20)
    assert "8 bans are withheld" in moderation(place.broker, "breaker", "status").stdout
    unsaid = moderation(place.broker, "breaker", "close")
    assert unsaid.returncode == 2 and "--apply or --discard" in unsaid.stderr
    closed = moderation(place.broker, "breaker", "close", "--apply")
    assert closed.returncode == 0 and "8 bans took effect" in closed.stdout
    assert moderation(place.broker, "breaker", "status").stdout == "closed\n"
    wait_until(lambda: all(place.client.verdict(content_id).ban for content_id in found), "all to be banned")
    assert len(place.entries()) == 12 + 8
