"""One chaos run: a place with its workers, those who use it, the record of it all, and what became of it.

    with Driver(folder, seed=…) as driver:
        driver.begin()
        …attacks…
        driver.settle().assert_none()

Attacks are in `attacks`, what must be true in `checks`.
"""

import random
import signal
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.chaos import checks
from tests.chaos.load import CelerySender, Feeder, Producers
from tests.chaos.people import Moderator, Rewriter, Swapper
from tests.chaos.record import Notebook, Told, Witness, noted
from tests.chaos.resumption import Resumption
from tests.chaos.scene import Pictures, Versions
from tests.support.place import Place
from tests.support.waiting import wait_until
from tests.support.worker import Broker, WorkerProcess, shipped_redis

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
# It may even come in the middle of the checks, which are then made anew.
LOOKS = 3
INTAKE = ("moderation:uploads", "moderation:backfill")


class Driver:
    """Builds everything, and ends it.

    Args:
        app: the workers' Celery app.
        workers: how many there are at any time.
        celery_every_s: how often a Celery message is sent by name; None for never.
        ahead: uploads that always wait.
        appendfsync: of the server, which else has the settings of deploy/redis. Only one that dies can lose what it
            had not synced, so only those who kill it ask for `always`.
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
        appendfsync: str | None = None,
        weights: Path | None = None,
        **settings: str,
    ) -> None:
        config = shipped_redis() | ({"appendfsync": appendfsync} if appendfsync else {})
        self.place = Place(folder, Broker(folder / "valkey", **config), weights)
        self.seed, self.app, self._wanted, self.settings = seed, app, workers, SETTINGS | settings
        self.dice = random.Random(seed)
        self.tally: Counter[str] = Counter()
        self.resumed: list[Resumption] = []
        self.orphaned = 0
        """Claims that workers held when they died: what others had to take over."""
        self.into_the_void = 0
        """Entries that the server delivered into connections whose other end was gone."""
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

    def ended_by_themselves(self) -> list[str]:
        """Workers that neither were killed nor ended well: no attack here is a reason to."""
        return [
            f"a worker ended by itself with exit code {code}: {_last_word(worker.log())}"
            for worker in self.place.workers
            if (code := worker.process.poll()) not in (None, 0, -signal.SIGKILL)
        ]

    def claims(self) -> dict[int, int]:
        """How many entries each worker process has claimed, by its process ID."""
        held: Counter[int] = Counter()
        for stream in INTAKE:
            for consumer in self.raw.xinfo_consumers(stream, "moderation"):
                held[_process(consumer["name"])] += consumer["pending"]
        return held

    def delivered_since(self, moment_s: float) -> int:
        """How many of the entries that are claimed now were delivered, or refreshed, after the moment."""
        pending = self._pending()
        seconds, micros = self.raw.time()
        now_s = seconds + micros / 1e6
        return sum(now_s - info["time_since_delivered"] / 1000 > moment_s for _, info in pending)

    def stranded(self) -> list[str]:
        """The content ID of each entry that is pending in the list of a process that is dead."""
        dead = {worker.process.pid for worker in self.place.workers if worker.process.poll() is not None}
        found = []
        for stream, info in self._pending():
            if _process(info["consumer"]) in dead:
                (_, fields), = self.raw.xrange(stream, info["message_id"], info["message_id"])  # fmt: skip
                found.append(fields[b"content_id"].decode())
        return found

    def only_stranded_left(self) -> bool:
        """Whether nothing is left to be done but what dead processes have claimed."""
        left = sum(self.raw.xlen(stream) for stream in INTAKE) + self.raw.zcard("moderation:retry")
        return left == len(self.stranded()) and not self._corrections_waiting()

    def _pending(self) -> list[tuple[str, Any]]:
        return [
            (stream, info)
            for stream in INTAKE
            for info in self.raw.xpending_range(stream, "moderation", "-", "+", 10_000)
        ]

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
        self.end_load()
        return self.finish(patience_s)

    def end_load(self) -> None:
        """Nobody submits, decides or promotes any more."""
        for actor in self._actors:
            actor.end()

    def finish(self, patience_s: float) -> checks.Findings:
        """What `settle` does once the load has ended."""
        paths = [self._notes, *self.producers.notebooks]
        intended, taken = noted(paths)
        done = self._finish(taken, patience_s)
        if done and self.celery.sent:
            self.witness.wait_for(lambda: self.celery.sent.keys() <= self.witness.judged, CELERY_SETTLE_S)
            self._finish(taken, 30)
        told = Told(
            intended | self.celery.sent.keys(),
            taken,
            self.moderator.decided,
            self.moderator.unsure,
            self.rewriter.label,
            self.moderator.copies,
        )
        for _ in range(LOOKS if self.celery.sent else 1):
            newest = self._newest()
            self.witness.wait_for(lambda newest=newest: not newest or self.witness.entries[-1].id == newest, 30)
            entries = list(self.witness.entries)
            findings = checks.check(entries, told, self.pictures, self.versions, self.raw)
            findings.other += self.ended_by_themselves()
            if self._newest() == newest and not any(map(self.raw.xlen, INTAKE)):
                break
            self._finish(taken, 30)
        self.took_s = time.monotonic() - self._began
        return findings

    def _finish(self, taken: set[str], timeout_s: float) -> bool:
        """Whether all that was taken has a verdict and left the intake within the time."""

        def finished() -> bool:
            return (
                taken <= self.witness.judged
                and not any(map(self.raw.xlen, INTAKE))
                and not self.raw.zcard("moderation:retry")
                and not self._corrections_waiting()
            )

        return self.witness.wait_for(finished, timeout_s)

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
        return len(self.celery.sent.keys() - self.witness.judged)

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


def _last_word(log: str) -> str:
    """What a worker said was wrong, else its last line."""
    lines = log.splitlines() or ["nothing said"]
    return next((line for line in reversed(lines) if " CRITICAL " in line), lines[-1])[:300]


def _process(consumer: bytes) -> int:
    """The process ID in a consumer's name."""
    return int(consumer.decode().split("-")[-2])
