"""People's decisions, through a client, a real server and a running worker: once, at once, and for good."""

import hashlib
import subprocess
import sys

import pytest

from tests.support.pictures import picture
from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY
from worker import bus
from worker.client import Moderation
from worker.errors import UsageError
from worker.verdict import Label, Verdict


def said(place: Place, content_id: str) -> list[Verdict]:
    """The effective verdicts on one content ID, in order."""
    return [document for _, document in place.client.verdicts() if document.content_id == content_id]


def wait_for_label(place: Place, content_id: str, label: str) -> Verdict:
    """The standing verdict, once it says `label` and a person said so."""

    def decided() -> bool:
        document = place.client.verdict(content_id)
        return document is not None and document.label == label and "human" in document.reasons

    wait_until(decided, f"{content_id} to be {label}, by a person", 20)
    return place.client.verdict(content_id)


def rescan(place: Place, content_id: str) -> None:
    """Judges it again and waits until that is over."""
    place.client.submit(content_id, rescan=True)
    wait_until(lambda: place.broker.client().xlen(bus.UPLOADS) == 0, "the rescan")


def test_a_correction_takes_effect_at_once_and_stands(busy_place: Place) -> None:
    """It replaces the model's verdict, names what it replaced, and no rescan brings the model's back."""
    content_id = busy_place.add(label="risked")
    before = busy_place.judge(content_id)[content_id]
    assert before.ban
    busy_place.client.correct(content_id, "approved", by="ann")
    after = wait_for_label(busy_place, content_id, "approved")
    assert (after.ban, after.review, after.placement, after.reasons) == (False, False, "collective", ("human",))
    assert after.supersedes == before.to_dict()["decided_at"]
    assert (after.content_sha256, after.frames, after.weights) == (before.content_sha256, before.frames, None)
    rescan(busy_place, content_id)
    assert busy_place.client.verdict(content_id) == after
    assert [document.label for document in said(busy_place, content_id)] == ["risked", "approved"]


@pytest.mark.parametrize("label", ["risked", "approved"])
def test_a_decision_on_an_empty_object_is_about_no_bytes(busy_place: Place, label: Label) -> None:
    """An upload that was not there yet: what a person says of the picture is not said of everybody's empty object."""
    early, other = busy_place.add(b""), busy_place.add(b"")
    assert busy_place.judge(early)[early].reasons == ("unreadable",)
    busy_place.client.correct(early, label, by="ann")
    wait_for_label(busy_place, early, label)
    found = busy_place.judge(other)[other]
    assert (found.status, found.reasons, found.ban, found.review) == ("undecided", ("unreadable",), False, True)
    # Then the upload arrives. The person's word stands for its content ID, and for no one else's same picture.
    comes = picture("not_suitable")
    (busy_place.content / early).write_bytes(comes)
    rescan(busy_place, early)
    assert busy_place.client.verdict(early).label == label
    twin = busy_place.add(comes)
    assert (busy_place.judge(twin)[twin].label, busy_place.judge(twin)[twin].reasons) == ("not_suitable", ())


def test_a_later_correction_wins(busy_place: Place) -> None:
    """A person's risked is a ban; what another says later replaces it."""
    content_id = busy_place.add()
    busy_place.judge(content_id)
    busy_place.client.correct(content_id, "risked", by="ann")
    banned = wait_for_label(busy_place, content_id, "risked")
    assert (banned.ban, banned.placement) == (True, "removed")
    busy_place.client.correct(content_id, "not_suitable", by="ben")
    wait_for_label(busy_place, content_id, "not_suitable")
    assert [document.label for document in said(busy_place, content_id)] == ["approved", "risked", "not_suitable"]


def test_the_same_bytes_under_another_id(busy_place: Place) -> None:
    """Known content: the decision holds for the picture, whatever it is called, and a later one on it wins too."""
    data = picture("approved")
    first, second, third = (busy_place.add(data) for _ in range(3))
    busy_place.judge(first)
    busy_place.client.correct(first, "risked", by="ann")
    wait_for_label(busy_place, first, "risked")
    known = busy_place.judge(second)[second]
    assert (known.label, known.ban, known.reasons) == ("risked", True, ("known_content",))
    busy_place.client.correct(second, "approved", by="ben")
    wait_for_label(busy_place, second, "approved")
    assert busy_place.judge(third)[third].label == "approved"
    assert busy_place.client.verdict(first).label == "risked", "that was decided for this content ID itself"


@pytest.mark.parametrize("judged_first", [True, False])
def test_other_bytes_under_a_decided_content_id(busy_place: Place, judged_first: bool) -> None:
    """The decision stands for the content ID, but says nothing of those bytes anywhere else."""
    data = picture("risked")
    content_id, elsewhere = busy_place.add(label="approved"), busy_place.add(data)
    if judged_first:
        busy_place.judge(content_id)
    busy_place.client.correct(content_id, "approved", by="ann")
    wait_for_label(busy_place, content_id, "approved")
    rescan(busy_place, content_id)
    (busy_place.content / content_id).write_bytes(data)
    rescan(busy_place, content_id)
    assert busy_place.client.verdict(content_id).label == "approved"
    found = busy_place.judge(elsewhere)[elsewhere]
    assert (found.label, found.ban) == ("risked", True) and "known_content" not in found.reasons


