"""The line: fetch, decode, batch, score, decide, publish; each picture for itself, as fast as its stages let it.

Entries go in by `accept`, and leave by a publish or a postponement. Knows the order of the stages and nothing of
how any of them works, of Celery, or of where entries come from.
"""

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from worker.batcher import Batcher
from worker.classifier import Scores
from worker.content import ContentStore
from worker.decode import DecoderPool
from worker.entry import Entry
from worker.errors import ContentError, ModerationError
from worker.fetch import FetchPool
from worker.intake import Intake
from worker.judgement import Rules, decided, may_pass, pause_before_next_ms, undecided
from worker.metrics import Metrics
from worker.model.reading import Decoded
from worker.outbox import Outbox, Postponement
from worker.publish import Outcome, Publisher
from worker.verdict import Undecided

logger = logging.getLogger(__name__)

# How far back the rate of judging is measured: what may be in work is what was judged in that time.
RATE_WINDOW_S = 2.0
# So many of what was left to others are remembered, far more than can be before others have them.
MOST_LEFT = 10_000


@dataclass(eq=False, slots=True)
class Item:
    """One picture in work in this process."""

    entry: Entry
    started: float
    stage_started: float
    content_sha256: str | None = None
    frames: int = 0


class Pipeline:
    """Takes entries through the stages. It has no threads of its own; the stages have."""

    def __init__(
        self,
        *,
        content: ContentStore,
        decoders: DecoderPool,
        batcher: Batcher,
        publisher: Publisher,
        intake: Intake,
        metrics: Metrics,
        rules: Rules,
        fetch_threads: int,
    ) -> None:
        self._decoders = decoders
        self._batcher = batcher
        self._intake = intake
        self._outbox = Outbox(publisher, intake, metrics, on_done=self._done)
        self._metrics = metrics
        self._rules = rules
        self._fetchers = FetchPool(content.fetch, fetch_threads)
        self._changed = threading.Condition()
        self._items: dict[tuple[str, bytes], Item] = {}
        self._left: deque[tuple[str, bytes]] = deque(maxlen=MOST_LEFT)
        self._judged: deque[tuple[float, int, int]] = deque()  # when, how many, and how many of them were fetched
        self._last_progress = time.monotonic()
        self._stood_still_s = 0.0  # with work in hand, when the last of it was given up
        self._closing = False

    # -- what the puller sees

    def accept(self, entries: Iterable[Entry]) -> None:
        """Starts work on entries claimed by this process."""
        now = time.monotonic()
        items = [Item(entry, now, now) for entry in entries]
        with self._changed:
            if not self._items:  # time without work counts neither as progress nor as standstill
                self._last_progress = now - self._stood_still_s
            for item in items:
                self._items[item.entry.key] = item
        for item in items:
            self._fetchers.submit(item.entry.content_id, partial(self._guarded, self._fetched, item))

    def condemn(self, entry: Entry, reason: str) -> None:
        """Publishes an entry that keeps killing its process as `model_failed`, and dead-letters it."""
        now = time.monotonic()
        item = Item(entry, now, now)
        with self._changed:
            self._items[entry.key] = item
        document = self._undecided(item, ContentError("model_failed", reason))
        self._outbox.put(Outcome(entry, document, dead_letter=("killed_its_worker", reason)))

    def in_work(self) -> list[Item]:
        """The pictures in work."""
        with self._changed:
            return list(self._items.values())

    def left(self) -> set[tuple[str, bytes]]:
        """The keys of entries lately left to others: Redis holds them to be this process's until another takes them."""
        with self._changed:
            return set(self._left)

    def held_up(self) -> int:
        """Of the pictures in work, how many wait for somebody else: for a fetch that takes long, or for Redis."""
        return self._fetchers.running_for(RATE_WINDOW_S) + self._outbox.refused

    def judged_lately(self) -> int:
        """Pictures finished within the rate window."""
        with self._changed:
            self._forget_old_rates()
            return sum(count for _, count, _ in self._judged)

    def fetched_lately(self) -> int:
        """Of those, how many the content store had."""
        with self._changed:
            self._forget_old_rates()
            return sum(fetched for _, _, fetched in self._judged)

    def stands_still_s(self) -> float:
        """Seconds since a picture was last finished while there was work; 0 where there is none."""
        with self._changed:
            return time.monotonic() - self._last_progress if self._items else 0.0

    def wait_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until `reached`, asked whenever pictures were finished, or for `timeout_s`; returns its last answer."""
        with self._changed:
            return self._changed.wait_for(reached, timeout_s)

    def leave_overdue(self, fetch_s: float, work_s: float) -> None:
        """Gives up what is in work for too long: a fetch that hangs is tried again later, the rest left to others."""
        self._fetchers.give_up(fetch_s)
        now = time.monotonic()
        for item in self.in_work():
            if now - item.started > work_s:
                logger.error("%s is in work for over %g s: left to others", item.entry.content_id, work_s)
                self.abandon([item])

    def fetchers_hang(self) -> bool:
        """Whether nothing can be fetched any more."""
        return self._fetchers.all_hang()

    def abandon(self, items: Iterable[Item]) -> None:
        """Forgets pictures whose claims are left to others; whatever still comes of them finds the entry gone."""
        with self._changed:
            worked = bool(self._items)
            for item in items:
                self._items.pop(item.entry.key, None)
                self._left.append(item.entry.key)
            if worked and not self._items:
                self._stood_still_s = time.monotonic() - self._last_progress
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the threads; what is still in work is given up."""
        self._closing = True
        self._fetchers.close()
        self._outbox.close()

    # -- the line

    def _fetched(self, item: Item, data: bytes | ContentError, seconds: float) -> None:
        if isinstance(data, ContentError):
            self._fetch_failed(item, data)
            return
        let_go = partial(self._fetchers.let_go, len(data))
        try:
            item.content_sha256 = hashlib.sha256(data).hexdigest()
            self._metrics.stage.labels("fetch").observe(seconds)
            item.stage_started = time.monotonic()
            decoding = self._decoders.submit(data)
        except BaseException:
            let_go()
            raise
        # First, for what comes next may take its time; and whatever becomes of the picture.
        decoding.add_done_callback(lambda done: let_go())
        decoding.add_done_callback(lambda done: self._guarded(self._decoded, item, done))

    def _decoded(self, item: Item, done: "Future[Decoded]") -> None:
        self._observe("decode", item)
        frames = done.result().frames
        item.frames = len(frames)
        self._batcher.submit(frames).add_done_callback(lambda scored: self._guarded(self._scored, item, scored))

    def _scored(self, item: Item, done: "Future[Scores]") -> None:
        self._outbox.put(partial(self._outcome, item, done.result()))

    def _outcome(self, item: Item, scores: Scores) -> Outcome:
        try:
            return Outcome(item.entry, decided(item, scores, self._rules))
        except Exception as error:
            logger.exception("nothing can be decided about %s", item.entry.content_id)
            failed = ContentError("model_failed", f"A decision failed: {type(error).__name__}.")
            return Outcome(item.entry, self._undecided(item, failed))

    def _guarded(self, stage: Callable[..., None], item: Item, *done: Any) -> None:
        """Runs a stage; whatever it raises ends this picture's work here, and nobody else's."""
        try:
            stage(item, *done)
        except ContentError as error:
            self._undecide(item, error)
        except ModerationError as error:
            if not self._closing:
                logger.error("work on %s stopped: %s", item.entry.content_id, error)
            self.abandon([item])
        except Exception as error:
            logger.exception("a stage failed on %s", item.entry.content_id)
            self._undecide(item, ContentError("model_failed", f"A stage failed: {type(error).__name__}."))

    def _done(self, entries: Sequence[Entry]) -> None:
        if not entries:  # all were refused, which is no progress
            return
        now = time.monotonic()
        with self._changed:
            finished = [item for entry in entries if (item := self._items.pop(entry.key, None)) is not None]
            fetched = sum(item.content_sha256 is not None for item in finished)
            self._judged.append((now, len(finished), fetched))
            self._forget_old_rates()
            self._last_progress = now
            self._stood_still_s = 0.0
            self._changed.notify_all()

    def _forget_old_rates(self) -> None:
        while self._judged and self._judged[0][0] < time.monotonic() - RATE_WINDOW_S:
            self._judged.popleft()

    def _observe(self, stage: str, item: Item) -> None:
        now = time.monotonic()
        self._metrics.stage.labels(stage).observe(now - item.stage_started)
        item.stage_started = now

    # -- what goes wrong

    def _fetch_failed(self, item: Item, error: ContentError) -> None:
        """Tries again later where that may help."""
        if not may_pass(error.reason):
            raise error
        now_ms = self._intake.clock_ms()  # not asked: with Redis away each of many would wait for a time-out
        pause_ms = pause_before_next_ms(item.entry, error.reason, self._rules, now_ms)
        if pause_ms is None:
            raise error
        self._outbox.put(Postponement(item.entry, error.reason, pause_ms, now_ms))

    def _undecide(self, item: Item, error: ContentError) -> None:
        self._outbox.put(Outcome(item.entry, self._undecided(item, error)))

    def _undecided(self, item: Item, error: ContentError) -> Undecided:
        logger.debug("%s is undecided: %s: %s", item.entry.content_id, error.reason, error.detail)
        return undecided(item, error.reason, self._rules)
