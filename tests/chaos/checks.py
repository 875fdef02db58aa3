"""What must be true at the end, whatever was done: the record against itself, the pictures and the server.

Knows no attacks. Each check gives the findings it makes, as sentences; an empty list is the only good result.
"""

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import redis

from tests.chaos.record import Copy, Entry, Told, parse
from tests.chaos.scene import Pictures, Versions, label_of

LASTING = frozenset(
    f"moderation:{name}"
    for name in (
        "uploads", "backfill", "verdicts", "dead-letter", "retry", "corrections", "overrides", "known", "withheld",
    )
)  # fmt: skip
"""CONTRACT.md section 5: these live on, every other `moderation:` key has a TTL."""


@dataclass
class Findings:
    """What is wrong, and the figures behind it."""

    lost: set[str] = field(default_factory=set)
    twice: set[str] = field(default_factory=set)
    banned_twice: set[str] = field(default_factory=set)
    other: list[str] = field(default_factory=list)
    verdicts: int = 0
    bans: int = 0
    known_copies: int = 0
    copies_judged_before: int = 0

    def assert_none(self) -> None:
        """Fails with everything that was found."""
        said = list(self.other[:20])
        for what in ("lost", "twice", "banned_twice"):
            found = getattr(self, what)
            if found:
                said.append(f"{len(found)} IDs are {what}: {sorted(found)[:5]}")
        assert not said, "\n".join(said)


def check(entries: list[Entry], told: Told, pictures: Pictures, versions: Versions, server: redis.Redis) -> Findings:
    """All checks, on what the witness saw, what the service was told, and what the server holds."""
    found = Findings(verdicts=len(entries), bans=sum(entry.ban for entry in entries))
    by_id: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_id[entry.content_id].append(entry)
    found.lost = told.taken - by_id.keys()
    never = by_id.keys() - told.intended
    found.other += [f"{content_id} has a verdict and was never submitted" for content_id in never]
    for content_id, history in by_id.items():
        _check_one(content_id, history, found)
    for entry in entries:
        found.other += _wrong(entry, told.decided.keys() | told.unsure, pictures, versions)
    found.other += _decisions(by_id, told.decided, server)
    _copies(by_id, told.copies, _naming_bytes(server), found)
    for content_id, label in told.rewritten.items():
        if content_id in by_id and by_id[content_id][-1].document["label"] != label:
            found.other.append(f"{content_id} now shows a picture that is {label}: {by_id[content_id][-1].document}")
    found.other += _server(entries, by_id.keys(), server)
    return found


def _check_one(content_id: str, history: list[Entry], found: Findings) -> None:
    """One effective verdict at a time: each but the first names the one that it replaces, which only a person may, and
    a rescan of other bytes."""
    if [e.document["supersedes"] for e in history] != [None, *(e.document["decided_at"] for e in history[:-1])]:
        found.twice.add(content_id)
    if not content_id.startswith("x") and any("human" not in entry.document["reasons"] for entry in history[1:]):
        found.twice.add(content_id)
    said = [(entry.document["label"], entry.document["reasons"]) for entry in history]
    if any(before == after for before, after in pairwise(said)):
        found.twice.add(content_id)
    # A person who confirms the model's ban makes a verdict of his own; neither may say it a second time in a row.
    if any(before == after == "risked" for (before, _), (after, by) in pairwise(said) if by != ["human"]):
        found.banned_twice.add(content_id)


def _wrong(entry: Entry, by_people: set[str], pictures: Pictures, versions: Versions) -> list[str]:
    """Whether the document is what its picture deserves by the version that it names."""
    document = entry.document
    original = entry.content_id.partition("-copy")[0]
    if entry.ban != (document["label"] == "risked") or document["ban"] != entry.ban or document["review"]:
        return [f"{entry.content_id} is {document['label']} with ban {entry.ban}, review {document['review']}"]
    if document["reasons"] == ["human"]:
        return [] if entry.content_id in by_people else [f"nobody decided on {entry.content_id}"]
    if document["reasons"] == ["known_content"]:
        return [] if entry.content_id != original and original in by_people else [f"nobody knows {entry.content_id}"]
    if document["status"] != "decided" or document["reasons"]:
        return [f"a healthy picture, {entry.content_id}, is {document['status']}: {document['reasons']}"]
    means = pictures.means(entry.content_id, document["content_sha256"])
    by = versions.named_by(document["probabilities"], means)
    numbers = versions.numbers.get(document["weights"])
    if by != {document["weights"]} or numbers is None or document["ban_threshold"] != numbers.ban_threshold:
        return [f"{entry.content_id} names {document['weights']} and was judged by {by or 'none that is known'}"]
    deserved = pictures.labels.get(document["content_sha256"]) or label_of(entry.content_id)
    return [f"{entry.content_id} is {document['label']}"] if document["label"] != deserved else []