def test_what_was_never_judged(busy_place: Place) -> None:
    """Accepted and kept: in force before the picture comes, for its content ID and no bytes that may come."""
    data = picture("approved")
    content_id, twin = busy_place.add(data), busy_place.add(data)
    busy_place.client.correct(content_id, "not_suitable", by="ann")
    wait_for_label(busy_place, content_id, "not_suitable")
    busy_place.client.submit(content_id)
    wait_until(lambda: busy_place.broker.client().xlen(bus.UPLOADS) == 0, "the submitted ID to leave the intake")
    assert [document.label for document in said(busy_place, content_id)] == ["not_suitable"]
    found = busy_place.judge(twin)[twin]
    assert (found.label, found.reasons) == ("approved", ())


def test_a_decision_is_for_the_bytes_seen_last(busy_place: Place) -> None:
    """The author puts other bytes there, and a rescan agrees with the verdict: who decides now has seen these."""
    old, new = picture("approved"), picture("approved")
    content_id, old_twin, new_twin = busy_place.add(old), busy_place.add(old), busy_place.add(new)
    before = busy_place.judge(content_id)[content_id]
    (busy_place.content / content_id).write_bytes(new)
    rescan(busy_place, content_id)
    agreed = busy_place.client.verdict(content_id)
    assert agreed.content_sha256 == hashlib.sha256(new).hexdigest() != before.content_sha256
    assert (agreed.decided_at, agreed.supersedes) == (before.decided_at, before.supersedes)
    busy_place.client.correct(content_id, "risked", by="ann")
    after = wait_for_label(busy_place, content_id, "risked")
    assert [document.label for document in said(busy_place, content_id)] == ["approved", "risked"]
    assert after.supersedes == before.to_dict()["decided_at"]
    found = busy_place.judge([old_twin, new_twin])
    assert (found[old_twin].label, found[old_twin].reasons) == ("approved", ())
    assert (found[new_twin].label, found[new_twin].reasons) == ("risked", ("known_content",))


def test_an_undecided_picture_is_undecided_on_the_bytes_seen_last(busy_place: Place) -> None:
    """As above, where neither the first nor the second bytes can be read."""
    old, new = b"\xff\xd8\xff no picture", b"\xff\xd8\xff nor is this"
    content_id, old_twin, new_twin = busy_place.add(old), busy_place.add(old), busy_place.add(new)
    busy_place.judge(content_id)
    (busy_place.content / content_id).write_bytes(new)
    busy_place.client.submit(content_id)
    wait_until(lambda: busy_place.broker.client().xlen(bus.UPLOADS) == 0, "the second look")
    busy_place.client.correct(content_id, "risked", by="ann")
    wait_for_label(busy_place, content_id, "risked")
    found = busy_place.judge([old_twin, new_twin])
    assert [found[twin].reasons for twin in (old_twin, new_twin)] == [("unreadable",), ("known_content",)]


def test_a_decision_on_what_could_not_be_fetched_holds_for_no_bytes(busy_place: Place) -> None:
    """Approved while it was too large to be looked at; what the author puts in its place is not what was seen."""
    too_large = picture("approved") + bytes(30_000_000)
    content_id = busy_place.add(too_large)
    assert busy_place.judge(content_id)[content_id].reasons == ("too_large",)
    busy_place.client.correct(content_id, "approved", by="ann")
    wait_for_label(busy_place, content_id, "approved")
    comes = picture("risked")
    (busy_place.content / content_id).write_bytes(comes)
    for again in (False, True):
        busy_place.client.submit(content_id, rescan=again)
        wait_until(lambda: busy_place.broker.client().xlen(bus.UPLOADS) == 0, "the second look")
    twin = busy_place.add(comes)
    found = busy_place.judge(twin)[twin]
    assert (found.label, found.ban, found.reasons) == ("risked", True, ())


def test_a_second_thought_on_what_was_seen_after_the_first(busy_place: Place) -> None:
    """The first decision knew no bytes, and a rescan that saw them changed no verdict: the second holds for them."""
    data = picture("approved")
    early = busy_place.add(data)
    busy_place.client.correct(early, "risked", by="ann")
    wait_for_label(busy_place, early, "risked")
    rescan(busy_place, early)
    busy_place.client.correct(early, "not_suitable", by="ben")
    wait_for_label(busy_place, early, "not_suitable")
    twin = busy_place.add(data)
    found = busy_place.judge(twin)[twin]
    assert (found.label, found.reasons) == ("not_suitable", ("known_content",))


def test_a_picture_that_cannot_be_read(busy_place: Place) -> None:
    """Undecided until a person decides; after that a rescan finds it unreadable still, and the decision stands."""
    content_id = busy_place.add(b"\xff\xd8\xff no picture")
    assert busy_place.judge(content_id)[content_id].status == "undecided"
    busy_place.client.correct(content_id, "risked", by="ann")
    wait_for_label(busy_place, content_id, "risked")
    rescan(busy_place, content_id)
    assert busy_place.client.verdict(content_id).label == "risked"


