"""Publishes outcomes: verdict, stream entry and leaving the intake, in one atomic step on Redis's clock.

Outcomes go in, what became of them comes out. Knows no pictures, networks or rules of decision; the rules of
which verdict stands, and the ban circuit breaker, are in lua/publish.lua, because they must hold over all workers at
once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import redis

from worker import bus
from worker.corrections import check_label
from worker.entry import Entry
from worker.errors import ModerationError, UnavailableError
from worker.verdict import Note, ReviewPlacement, Undecided, Verdict, by_person, unset_last_fields, withheld

PublishResult = Literal["published", "withheld", "opened", "duplicate", "unchanged", "gone"]

BAN_WINDOW_S = 600
"""The circuit breaker looks back so far."""
BAN_SHARE_DECIDED = 500
"""A share of bans means nothing among fewer decided pictures."""
# The server answers nobody else meanwhile: a few milliseconds.
MOST_IN_ONE_CALL = 32
# A person's decision can change between two looks at it, but hardly this often.
LOOKS = 5


@dataclass(frozen=True, slots=True)
class Quota:
    """Bans above it open the circuit breaker: a share of what was decided in the window, or a number (0: any)."""

    share: float = 0.2
    count: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to be published about one entry; `dead_letter` names (reason, detail) where it is one as well."""

    entry: Entry
    document: Verdict | Undecided
    dead_letter: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.document.content_id != self.entry.content_id:
            raise ValueError("an entry's outcome must be about its own content ID")
        if self.document.decided_at is not None or self.document.supersedes is not None:
            raise ValueError("decided_at and supersedes are the publish step's to set")


class Published(NamedTuple):
    """What became of an outcome, when in ms on Redis's clock, and the document if one took effect.

    `judged` is what a model decided, where that took effect, is withheld as a ban, or agrees with what stands.
    """

    result: PublishResult
    at_ms: int
    document: Verdict | Undecided | None = None
    judged: Verdict | None = None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What is said about an outcome: the model's document, or a person's decision with its entry ID.

    A model's ban names what takes effect while the breaker is open.
    """

    outcome: Outcome
    document: Verdict | Undecided
    decision: str = ""
    withheld: Verdict | None = None


class Publisher:
    """Writes verdicts. Safe to call again with the same outcomes: what was published is then `gone`.

    Args:
        review_placement: where a ban withheld by the circuit breaker waits for a person.
    """

    def __init__(
        self,
        client: redis.Redis,
        verdict_ttl_s: int,
        *,
        quota: Quota | None = None,
        review_placement: ReviewPlacement = "held",
    ) -> None:
        self._redis = client
        self._ttl_s = verdict_ttl_s
        self._quota = quota or Quota()
        self._review_placement = review_placement
        self._script = client.register_script(bus.script("publish"))

    def publish(self, outcomes: Sequence[Outcome]) -> list[Published | ModerationError]:
        """Publishes together; for each outcome what became of it, or why the server refused it.

        Where a person has decided on the content ID or on the same bytes, that decision is published instead.
        Raises UnavailableError where the connection broke: some may be published already; call again with all.
        """
        unsettled = UnavailableError("A person's decision changes faster than it can be published.")
        became: list[Published | ModerationError] = [unsettled] * len(outcomes)
        todo = {index: self._as_judged(outcome) for index, outcome in enumerate(outcomes)}
        for _ in range(LOOKS):
            replies = self._send(list(todo.values())) if todo else []
            again: dict[int, _Attempt] = {}
            for (index, attempt), reply in zip(todo.items(), replies, strict=True):
                if isinstance(reply, Exception):
                    became[index] = bus.translate(reply)
                elif reply[0] == b"overruled":
                    again[index] = self._overruled(attempt.outcome, reply[2:])
                else:
                    became[index] = _published(attempt, reply)
            todo = again
        return became

    def _as_judged(self, outcome: Outcome) -> _Attempt:
        document = outcome.document
        instead = withheld(document, self._review_placement) if isinstance(document, Verdict) and document.ban else None
        return _Attempt(outcome, document, withheld=instead)

    def _overruled(self, outcome: Outcome, decision: Sequence[bytes]) -> _Attempt:
        label, entry, note = (part.decode() for part in decision)
        if not entry:  # there is none any more
            return self._as_judged(outcome)
        return _Attempt(outcome, by_person(outcome.document, check_label(label), cast(Note, note)), decision=entry)

    def _send(self, attempts: Sequence[_Attempt]) -> list[Any]:
        """What the script says of each attempt, an exception where the server refused it."""
        replies: list[Any] = []
        for start in range(0, len(attempts), MOST_IN_ONE_CALL):
            chunk = attempts[start : start + MOST_IN_ONE_CALL]
            with bus.translated():
                try:
                    replies += self._script(keys=_keys(chunk), args=self._args(chunk))
                except redis.exceptions.ResponseError as error:  # the call as a whole, such as by an ACL
                    replies += [error] * len(chunk)
        return replies

    def _args(self, attempts: Sequence[_Attempt]) -> list[str | bytes | int | float]:
        quota = (self._quota.share, BAN_SHARE_DECIDED, self._quota.count, BAN_WINDOW_S)
        args: list[str | bytes | int | float] = [bus.GROUP, self._ttl_s, *quota]
        for attempt in attempts:
            entry, document, instead = attempt.outcome.entry, attempt.document, attempt.withheld
            reason, detail = attempt.outcome.dead_letter or ("", "")
            args += (
                entry.entry_id, entry.content_id, unset_last_fields(document), int(entry.rescan),
                document.status, document.label or "", flags(document), document.placement,
                reason, detail, entry.enqueued_ms, document.content_sha256 or "", attempt.decision,
                unset_last_fields(instead) if instead else "", instead.placement if instead else "",
            )  # fmt: skip
        return args


def _keys(attempts: Sequence[_Attempt]) -> list[str]:
    keys = [bus.VERDICTS, bus.DEAD_LETTER, bus.OVERRIDES, bus.KNOWN, bus.WITHHELD, bus.BAN_WINDOW]
    for attempt in attempts:
        entry = attempt.outcome.entry
        answered = bus.ANSWERED_PREFIX + entry.content_id
        keys += (entry.stream, bus.verdict_key(entry.content_id), entry.alone_key, answered)
    return keys


def flags(document: Verdict | Undecided) -> str:
    """Ban and review as the scripts compare them."""
    return f"{int(document.ban)}:{int(document.review)}"


def _published(attempt: _Attempt, reply: Sequence[Any]) -> Published:
    result: PublishResult = reply[0].decode()
    effective = {"published": attempt.document, "withheld": attempt.withheld, "opened": attempt.withheld}
    judged = attempt.document if isinstance(attempt.document, Verdict) and not attempt.decision else None
    if result not in (*effective, "unchanged"):
        judged = None
    return Published(result, int(reply[1]), effective.get(result), judged)