def _naming_bytes(server: redis.Redis) -> set[tuple[str, str]]:
    """Content ID and label of the decisions that name the bytes they are about, each time that they were made: one on
    what has not been judged is about none, and its verdict shows those that were looked at since."""
    named: set[tuple[str, str]] = set()
    unnamed: set[tuple[str, str]] = set()
    entries: Any = server.xrange("moderation:corrections")
    for _, fields in entries:
        decision = fields.get(b"content_id", b"").decode(), fields.get(b"label", b"").decode()
        (named if b"content_sha256" in fields else unnamed).add(decision)
    return named - unnamed


def _copies(
    by_id: Mapping[str, list[Entry]], copies: dict[str, Copy], naming: Set[tuple[str, str]], found: Findings
) -> None:
    """What was shown again under another content ID, against the decisions on the original."""
    for content_id, copy in copies.items():
        decisions = [entry for entry in by_id.get(copy.original, []) if entry.document["reasons"] == ["human"]]
        for entry in by_id.get(content_id, []):
            by_known = entry.document["reasons"] == ["known_content"]
            found.known_copies += by_known
            found.copies_judged_before += not by_known
            before = [said for said in decisions if said.place < entry.place]
            in_force = copy.known or any((copy.original, said.document["label"]) in naming for said in before)
            found.other += _copied(entry, copy, before, in_force)


def _copied(entry: Entry, copy: Copy, before: list[Entry], in_force: bool) -> list[str]:
    """Whether a copy's verdict is what the decisions on its bytes that took effect before it make it."""
    by_known = entry.document["reasons"] == ["known_content"]
    if by_known and (not before or entry.document["label"] != before[-1].document["label"]):
        said = [decision.document["label"] for decision in before]
        return [f"{entry.content_id} is known content and {entry.document['label']}; decided before it was: {said}"]
    if in_force and not by_known:
        return [f"{entry.content_id} was judged by a model when the decision on {copy.original} was in force"]
    return []


def _decisions(by_id: Mapping[str, list[Entry]], decided: dict[str, list[str]], server: redis.Redis) -> list[str]:
    """Each decision of a person took effect once, and stands."""
    said = []
    for content_id, labels in decided.items():
        history = by_id.get(content_id, [])
        took_effect = [entry.document["label"] for entry in history if "human" in entry.document["reasons"]]
        # One that comes before the verdict is joined by those after it, and the last of them is what is published.
        rest = iter(labels)
        if not all(label in rest for label in took_effect) or len(took_effect) > len(labels):
            said.append(f"of the decisions {labels} on {content_id} these took effect: {took_effect}")
        last = history[-1].document if history else {}
        if last.get("reasons") != ["human"] or last.get("label") != labels[-1]:
            said.append(f"the decision on {content_id}, {labels[-1]}, does not stand: {last}")
    pending: Any = server.xpending("moderation:corrections", "moderation")["pending"] if decided else 0
    return said + ([f"{pending} corrections were read and not acknowledged"] if pending else [])


def _server(entries: list[Entry], judged: Set[str], server: redis.Redis) -> list[str]:
    """The server holds what the witness saw, and nothing that should have gone."""
    said = []
    standing = [parse(entry_id, fields) for entry_id, fields in server.xrange("moderation:verdicts")]
    if standing != entries:
        said.append(f"the stream holds {len(standing)} verdicts, the witness saw {len(entries)}, and they differ")
    for name in ("uploads", "backfill", "dead-letter"):
        left = server.xrange(f"moderation:{name}", count=3)
        if left:
            said.append(f"moderation:{name} still holds {server.xlen(f'moderation:{name}')}, such as {left}")
    if server.zcard("moderation:retry"):
        said.append("something still waits for its next attempt")
    if server.exists("moderation:withheld"):
        said.append("the circuit breaker opened")
    keys = [key.decode() for key in server.scan_iter("moderation:*", count=10_000)]
    with server.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.ttl(key)
        # -1 is no TTL; -2 has run out since it was found, such as what a dead worker said of itself.
        endless = {key for key, ttl in zip(keys, pipeline.execute(), strict=True) if ttl == -1}
    said += [f"{key} has no TTL" for key in sorted(endless - LASTING)]
    documents = {key.removeprefix("moderation:verdict:") for key in keys if key.startswith("moderation:verdict:")}
    if documents != judged:
        said.append(f"{len(documents ^ judged)} IDs have an entry and no document, or a document and no entry")
    return said