def test_a_verdict_that_ran_out_comes_back_as_the_person_said(busy_place: Place) -> None:
    """Verdicts have a TTL, decisions have none."""
    content_id = busy_place.add()
    busy_place.client.correct(content_id, "risked", by="ann")
    wait_for_label(busy_place, content_id, "risked")
    busy_place.broker.client().delete(f"moderation:verdict:{content_id}")
    assert busy_place.judge(content_id)[content_id].reasons == ("human",)


def test_a_replayed_stream_changes_nothing(busy_place: Place) -> None:
    """Read again from its beginning, as after a restored backup: each correction has been applied."""
    content_id, marker = busy_place.add(), busy_place.add()
    busy_place.client.correct(content_id, "risked", by="ann")
    busy_place.client.correct(content_id, "approved", by="ann")
    wait_for_label(busy_place, content_id, "approved")
    before = busy_place.entries()
    raw = busy_place.broker.client()
    raw.xgroup_destroy(bus.CORRECTIONS, bus.GROUP)
    busy_place.client.correct(marker, "approved", by="ann")
    wait_for_label(busy_place, marker, "approved")
    assert busy_place.entries() == [*before, marker]
    wait_until(lambda: raw.xpending(bus.CORRECTIONS, bus.GROUP)["pending"] == 0, "all to be acknowledged")


def test_what_a_process_read_and_did_not_finish_is_applied(place: Place) -> None:
    """A worker that died between reading a correction and applying it loses none."""
    raw = place.broker.client()
    place.client.correct("never-seen", "risked", by="ann")
    bus.ensure_groups(raw, [bus.CORRECTIONS])
    assert raw.xreadgroup(bus.GROUP, "workers", {bus.CORRECTIONS: ">"})
    place.start_worker().wait_ready()
    assert wait_for_label(place, "never-seen", "risked").ban


def test_what_is_no_correction_holds_up_nobody(busy_place: Place) -> None:
    """Whoever may write the stream may write nonsense: it goes to the dead letters, readers pass over it."""
    raw = busy_place.broker.client()
    entries = [
        {"content_id": "x", "label": "nonsense", "by": "ann"},
        {"content_id": "../x", "label": "risked", "by": "ann"},
        {"content_id": "x", "label": "risked"},
        {"content_id": "x", "label": "risked", "by": "ann", "content_sha256": "abc"},
        {b"\xff": b"\xff"},
    ]
    for fields in entries:
        raw.xadd(bus.CORRECTIONS, fields)
    raw.rpush("moderation:verdict:of-another-type", "x")
    busy_place.client.correct("of-another-type", "approved", by="ann")
    raw.set("moderation:verdict:of-another-kind", '{"schema": 2, "decided_at": "2026-01-01T00:00:00.000Z"}')
    busy_place.client.correct("of-another-kind", "approved", by="ann")
    busy_place.client.correct("last", "approved", by="ann")
    wait_for_label(busy_place, "last", "approved")
    wait_for_label(busy_place, "of-another-type", "approved")
    wait_for_label(busy_place, "of-another-kind", "approved")
    reasons = [fields[b"reason"] for _, fields in raw.xrange(bus.DEAD_LETTER)]
    assert reasons.count(b"malformed_correction") == len(entries)
    assert busy_place.client.verdict("x") is None
    assert {correction.by for correction in busy_place.client.corrections()} == {"ann", "ben"}


@pytest.mark.parametrize(
    ("content_id", "label", "by"),
    [
        ("../x", "risked", "ann"),
        ("x", "banned", "ann"),
        ("x", "risked", ""),
        ("x", "risked", "a\nb"),
        ("", "risked", "a"),
    ],
)
def test_bad_corrections_are_refused(client: Moderation, content_id: str, label: str, by: str) -> None:
    """In one sentence, and nothing is recorded."""
    with pytest.raises(UsageError):
        client.correct(content_id, label, by=by)
    assert list(client.corrections()) == []


def test_the_command(busy_place: Place) -> None:
    """`moderation correct` does the same; a bad label is one sentence and exit 2, and an ID without a verdict, perhaps
    mistyped, is pointed out."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "worker.cli", "correct", *words]
        environment = {"MODERATION_REDIS_URL": busy_place.broker.url, "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)

    content_id = busy_place.add()
    early = run(content_id, "risked", "--by", "Ann B.")
    assert early.returncode == 0 and f"warning: {content_id} had no verdict" in early.stderr
    assert wait_for_label(busy_place, content_id, "risked").ban
    [correction] = [c for c in busy_place.client.corrections() if c.content_id == content_id]
    assert correction.by == "Ann B."
    assert "warning" not in run(content_id, "risked", "--by", "Ann B.").stderr
    refused = run(content_id, "banned", "--by", "Ann")
    assert refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1
    assert "approved, not_suitable or risked" in refused.stderr
