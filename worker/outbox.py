"""Carries results to Redis: all that finished together in one go, again and again until Redis has them.

Outcomes and postponements go in, "this entry has left" comes out. Knows no pictures or decisions. An outcome may come
as a call that makes it, which this thread then does: whoever owns the device has better to do.
"""

import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.entry import Entry
from worker.errors import ModerationError
from worker.intake import Intake
from worker.metrics import Metrics
from worker.publish import Outcome, Published, Publisher
from worker.verdict import Undecided

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 256
AGAIN_AT_ONCE = 64
"""Of what was refused; apart from what is new, which it must not crowd out."""
ENOUGH_REFUSED = 3
PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Postponement:
    """An entry that failed for a reason that may pass, and is tried again; `now_ms` is Redis's clock."""

    entry: Entry
    reason: str
    pause_ms: int
    now_ms: int


Result = Outcome | Postponement


class Outbox:
    """One thread between the stages and Redis.

    Args:
        on_done: told the entries that left, or that turned out to be somebody else's.
    """

    def __init__(
        self,
        publisher: Publisher,
        intake: Intake,
        metrics: Metrics,
        *,
        on_done: Callable[[Sequence[Entry]], None],
    ) -> None:
        self._publisher = publisher
        self._intake = intake
        self._metrics = metrics
        self._on_done = on_done
        self._refused = 0
        self._closing = threading.Event()
        self._queue: queue.SimpleQueue[Result | Callable[[], Result] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    @property
    def refused(self) -> int:
        """How many results Redis has refused so far, and will be given again."""
        return self._refused

    def put(self, result: Result | Callable[[], Result]) -> None:
        """Queues a result, or a call that makes it and must not raise."""
        self._queue.put(result)

    def close(self) -> None:
        """Carries over what is queued if Redis takes it at once, then ends the thread."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        refused: dict[tuple[str, bytes], Result] = {}
        failures = 0
        while (fresh := self._gather(wait=not refused)) is not None:
            again = dict(itertools.islice(refused.items(), AGAIN_AT_ONCE))
            results = again | {result.entry.key: result for result in fresh}
            refused = {key: result for key, result in refused.items() if key not in results}
            try:
                kept, error = self._carry(list(results.values()))
            except Exception as unexpected:
                # Whatever it is, this thread is the only way out of the process and must go on.
                kept, error = list(results.values()), unexpected
            refused |= {result.entry.key: result for result in kept}
            self._refused = len(refused)
            if error is None:
                failures = 0
                continue
            if self._closing.is_set():
                return  # the claims are given up; others will judge these
            failures += 1
            if failures == 1:
                unknown = None if isinstance(error, ModerationError) else error
                logger.error("%d results wait to be published: %s", len(refused), error, exc_info=unknown)
            self._closing.wait(PAUSE_S)

    def _gather(self, *, wait: bool) -> list[Result] | None:
        """What is queued, up to the maximum; blocks for the first, or is empty. None when closed and all is carried."""
        results: list[Result] = []
        while len(results) < MOST_AT_ONCE:
            try:
                result = self._queue.get(block=wait and not results)
            except queue.Empty:
                break
            if result is None:
                self._queue.put(None)  # for the next look, when what is here has been carried
                return results or (None if wait else [])
            try:
                results.append(result() if callable(result) else result)
            except Exception:  # this thread is the only way out; who holds the entry for too long is told elsewhere
                logger.exception("a result could not be made")
        return results

    def _carry(self, results: Sequence[Result]) -> tuple[list[Result], Exception | None]:
        """Hands results to Redis; returns those that it refused, to be tried again, and why."""
        refused: list[Result] = []
        error: Exception | None = None
        for result in results:
            if not isinstance(result, Postponement):
                continue
            if len(refused) >= ENOUGH_REFUSED:  # each may take as long as a server that does not answer
                refused.append(result)
                continue
            try:
                self._intake.postpone(result.entry, result.reason, result.pause_ms, result.now_ms)
            except ModerationError as why:  # the others may be taken all the same
                refused.append(result)
                error = why
        outcomes = [result for result in results if isinstance(result, Outcome)]
        if outcomes:
            started = time.monotonic()
            published = self._publisher.publish(outcomes)
            for outcome, became in zip(outcomes, published, strict=True):
                if isinstance(became, ModerationError):
                    refused.append(outcome)
                    error = became
                else:
                    self._count(outcome, became)
            self._metrics.stage.labels("publish").observe(time.monotonic() - started)
            _log(outcomes, published)
        kept = {id(result) for result in refused}
        self._on_done([result.entry for result in results if id(result) not in kept])
        return refused, error

    def _count(self, outcome: Outcome, became: Published) -> None:
        if became.document is not None:
            latency_s = (became.at_ms - outcome.entry.enqueued_ms) / 1000
            self._metrics.published(became.document, latency_s, backfill=outcome.entry.backfill)
        elif became.result == "duplicate":
            self._metrics.duplicates.inc()
        elif became.result == "unchanged":
            self._metrics.unchanged.inc()
        if became.judged is not None:
            self._metrics.judged(became.judged)
        if became.result == "opened":
            logger.critical("bans are above the quota: the circuit breaker is open and withholds them")


def _log(outcomes: Sequence[Outcome], became: Sequence[Published | ModerationError]) -> None:
    """One line for all that was published together; none where all was refused, which may go on for hours."""
    taken = [done for done in became if isinstance(done, Published)]
    if not taken:
        return
    documents = [done.document for done in taken if done.document is not None]
    counted: Counter[str] = Counter(document.label or "undecided" for document in documents)
    counted.update("banned" for document in documents if document.ban)
    logger.info(
        "published %d of %d: %s",
        len(documents),
        len(outcomes),
        ", ".join(f"{count} {what}" for what, count in sorted(counted.items())) or "nothing new",
        extra={
            "content_ids": [document.content_id for document in documents],
            "undecided": {d.content_id: d.reasons[0] for d in documents if isinstance(d, Undecided)},
        },
    )
