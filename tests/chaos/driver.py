"""One chaos run: a place with its workers, those who use it, the record of it all, and what became of it.

    with Driver(folder, seed=…) as driver:
        driver.begin()
        …attacks…
        driver.settle().assert_none()

Attacks are in `attacks`, what must be true in `checks`.
"""

import random
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.chaos import checks
from tests.chaos.load import CelerySender, Feeder, Moderator, Producers, Rewriter, Swapper
from tests.chaos.record import Notebook, Witness, noted
from tests.chaos.scene import Pictures, Versions
from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import WorkerProcess

SETTINGS = {
    # Shortened from 15 s, so that claims change hands as often as possible; a part of the suite sets it back.
    "takeover_idle_s": "2",
    "claim_deadline_s": "60",
    "not_found_retry_s": "600",  # longer than any outage here: a picture that comes late is not to be given up
    "ban_quota_share": "1",  # the circuit breaker has tests of its own
    "precision": "fp32",
    "torch_threads": "1",
    "decoders": "1",
}
SETTLE_S = 240.0
# Celery delivers what a dead worker had received once its visibility timeout (60 s) is over.
CELERY_SETTLE_S = 90.0


class Driver:
    """Builds everything, and ends it.

    Args:
        app: the workers' Celery app.
        workers: how many there are at any time.
        celery_every_s: how often a Celery message is sent by name; None for never.
        ahead: uploads that always wait.
        settings: `MODERATION_*` in lower case, over SETTINGS.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        workers: int = 3,
        app: str = "tests.support.tiny_app",
        celery_every_s: float | None = None,
        ahead: int = 160,
        weights: Path | None = None,
        **settings: str,
    ) -> None:
        self.place = Place(folder, weights=weights)
        self.seed, self.app, self._wanted, self.settings = seed, app, workers, SETTINGS | settings
        self.dice = random.Random(seed)
        self.tally: Counter[str] = Counter()
        self.resumed: list[tuple[str, float, float, float | None]] = []
        self.orphaned = 0
        url = self.place.broker.url
        self.pictures = Pictures(folder, self.place.content)
        self.versions = Versions(self.place.store)
        self.witness = Witness(url, folder / "witness.log")
        self._notes = folder / "submitted.notes"
        notes = Notebook(self._notes)
        self.feeder = Feeder(url, self.pictures, self.witness, notes, self._fresh_dice("feeder"), ahead=ahead)
        self.moderator = Moderator(url, self.pictures, notes, self._fresh_dice("moderator"))
        self.swapper = Swapper(self.versions, self.witness, self._fresh_dice("swapper"))
        self.celery = CelerySender(url, self.pictures, self._fresh_dice("celery"), celery_every_s or 0)
        self.producers = Producers(url, self.pictures, folder, self._fresh_dice("producers"))
        self.rewriter = Rewriter(url, self.pictures, self.witness, notes, self._fresh_dice("rewriter"))
        self._actors = [self.swapper, self.moderator, self.rewriter, self.feeder]
        if celery_every_s is not None:
            self._actors.insert(0, self.celery)
        self.raw = self.place.broker.client()
        self._began = time.monotonic()
        self.took_s = 0.0

    def begin(self) -> None:
        """Starts workers and load; returns when the first verdicts are seen."""
        for _ in range(self._wanted):
            self.start_worker()
        for actor in self._actors:
            actor.start()
        assert self.witness.wait_for(lambda: len(self.witness.entries) > 50, 120), self.place.workers[-1].log()[-3000:]

    def start_worker(self, app: str | None = None, **settings: str) -> WorkerProcess:
        """One more worker."""
        return self.place.start_worker(app=app or self.app, **{**self.settings, **settings})

    def alive(self) -> list[WorkerProcess]:
        """The workers that run the ordinary app and have not ended."""
        return [w for w in self.place.workers if w.app == self.app and w.process.poll() is None]

    def claims(self) -> dict[int, int]:
        """How many entries each worker process has claimed, by its process ID."""
        held: Counter[int] = Counter()
        for stream in ("moderation:uploads", "moderation:backfill"):
            for consumer in self.raw.xinfo_consumers(stream, "moderation"):
                held[int(consumer["name"].decode().split("-")[-2])] += consumer["pending"]
        return held

    def one_at_work(self) -> WorkerProcess:
        """A worker that holds claims at this moment, by the dice."""
        found: list[WorkerProcess] = []

        def at_work() -> bool:
            claims = self.claims()
            found[:] = [worker for worker in self.alive() if claims.get(worker.process.pid, 0) > 0]
            return bool(found)

        wait_until(at_work, "a worker at work", 120)
        return self.dice.choice(found)

    def settle(self, patience_s: float = SETTLE_S) -> checks.Findings:
        """Ends the load, lets the workers finish for up to `patience_s`, and checks everything."""
        for actor in self._actors:
            actor.end()
        return self.finish(patience_s)

    def finish(self, patience_s: float) -> checks.Findings:
        """What `settle` does once the load has ended."""
        paths = [self._notes, *self.producers.notebooks]
        intended, taken = noted(paths)
        done = self._finish(taken, patience_s)
        if done and self.celery.sent:
            self.witness.wait_for(lambda: set(self.celery.sent) <= self.witness.judged, CELERY_SETTLE_S)
            self._finish(taken, 30)
        newest = self._newest()
        self.witness.wait_for(lambda: not newest or self.witness.entries[-1].id == newest, 30)
        self.took_s = time.monotonic() - self._began
        return checks.check(
            list(self.witness.entries), intended | set(self.celery.sent), taken, self.moderator.decided,
            self.moderator.unsure, self.rewriter.label, self.pictures, self.versions, self.raw,
        )  # fmt: skip

    def _finish(self, taken: set[str], timeout_s: float) -> bool:
        """Whether all that was taken has a verdict and left the intake within the time."""

        def finished() -> bool:
            return (
                taken <= self.witness.judged
                and not self.raw.xlen("moderation:uploads")
                and not self.raw.xlen("moderation:backfill")
                and not self.raw.zcard("moderation:retry")
                and not self._corrections_waiting()
            )

        return self.witness.wait_for(finished, timeout_s) or finished()

    def _corrections_waiting(self) -> bool:
        groups: Any = self.raw.xinfo_groups("moderation:corrections") if self.moderator.decided else []
        newest: Any = self.raw.xrevrange("moderation:corrections", count=1)
        return bool(groups) and (groups[0]["pending"] > 0 or groups[0]["last-delivered-id"] != newest[0][0])

    def _newest(self) -> str:
        newest: Any = self.raw.xrevrange("moderation:verdicts", count=1)
        return newest[0][0].decode() if newest else ""

    def _fresh_dice(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def celery_lost(self) -> int:
        """IDs in Celery messages that the broker took, and that never got a verdict."""
        return len(set(self.celery.sent) - self.witness.judged)

    def __enter__(self) -> Self:
        self.place.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors:
            actor.ending.set()
        self.witness.close()
        self.place.__exit__(kind, error, trace)
