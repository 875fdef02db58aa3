"""Those who submit while the service is attacked: through the client, by Celery message, from processes of their own.

Each notes what it is about to do before it does it.
"""

import itertools
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from celery import Celery

from tests.chaos.actors import Actor
from tests.chaos.record import Notebook, Witness
from tests.chaos.scene import POOL, Pictures
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY
from worker.client import Moderation

BREATH_S = 0.6
BACKFILL_AHEAD = 60


class Feeder(Actor):
    """Submits so that there is always work: uploads, backfill, IDs a second time, rescans, pictures that come late."""

    def __init__(
        self, url: str, pictures: Pictures, witness: Witness, notes: Notebook, dice: random.Random, *, ahead: int
    ) -> None:
        super().__init__(dice)
        self._client = Moderation(url)
        self._pictures, self._witness, self._notes = pictures, witness, notes
        self._ahead = {"u": ahead, "b": BACKFILL_AHEAD}
        self._taken: dict[str, list[str]] = {"u": [], "b": []}
        self._open: dict[str, set[str]] = {"u": set(), "b": set()}
        self._late: list[tuple[float, str]] = []
        self._numbers = itertools.count()
        self._resting = threading.Event()
        self.again = self.rescans = self.late = 0

    def rest(self, resting: bool) -> None:
        """Submits nothing until told otherwise; what is in the middle of being submitted still is."""
        (self._resting.set if resting else self._resting.clear)()

    def waiting(self) -> int:
        """Uploads that were taken and have no verdict yet."""
        self._open["u"] -= self._witness.judged
        return len(self._open["u"])

    def step(self) -> None:
        """Fills up what is ahead once most of it is judged; in between, a breath for workers that are starting."""
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            self._pictures.put(self._late.pop(0)[1])
        for door, ahead in self._ahead.items():
            self._open[door] -= self._witness.judged
            if len(self._open[door]) < ahead / 4 and not self._resting.is_set():
                self._submit(door, ahead)
        self._witness.wait_for(lambda: len(self._open["u"] - self._witness.judged) < self._ahead["u"] / 4, 0.3)
        self.ending.wait(BREATH_S)

    def _submit(self, door: str, count: int) -> None:
        ids = [f"{door}{next(self._numbers)}-p{self.dice.randrange(POOL):02}" for _ in range(count)]
        for content_id in ids:
            if self.dice.random() < 0.04:
                self._late.append((time.monotonic() + 1.5, content_id))
                self.late += 1
            else:
                self._pictures.put(content_id)
        self._notes.intended(ids)
        if self.insist(lambda: self._client.submit(ids, backfill=door == "b")):
            self._notes.acknowledged(ids)
            self._open[door].update(ids)
            self._taken[door] += ids
        if self._taken["u"]:
            old = self.dice.choices(self._taken["u"], k=count // 10)
            rescan = self.dice.random() < 0.3
            if self.insist(lambda: self._client.submit(old, rescan=rescan)):
                self.rescans += rescan * len(old)
                self.again += (not rescan) * len(old)

    def end(self) -> None:
        """Also brings the pictures that were to come later."""
        super().end()
        for _, content_id in self._late:
            self._pictures.put(content_id)
        self._client.close()


class CelerySender(Actor):
    """Sends `moderation.moderate` by name, as a client without this package does."""

    def __init__(self, url: str, pictures: Pictures, dice: random.Random, every_s: float) -> None:
        super().__init__(dice)
        self._app = Celery(broker=url)
        self._app.conf.broker_transport_options = {"socket_timeout": 5, "socket_connect_timeout": 2}
        self._pictures, self._every_s = pictures, every_s
        self._numbers = itertools.count()
        self.sent: dict[str, float] = {}
        """When each ID was sent, of those in messages that the broker took."""
        self.messages = 0

    def step(self) -> None:
        """One message with one to three IDs; one that the broker did not take counts for nothing."""
        self.send(self.dice.randint(1, 3))
        self.ending.wait(self._every_s)

    def send(self, count: int) -> list[str]:
        """Sends one message; returns its IDs, none where the broker did not take it."""
        ids = [f"c{next(self._numbers)}-p{self.dice.randrange(POOL):02}" for _ in range(count)]
        for content_id in ids:
            self._pictures.put(content_id)
        now = time.time()
        try:
            self._app.send_task("moderation.moderate", args=[ids], queue="moderation", retry=False)
        except Exception:  # kombu's errors are as many as its transports; the message is not counted as sent
            return []
        self.sent |= dict.fromkeys(ids, now)
        self.messages += 1
        return ids

    def end(self) -> None:
        """Also closes its connections."""
        super().end()
        self._app.close()


class Producers:
    """Producer processes, to be killed in the middle of submitting. Each keeps a notebook of its own."""

    def __init__(self, url: str, pictures: Pictures, folder: Path, dice: random.Random) -> None:
        self._url, self._pictures, self._folder, self._dice = url, pictures, folder, dice
        self.notebooks: list[Path] = []
        self.killed = self.died_after_xadd = 0

    def one_lives_and_is_killed(self, *, after_xadd: bool = False) -> None:
        """Starts one; it dies in the middle, or by itself right after the server has taken its last submission."""
        number = len(self.notebooks)
        notebook = self._folder / f"producer-{number}.notes"
        words = [self._url, str(self._pictures.content), str(self._pictures.pool), str(notebook), f"r{number}n", "7"]
        words += [str(self._dice.randint(1, 3))] if after_xadd else []
        process = subprocess.Popen([sys.executable, "-m", "tests.support.producer", *words], cwd=REPOSITORY)
        self.notebooks.append(notebook)
        if not after_xadd:
            enough = self._dice.randint(1, 6000)
            wait_until(lambda: notebook.exists() and notebook.stat().st_size >= enough, "a producer at work", 60)
            process.kill()
        assert process.wait(60) == -9, "the producer ended by itself: see what it said above"
        self.killed += not after_xadd
        self.died_after_xadd += after_xadd
