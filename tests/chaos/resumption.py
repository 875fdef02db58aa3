"""How long after the broker's return work is done again: by those who pull it, and by Celery for messages by name."""

import time
from dataclasses import dataclass, field

from tests.chaos.load import CelerySender
from tests.chaos.record import Entry, Witness

PATIENCE_S = 90.0
LONG_OUTAGE_S = 20.0
RESUMED_S, RESUMED_AFTER_LONG_S = 10.0, 35.0
# Nobody's promise, but a margin over what was measured on a busy machine (18 s after outages, 28 s with half-open
# connections), most of it Celery's own: it tries the server again after pauses of 2, 4, 6 ... s, and kombu gives up a
# half-open connection after 11 s and the one beside it 5 s later.
BY_NAME_S = 45.0
MESSAGE_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Resumption:
    """What was seen after an outage, in seconds from the broker's return, which is when it answers again.

    Attributes:
        published_s: the first verdict by a model. It may have been in hand before, and shows only that a result that
            could not be published now is.
        judged_s: the first verdict by a model on what was **submitted after the return**. This is the strict reading
            of "work resumed", and the one that is held to a limit: a correction or a person's decision needs no
            model, and what was claimed before the outage shows nothing of claiming; this went the whole line, behind
            all that waited before it.
        by_name_s: a message `moderation.moderate` that was sent after the return was taken up: its ID was in the
            intake, where a worker's task had put it.
        loading_s: how long the server took to answer once it was started, most of it to load its append-only file;
            part of no limit, and not of `outage_s`.
    """

    what: str
    outage_s: float
    published_s: float
    judged_s: float
    by_name_s: float
    loading_s: float = 0.0
    judged_s_limit: float = field(init=False)
    by_name_s_limit: float = field(init=False, default=BY_NAME_S)

    def __post_init__(self) -> None:
        long = self.outage_s > LONG_OUTAGE_S
        object.__setattr__(self, "judged_s_limit", RESUMED_AFTER_LONG_S if long else RESUMED_S)

    @property
    def late(self) -> bool:
        """Whether work or messages came back too late."""
        return self.judged_s > self.judged_s_limit or self.by_name_s > self.by_name_s_limit


def observed(
    witness: Witness, celery: CelerySender, what: str, outage_s: float, returned: float, loading_s: float = 0.0
) -> Resumption:
    """Sends messages by name until one is taken up, and work is done again; fails where that takes too long."""

    def judged(entry: Entry) -> bool:
        return entry.by_model and entry.submitted_s > returned

    def sent_since(entry: Entry) -> bool:
        return celery.sent.get(entry.content_id, 0.0) > returned

    def resumed() -> bool:
        return witness.first(judged, returned) is not None and (witness.first(sent_since, returned) is not None)

    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        celery.send(1)  # again and again: a message alone may be popped into a connection that is gone
        if witness.wait_for(resumed, MESSAGE_EVERY_S):
            break
    work, published, message = (
        witness.first(which, returned) for which in (judged, lambda entry: entry.by_model, sent_since)
    )
    after = f"{PATIENCE_S:g} s after the broker's return ({what}, away for {outage_s:g} s)"
    assert work is not None and published is not None, f"nothing submitted since then was judged {after}"
    assert message is not None, f"no message sent by name since then was taken up {after}"
    return Resumption(
        what, outage_s, published.at_s - returned, work.at_s - returned, message.submitted_s - returned, loading_s
    )
