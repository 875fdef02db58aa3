"""Those who use the service while it is attacked: threads that submit, correct, swap champions, and count.

Each notes what it is about to do before it does it. None of them knows of any attack; where the server does not
answer they try again, as the contract tells them to.
"""

import itertools
import random
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import redis
from celery import Celery

from tests.chaos.record import Notebook, Witness
from tests.chaos.scene import LABELS, POOL, Pictures, Versions
from tests.support.waiting import wait_until
from tests.support.worker import REPOSITORY
from worker.client import Moderation
from worker.errors import UnavailableError, WeightsError

PAUSE_S = 0.1
BREATH_S = 0.6
BACKFILL_AHEAD = 60


class Actor(ABC):
    """A thread that takes step after step until it is told to end; what it raises fails the test at the end."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.ending = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def end(self) -> None:
        """Ends after the step in work."""
        self.ending.set()
        self._thread.join(60)
        if self.error is not None:
            raise self.error
        assert not self._thread.is_alive(), f"{type(self).__name__} does not end"

    @abstractmethod
    def step(self) -> None:
        """What it does; again and again."""

    def insist(self, call: Callable[[], object]) -> bool:
        """Calls until the server has answered; False where that did not happen before the end."""
        while not self.ending.is_set():
            try:
                call()
                return True
            except (UnavailableError, redis.exceptions.RedisError):
                self.ending.wait(PAUSE_S)
        return False

    def _run(self) -> None:
        try:
            while not self.ending.is_set():
                self.step()
        except BaseException as error:
            self.error = error


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
        self.again = self.rescans = self.late = 0

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
            if len(self._open[door]) < ahead / 4:
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
        self.sent: list[str] = []
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
        try:
            self._app.send_task("moderation.moderate", args=[ids], queue="moderation", retry=False)
        except Exception:  # kombu's errors are as many as its transports; the message is not counted as sent
            return []
        self.sent += ids
        self.messages += 1
        return ids

    def end(self) -> None:
        """Also closes its connections."""
        super().end()
        self._app.close()


class Moderator(Actor):
    """Decides on pictures of its own, some before they are judged and some after, and on some again; others show the
    same bytes under another content ID."""

    def __init__(self, url: str, pictures: Pictures, notes: Notebook, dice: random.Random) -> None:
        super().__init__(dice)
        self._client = Moderation(url)
        self._pictures, self._notes = pictures, notes
        self._numbers = itertools.count()
        self._waiting: list[str] = []
        self.decided: dict[str, list[str]] = {}
        self.unsure: set[str] = set()

    def step(self) -> None:
        """Draws and submits one, then decides on the one before last."""
        content_id = f"k{next(self._numbers)}"
        self._pictures.draw(content_id, self.dice.choice(LABELS))
        self._notes.intended([content_id])
        if self.insist(lambda: self._client.submit(content_id)):
            self._notes.acknowledged([content_id])
            self._waiting.append(content_id)
        if len(self._waiting) > self.dice.randint(0, 3):
            self._decide(self._waiting.pop(0))
        if self.decided and self.dice.random() < 0.2:
            self._decide(self.dice.choice(list(self.decided)))
        if self.decided and self.dice.random() < 0.2:  # the same bytes under another name: the decision is theirs, too
            original = self.dice.choice(list(self.decided))
            copy = f"{original}-copy{next(self._numbers)}"
            self._pictures.copy(original, copy)
            self._notes.intended([copy])
            if self.insist(lambda: self._client.submit(copy)):
                self._notes.acknowledged([copy])
        self.ending.wait(0.25)

    def _decide(self, content_id: str) -> None:
        if content_id in self.unsure:
            return
        before = self.decided.get(content_id, [None])[-1]
        label = self.dice.choice([label for label in LABELS if label != before])
        try:
            self._client.correct(content_id, label, by="chaos")
            self.decided.setdefault(content_id, []).append(label)
        except UnavailableError:  # it may be in or not; nobody decides on it a second time
            self.decided.pop(content_id, None)
            self.unsure.add(content_id)

    def end(self) -> None:
        """Also closes its connection."""
        super().end()
        self._client.close()


class Rewriter(Actor):
    """Puts other bytes in the place of those that were judged, and asks for a rescan: the label must follow them."""

    def __init__(self, url: str, pictures: Pictures, witness: Witness, notes: Notebook, dice: random.Random) -> None:
        super().__init__(dice)
        self._client = Moderation(url)
        self._pictures, self._witness, self._notes = pictures, witness, notes
        self._numbers = itertools.count()
        self.label: dict[str, str] = {}
        self.rewritten = 0

    def step(self) -> None:
        """A new one, or another label for one that was judged."""
        judged = [content_id for content_id in self.label if content_id in self._witness.judged]
        if judged and self.dice.random() < 0.7:
            content_id = self.dice.choice(judged)
            label = self.dice.choice([label for label in LABELS if label != self.label[content_id]])
            self.rewritten += 1
        else:
            content_id, label = f"x{next(self._numbers)}", self.dice.choice(LABELS)
        first = content_id not in self.label
        self._pictures.draw(content_id, label)
        self.label[content_id] = label
        if first:
            self._notes.intended([content_id])
        # Whatever becomes of the end of this run: bytes that were put there are asked about.
        while not self._submitted(content_id, rescan=not first):
            threading.Event().wait(PAUSE_S)
        if first:
            self._notes.acknowledged([content_id])
        self.ending.wait(0.25)

    def _submitted(self, content_id: str, *, rescan: bool) -> bool:
        try:
            self._client.submit(content_id, rescan=rescan)
        except UnavailableError:
            return False
        return True

    def end(self) -> None:
        """Also closes its connection."""
        super().end()
        self._client.close()


class Swapper(Actor):
    """Promotes one version after the other; each is a swap once a verdict by it has been seen."""

    def __init__(self, versions: Versions, witness: Witness, dice: random.Random) -> None:
        super().__init__(dice)
        self._versions, self._witness = versions, witness
        self.swaps = self.refused = 0
        self.took_s: list[float] = []

    def step(self) -> None:
        """Promotes, and waits until work shows it."""
        champion = self._versions.store.champion()
        version = self.dice.choice([known for known in list(self._versions.numbers) if known != champion])
        start = len(self._witness.entries)
        began = time.monotonic()
        try:
            self._versions.store.promote(version, by="chaos", why="swap under load")
        except WeightsError:  # the disk is full: whatever is in service stays
            self.refused += 1
            self.ending.wait(PAUSE_S)
            return

        def seen() -> bool:
            return any(entry.document["weights"] == version for entry in self._witness.entries[start:])

        while not self.ending.is_set():
            if self._witness.wait_for(seen, 0.5):
                self.swaps += 1
                self.took_s.append(time.monotonic() - began)
                return


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
